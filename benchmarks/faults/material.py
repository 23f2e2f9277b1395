"""What the scripts of this folder damage: a small finished run, made anew, and the parsers that the tests use."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def module(path: Path, name: str) -> ModuleType:
    """Import a file of the tests."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def parsers() -> ModuleType:
    """The module with all parsers."""
    return module(ROOT / "tests" / "faults" / "parsers.py", "parsers")


def small_run(folder: Path) -> Path:
    """Search the tests' tiny project in a folder and return the run directory; one that is there is used again."""
    run = folder / "run"
    if (run / "front.json").exists():
        return run
    import torch

    from paretopress.search.session import run_search
    from paretopress.settings import read_settings, search_settings

    torch.set_num_threads(1)
    project = module(ROOT / "tests" / "conftest.py", "project")
    (folder / "tiny.py").write_text(project.TINY)
    (folder / "settings.yaml").write_text(project.SETTINGS)
    sys.path.insert(0, str(folder))
    tiny = importlib.import_module("tiny")
    settings = search_settings(read_settings(folder / "settings.yaml"), name="tiny")
    return run_search(tiny.model(), tiny.data(), settings, run, model_name="tiny:model", data_name="tiny:data")
