"""The packages import one way only, and the front door opens without the heavy libraries."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ray", "optuna", "onnx", "onnxruntime", "onnxscript", "sklearn", "scipy", "pandas")


def contract_layers():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return settings["contracts"][0]["layers"]


def exists(module):
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def lint(folder, layers):
    """Run import-linter with the layers of a contract; a module that is not written yet is optional."""
    pytest.importorskip("importlinter", reason="import-linter is in the extra 'test'")
    named = [" | ".join(n if exists(n) else f"({n})" for n in layer.split(" | ")) for layer in layers]
    config = folder / "contract.toml"
    config.write_text(
        '[tool.importlinter]\nroot_package = "paretopress"\n[[tool.importlinter.contracts]]\n'
        f'name = "one way"\ntype = "layers"\nlayers = {named}\n'
    )
    call = f"lint_imports({str(config)!r}, no_cache=True)"
    code = f"import sys; from importlinter.cli import lint_imports; sys.exit({call})"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_packages_import_one_way(tmp_path):
    result = lint(tmp_path, contract_layers())
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kept, 0 broken" in result.stdout


def test_a_wrong_way_would_be_noticed(tmp_path):
    result = lint(tmp_path, contract_layers()[::-1])
    assert result.returncode == 1
    assert "0 kept, 1 broken" in result.stdout


def test_contract_covers_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    named = {name.strip() for layer in contract_layers() for name in layer.split("|")}
    assert {name for name in settings["setuptools"]["packages"] if name != "paretopress"} <= named


def test_import_is_light():
    code = f"import sys, paretopress; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module",
    ["choices", "policy", "documents", "kernels", "errors", "graph", "capabilities", "layers", "coupling",
               "fusion", "structure", "arithmetic", "plan", "cost_view", "space", "recipe",
               "unit_mapping", "policy_transfer"],
)  # fmt: skip
def test_spaces_need_torch_only_to_capture(module):
    code = (
        f"import sys, paretopress.spaces.{module}; print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"


def test_imports_are_absolute():
    for folder in ("spaces", "hardware_profiles", "compressors", "evaluators", "search", "paretopress"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(), str(path))):
                assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{path}:{node.lineno}"
