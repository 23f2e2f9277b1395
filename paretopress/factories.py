"""Model and data factories named by the user as `pkg.mod:function`, on the command line or in Python only."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from paretopress.spaces.errors import ConfigError, ParetopressError, nearest, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from paretopress.evaluators.data import Data

EXAMPLE = "package.module:function"


def load_model(text: str) -> nn.Module:
    """Call a model factory.

    Raises:
        ConfigError: The factory cannot be imported or called, or returns no `nn.Module`.
    """
    from torch import nn

    model = call_factory(text, "--model")
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ConfigError(f"--model {text}: the factory returned the class {model.__name__}, not an instance")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model {text}: the factory must return a torch.nn.Module, got {_type(model)}")
    return model


def load_data(text: str) -> Data:
    """Call a data factory.

    Raises:
        ConfigError: The factory cannot be imported or called, or returns no `paretopress.Data`.
    """
    from paretopress.evaluators.data import Data

    data = call_factory(text, "--data")
    if not isinstance(data, Data):
        raise ConfigError(f"--data {text}: the factory must return a paretopress.Data, got {_type(data)}")
    return data


def call_factory(text: str, option: str) -> Any:  # noqa: ANN401 - whatever the user's function returns
    """Import and call `text` without arguments.

    Args:
        text: `package.module:function`; a dotted function name reaches into a class.
        option: What the user wrote it after, for messages.

    Raises:
        ConfigError: One line naming what is wrong, with the file and line of an exception in the user's code.
    """
    factory = find_factory(text, option)
    try:
        return factory()
    except ParetopressError:
        raise
    except (Exception, SystemExit) as error:   # a script that parses our command line leaves with SystemExit
        raise ConfigError(f"{option} {text}: the factory raised {_describe(error)}") from error


def find_factory(text: str, option: str) -> Callable[[], Any]:
    """Import the function that `text` names. Raises `ConfigError` as `call_factory` does."""
    module_name, colon, name = text.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"{option} {text!r}: name a factory as {EXAMPLE}")
    found: Any = _import(module_name, f"{option} {text}")
    for part in name.split("."):
        if not hasattr(found, part):
            public = [entry for entry in vars(found) if not entry.startswith("_")]
            where = f"in {module_name}" if isinstance(found, ModuleType) else f"in {found!r}"
            raise ConfigError(f"{option} {text}: {unknown_name('function', part, public)} {where}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{option} {text}: {name} is not callable, it is {_type(found)}")
    return cast("Callable[[], Any]", found)


def _import(name: str, where: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"{where}: importing {name} failed: {_describe(error)}") from error
        close = nearest(name, _modules_here())
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"{where}: module {error.name!r} not found{hint} (looked in {folder} and the installed packages)"
        ) from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: importing {name} failed: {_describe(error)}") from error


def _modules_here() -> list[str]:
    here = Path.cwd()
    paths = [*here.glob("*.py"), *here.glob("*/*.py")]
    return [".".join(path.relative_to(here).with_suffix("").parts) for path in paths[:500]]


def _describe(error: BaseException) -> str:
    """Return `TypeName: message at file:line`, the innermost place outside the import system."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} at {error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def _type(value: object) -> str:
    return type(value).__name__
