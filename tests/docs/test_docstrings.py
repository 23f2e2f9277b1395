"""Every public name is documented: what it takes and returns, how it fails; and examples in docstrings are true."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import paretopress

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("paretopress", "spaces", "hardware_profiles", "compressors", "evaluators", "search")
SOURCES = sorted(
    path
    for name in FOLDERS
    for path in (ROOT / name).rglob("*.py")
    if not path.is_symlink() and not any(parent.is_symlink() for parent in path.parents if ROOT in parent.parents)
)


def public_definitions(tree, prefix=""):
    """Public classes, functions and methods of a module, with their qualified names."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{prefix}{node.name}.")


def test_every_public_name_has_a_docstring():
    missing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if ast.get_docstring(tree) is None and path.read_text().strip():
            missing.append(str(path.relative_to(ROOT)))
        for name, node in public_definitions(tree):
            overrides = any(
                getattr(decorator, "id", "") in ("overload", "override") for decorator in node.decorator_list
            )
            if ast.get_docstring(node) is None and not overrides and "forward" not in name:
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not missing, "\n".join(missing)


def raises(node):
    """Names of the errors that a function's own statements raise."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
            yield getattr(inner.exc.func, "id", "")


def test_the_public_interface_documents_arguments_results_and_errors():
    """What `docs/api.md` shows: every argument by name, what is returned, and that it can fail."""
    problems = []
    for name in paretopress.__all__:
        thing = getattr(paretopress, name)
        members = (
            [(name, thing)]
            if inspect.isfunction(thing)
            else [
                (f"{name}.{key}", getattr(value, "__func__", value))
                for key, value in vars(thing).items()
                if not key.startswith("_") and inspect.isfunction(getattr(value, "__func__", value))
            ]
            if inspect.isclass(thing)
            else []
        )
        for label, function in members:
            text = inspect.getdoc(function) or ""
            signature = inspect.signature(function)
            arguments = [
                parameter for parameter in signature.parameters.values() if parameter.name not in ("self", "cls")
            ]
            if len(arguments) > 1 and "Args:" not in text:
                problems.append(f"{label}: no Args")
            if "Args:" in text:
                problems += [
                    f"{label}: {parameter.name}"
                    for parameter in arguments
                    if not re.search(rf"\b{parameter.name}:", text)
                ]
            returns = signature.return_annotation not in ("None", None)
            if returns and not re.search(r"^Return|^Returns:", text, re.MULTILINE):
                problems.append(f"{label}: what it returns")
            source = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
            if any(raises(source)) and "Raises" not in text:
                problems.append(f"{label}: what it raises")
    assert not problems, "\n".join(problems)


def test_doctests():
    """Examples in docstrings give what they say."""
    examples = 0
    for path in SOURCES:
        if ">>>" not in path.read_text(encoding="utf-8"):
            continue
        relative = path.relative_to(ROOT).with_suffix("")
        module = ".".join(relative.parts if relative.parts[0] == "paretopress" else ("paretopress", *relative.parts))
        found = doctest.DocTestFinder(exclude_empty=True).find(
            importlib.import_module(module.removesuffix(".__init__"))
        )
        for test in found:
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
            assert not result.failed, f"{test.name}: {result.failed} examples failed"
            examples += result.attempted
    assert examples
