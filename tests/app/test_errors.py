"""Every mistake on the command line is one line on stderr with its exit code, and no traceback."""

import errno
import os
import signal

import click
import pytest

from paretopress.cli.failures import describe
from paretopress.factories import load_data, load_model
from paretopress.progress import Terminated
from paretopress.spaces.errors import ConfigError, DiskError, InfeasibleError, InterruptedSearch, StorageError

FACTORIES = ("--model", "small:model", "--data", "small:data")


def assert_one_line(code, out, err, expected, text):
    assert code == expected
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("frnt",), "unknown command 'frnt'; did you mean 'front'?"),
        (("front",), "Missing argument 'RUN'. (see 'paretopress front --help')"),
        (("front", "nowhere"), "no run directory nowhere"),
        (("front", ".", "--formt", "csv"), "No such option"),
        (("front", ".", "--format", "xml"), "'xml' is not one of 'table', 'csv', 'json', 'md'"),
        (("front", "."), "holds no front.json"),
        (("export", "nowhere", "-o", "out"), "no run directory nowhere"),
        (("export", "nowhere"), "Missing option '-o'"),
        (("search", "--data", "small:data"), "Missing option '--model'"),
        (("search", "--trials", "0", *FACTORIES), "0 is not in the range x>=1"),
        (("demo", "--trials", "ten"), "'ten' is not a valid integer range"),
        (("verify", "nowhere", *FACTORIES), "nowhere: not a folder"),
        (("device", "shw"), "unknown device command 'shw'; did you mean 'show'?"),
        (("device", "show", "cortex-a77"), "unknown device 'cortex-a77'; did you mean 'cortex-a76-tflite'?"),
        (("device", "show", "missing.yaml"), "missing.yaml: No such file"),
        (("device", "measure", "--seconds", "0"), "0.0 is not in the range"),
        (("device", "measure", "-o", "no/such/file.yaml"), "the folder no/such does not exist"),
    ],
)
def test_usage(cli, arguments, text):
    assert_one_line(*cli(*arguments), 2, text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--max", "latency"), "--max 'latency': write NAME=BUDGET"),
        (("--max", "latncy=5ms"), "unknown objective 'latncy'; did you mean 'latency'?"),
        (("--max", "latency=5"), "the unit is missing"),
        (("--max", "latency@phone=5ms"), "unknown target 'phone'"),
        (("--max-drop", "1"), "the unit is missing"),
        (("--time", "5"), "search.time: got '5' (allowed: a duration"),
        (("--sampler", "nsga"), "search.sampler: unknown value 'nsga'; did you mean 'nsga"),
        (
            ("--set", "search.trails=5"),
            "--set search.trails=5: search.trails: unknown key; did you mean 'trials'?",
        ),
        (("--set", "search.trials"), "write key=value"),
        (("--set", "search.trials=many"), "search.trials: expected a whole number, got 'many'"),
        (("missing.yaml",), "missing.yaml: No such file"),
        (("--model", "small"), "--model 'small': name a factory as package.module:function"),
        (("--model", "smal:model"), "module 'smal' not found; did you mean 'small'?"),
        (("--model", "small:modell"), "unknown function 'modell'; did you mean 'model'?"),
        (("--data", "small:model"), "must return a paretopress.Data, got Small"),
    ],
)
def test_search(cli, arguments, text):
    given = list(arguments)
    for option, value in (FACTORIES[:2], FACTORIES[2:]):
        given += [] if option in given else [option, value]
    assert_one_line(
        *cli("search", *given, "--trials", "1") if "--time" not in given else cli("search", *given), 2, text
    )


FAULTY = """
import paretopress
number = 3
class Holder:
    @staticmethod
    def make():
        return 3
def raises():
    raise RuntimeError("weights are\\nmissing")
def refuses():
    from paretopress.spaces.errors import DataError
    raise DataError("row 3 is empty")
def cls():
    from torch import nn
    return nn.Linear
def wants(argument):
    return argument
def leaves():
    raise SystemExit(7)
"""


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "broken.py").write_text("def model(:\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "needy.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("faulty.model", "name a factory as package.module:function"),
        ("faulty:", "name a factory as"),
        (":model", "name a factory as"),
        ("../faulty:model", "name a factory as"),
        ("faulti:raises", "module 'faulti' not found; did you mean 'faulty'?"),
        ("faulty.inner:x", "module 'faulty.inner' not found"),
        ("faulty:raise", "unknown function 'raise'; did you mean 'raises'? "),
        ("faulty:Holder.mak", "did you mean 'make'?"),
        ("faulty:number", "number is not callable, it is int"),
        ("faulty:raises", r"the factory raised RuntimeError: weights are missing at .*faulty.py:9"),
        ("faulty:wants", "the factory raised TypeError"),
        ("faulty:leaves", r"the factory raised SystemExit: 7 at .*faulty.py:\d+"),
        ("leaving:model", r"importing leaving failed: SystemExit: 3 at .*leaving.py:1"),
        ("faulty:Holder.make", "must return a torch.nn.Module, got int"),
        ("faulty:cls", "returned the class Linear, not an instance"),
        ("broken:model", r"SyntaxError: .* at .*broken.py:1"),
        (
            "needy:model",
            r"importing needy failed: ModuleNotFoundError: .*a_package_that_is_not_there.* at .*needy.py:1",
        ),
    ],
)
def test_model_factories(faulty, text, problem):
    import re

    with pytest.raises(ConfigError) as raised:
        load_model(text)
    assert str(raised.value).startswith("--model ")
    assert re.search(problem, str(raised.value)) or problem in str(raised.value)
    assert "\n" not in str(raised.value)


def test_data_factories(faulty):
    with pytest.raises(ConfigError, match=r"--data .*must return a paretopress.Data, got int"):
        load_data("faulty:Holder.make")
    with pytest.raises(ValueError, match=r"^row 3 is empty$"):
        load_data("faulty:refuses")


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InfeasibleError("best is 3 ms"), 3, "best is 3 ms"),
        (StorageError("locked"), 75, "locked"),
        (DiskError("cannot write x: the disk is full"), 74, "cannot write x: the disk is full"),
        (InterruptedSearch("stopped", 143), 143, "stopped"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (click.Abort(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 74, "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 74, "the disk is full"),
        (caused(ValueError("odd"), OSError(errno.EDQUOT, "quota")), 74, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 74, "/root/x: Permission denied"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "unexpected ZeroDivisionError: division by zero (a defect",
        ),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_exit_codes(error, code, text):
    described, exit_code = describe(error)
    assert exit_code == code
    assert described.startswith(text)


def test_an_unexpected_error_is_one_line_and_debug_adds_the_traceback(cli, run, monkeypatch):
    monkeypatch.setattr("paretopress.tables.front_text", lambda *_, **__: 1 / 0)
    code, out, err = cli("front", run)
    assert_one_line(code, out, err, 1, "unexpected ZeroDivisionError")
    assert "--debug" in err
    code, _, err = cli("front", run, "--debug")
    assert code == 1
    assert "Traceback" in err
    assert "test_errors.py" in err


def test_a_reader_that_leaves_is_not_an_error(process, run):
    read, write = os.pipe()
    os.close(read)
    ended = process("front", run, "--json", capture_output=False, stdout=write, stderr=-1)
    os.close(write)
    assert ended.returncode == 128 + signal.SIGPIPE
    assert ended.stderr == ""
