"""Starting up: what is imported, what is set, and the help of every verb."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "ray",
    "optuna",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "sklearn",
    "numpy",
    "pydantic",
    "matplotlib",
    "tensorboard",
    "mlflow",
    "wandb",
    "pyarrow",
    "transformers",
)
PROBE = "import json, sys; {code}; print(json.dumps(sorted(name for name in {heavy} if name in sys.modules)))"


def python(code, **environment):
    given = {
        name: value
        for name, value in os.environ.items()
        if name
        not in (
            "ORT_DISABLE_TELEMETRY",
            "RAY_USAGE_STATS_ENABLED",
            "NNCF_CI",
            "TORCH_FORCE_WEIGHTS_ONLY_LOAD",
        )
    }
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**given, **environment}, capture_output=True, text=True, check=True
    )
    return ended.stdout


LOAD_ALL = "from paretopress.cli import command as c; [c.get_command(None, n) for n in c.list_commands(None)]"


@pytest.mark.parametrize(
    "code", ["import paretopress", "import paretopress.cli", LOAD_ALL, "from paretopress import Policy"]
)
def test_nothing_heavy_is_imported_at_start_up(code):
    assert json.loads(python(PROBE.format(code=code, heavy=HEAVY))) == []


def test_help_of_the_group_imports_nothing_heavy():
    code = (
        "import io, contextlib, json, sys, paretopress.cli as c\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    c.main(['--help'])\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    assert json.loads(python(code)) == []


def test_telemetry_is_off_before_anything_is_imported_and_a_user_may_say_otherwise():
    code = (
        "import paretopress, os; print(*(os.environ[n] for n in ('ORT_DISABLE_TELEMETRY', "
        "'RAY_USAGE_STATS_ENABLED', 'NNCF_CI', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD')))"
    )
    assert python(code).split() == ["1", "0", "1", "1"]
    assert python(code, RAY_USAGE_STATS_ENABLED="1").split() == ["1", "1", "1", "1"]


def test_public_names_resolve_and_unknown_ones_do_not():
    import paretopress
    from paretopress.evaluators.data import Data
    from paretopress.evaluators.metrics import Metric

    assert paretopress.Data is Data
    assert paretopress.Metric is Metric
    assert {name for name in paretopress.__all__ if getattr(paretopress, name) is None} == set()
    assert set(paretopress.__all__) <= set(dir(paretopress))
    with pytest.raises(AttributeError, match="'comprss'"):
        paretopress.comprss  # noqa: B018


@pytest.mark.parametrize(
    "verb",
    [
        "",
        "demo",
        "inspect",
        "sensitivity",
        "search",
        "front",
        "solve",
        "export",
        "verify",
        "apply",
        "report",
        "dashboard",
        "device",
        "device list",
        "device show",
        "device measure",
        "doctor",
        "init",
        "schema",
        "completion",
    ],
)
def test_help(cli, verb):
    code, out, err = cli(*verb.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: paretopress {verb}".rstrip())
    assert "--help" in out
    if verb not in ("", "device"):
        assert "--json" in out
        assert "--debug" in out


def test_version(cli):
    import paretopress

    assert cli("--version") == (0, f"paretopress {paretopress.__version__}\n", "")
