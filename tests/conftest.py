"""A project small enough to search in seconds, and one finished run of it that tests share."""

import copy
import hashlib
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:   # before torch is imported: processes side by side have a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run: what passes here passes elsewhere. `--hypothesis-profile=explore` draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")

TINY = """
import torch
from torch import nn

import paretopress


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.second = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.last = nn.Linear(24, 4)

    def features(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.depthwise(x))
        return torch.relu(self.second(x)).mean((2, 3))

    def forward(self, x):
        return self.last(self.features(x))


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, 4, (count,), generator=generator)
    return prototypes[labels] + 0.9 * torch.randn(count, 1, 8, 8, generator=generator), labels


def model():
    torch.manual_seed(0)
    network = Tiny().eval()
    inputs, labels = samples(512, 1)
    with torch.no_grad():   # the last layer is solved for: random features, ridge regression
        features = network.features(inputs).double()
        augmented = torch.cat([features, torch.ones(512, 1)], 1)
        wanted = 8 * nn.functional.one_hot(labels, 4).double() - 2
        solved = torch.linalg.solve(augmented.T @ augmented + 1e-3 * torch.eye(25), augmented.T @ wanted)
        network.last.weight.copy_(solved[:-1].T)
        network.last.bias.copy_(solved[-1])
    return network


def data():
    return paretopress.Data(samples(48, 2)[0], samples(64, 3), samples(200, 4))


def changed_model():
    network = model()
    with torch.no_grad():
        network.last.bias += 0.001
    return network


def changed_data():
    return paretopress.Data(samples(48, 5)[0], samples(64, 3), samples(200, 4))
"""

SETTINGS = """
targets: [x86-zen4-vnni-onnxruntime]
max_drop: 5pp
search: {trials: 14, finalists: 1}
timing: {runs: 5}
"""


def state_of(model):
    """Everything about a model that a search must leave alone."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    modules = {
        name: (type(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    parameters = {
        name: (id(parameter), parameter.requires_grad, parameter.grad, parameter.device, parameter.dtype)
        for name, parameter in model.named_parameters()
    }
    return digest.hexdigest(), modules, parameters


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with the module `tiny` (factories `model` and `data`) and `settings.yaml`."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.py").write_text(TINY)
    (folder / "settings.yaml").write_text(SETTINGS)
    sys.path.insert(0, str(folder))
    yield SimpleNamespace(folder=folder, module=importlib.import_module("tiny"))
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def tiny_settings(tiny):
    """The settings that `paretopress search settings.yaml` of the tiny project has."""
    from paretopress.settings import read_settings, search_settings

    return search_settings(read_settings(tiny.folder / "settings.yaml"), name="settings")


@pytest.fixture(scope="session")
def tiny_run(tiny, tiny_settings, tmp_path_factory):
    """A finished run of the tiny project, and the state of the model before and after it."""
    from paretopress.search.session import run_search

    model = tiny.module.model().train()
    model.first.weight.requires_grad_(False)
    model.norm.register_forward_hook(lambda *_: None)
    before = copy.deepcopy(state_of(model)[:2]), state_of(model)[2]
    path = run_search(
        model, tiny.module.data(), tiny_settings, tmp_path_factory.mktemp("runs") / "tiny",
        model_name="tiny:model", data_name="tiny:data",
    )
    after = state_of(model)[:2], state_of(model)[2]
    return SimpleNamespace(path=path, before=before, after=after)


def interruptible():
    """Undo what shells do to commands in the background: they ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def start(tiny):
    """Start the command line in its own process, in the tiny project's folder."""

    def start_process(*arguments, **options):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        prefix = options.pop("prefix", [])
        options.setdefault("preexec_fn", interruptible)
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "paretopress.cli", *map(str, arguments)],
            cwd=Path(tiny.folder),
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    return start_process


@pytest.fixture(scope="session")
def finish(start):
    """Run the command line in its own process; returns (exit code, stdout, stderr)."""

    def run_process(*arguments, **options):
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    return run_process


@pytest.fixture(scope="session")
def search_tiny():
    """Arguments of a search of the tiny project."""

    def arguments(run, *more, model="tiny:model", data="tiny:data"):
        return ("search", "settings.yaml", "--model", model, "--data", data, "--run", run, *more)

    return arguments
