import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))   # tests share the parsers

FAULTY = """
import torch
from torch import nn

import paretopress
import tiny


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        if y.sum() > 0:   # which way depends on the data
            return y
        return -y


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))


def branching():
    return Branching().eval()


def other():
    return Other().eval()


def _data(calibration=None, search=None, holdout=None):
    whole = tiny.data()
    return paretopress.Data(
        whole.calibration if calibration is None else calibration,
        whole.search if search is None else search,
        whole.holdout if holdout is None else holdout,
    )


def empty():
    return _data(calibration=torch.zeros(0, 1, 8, 8))


def nan():
    inputs = tiny.data().calibration.clone()
    inputs[5, 0, 2, 2] = float("nan")
    return _data(calibration=inputs)


def wrong_shape():
    return _data(calibration=torch.randn(32, 3, 8, 8))


def other_model_s_shape():
    inputs = torch.randn(48, 2, 8, 8)
    targets = torch.zeros(48, dtype=torch.long)
    return paretopress.Data(inputs, (inputs, targets), (inputs + 1, targets))


def overlapping():
    inputs, targets = tiny.data().search
    others, more = tiny.data().holdout
    return _data(holdout=(torch.cat([others, inputs[7:9]]), torch.cat([more, targets[7:9]])))


def nan_metric():
    whole = tiny.data()
    return paretopress.Data(whole.calibration, whole.search, whole.holdout, metric=lambda *_: float("nan"))
"""

DOCUMENTS = {
    "unknown_key.yaml": "targets: [x86-zen4-vnni-onnxruntime]\nsearch: {trails: 5}\n",
    "wrong_type.yaml": "targets: [x86-zen4-vnni-onnxruntime]\nsearch: {trials: many}\n",
    "unknown_section.yaml": "targetz: [x86-zen4-vnni-onnxruntime]\n",
    "tagged.yaml": "targets: !!python/object/apply:os.system [ls]\n",
    "code.yaml": "model: tiny:model\n",
}


@pytest.fixture(scope="session")
def broken_factories(tiny):
    """The tiny project with factories and settings that are wrong in one way each."""
    (tiny.folder / "broken_factories.py").write_text(FAULTY)
    for name, text in DOCUMENTS.items():
        (tiny.folder / name).write_text(text)
    return tiny


@pytest.fixture
def command(broken_factories, monkeypatch, capfd):
    """Run the command line in this process, in the project's folder; returns (exit code, stdout, stderr)."""
    from paretopress.cli import main

    monkeypatch.chdir(broken_factories.folder)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture(scope="session")
def assert_refused():
    """One line that says `error: ...`, the right exit code, no traceback, nothing on stdout."""

    def check(result, code, *texts):
        found, out, err = result
        lines = err.splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
        assert "Traceback" not in err
        assert out == ""
        for text in texts:
            assert text in lines[-1]
        assert found == code, err

    return check
