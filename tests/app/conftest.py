"""A finished run, built by hand around real artefacts of a small network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paretopress.spaces.policy import Policy

FACTORIES = """
import torch
from torch import nn
import paretopress


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(x.mean((2, 3)))


def model():
    torch.manual_seed(0)
    return Small().eval()


def images(count, seed):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def data():
    labelled = [(x, model()(x).argmax(1)) for x in (images(32, 1), images(32, 2))]
    return paretopress.Data(images(32, 3), *labelled)
"""

HALF = {"first/channels": {"keep": 0.5}, "second/channels": {"keep": 0.5}}
INT8 = {
    f"{layer}/weights": {"weights": 8, "activations": 8, "scheme": "symmetric"}
    for layer in ("first", "second", "last")
}
FOUR = {unit: {**choice, "weights": 4} for unit, choice in INT8.items()}
# id: (units, accuracy, latency_ms, feasible, why_not)
POINTS = {
    0: ({}, 0.989, 0.400, True, None),
    1: ({**HALF, **INT8}, 0.986, 0.100, True, None),
    2: ({**HALF, **FOUR}, 0.983, 0.090, True, None),
    3: (
        {**INT8, "first/channels": {"keep": 0.25}},
        0.960,
        0.080,
        False,
        "accuracy drop 2.9 pp is above 1 pp",
    ),
    4: (FOUR, 0.970, 0.210, True, "point 1 is at least as good in everything"),
}
COMPARISONS = {100: (INT8, 0.985, 0.200, True, None), 101: (HALF, 0.955, 0.250, False, None)}
NAMES = {0: "dense", 100: "uniform int8", 101: "uniform half width"}
KNEE = 1


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A folder with the module `small` whose factories are `small:model` and `small:data`."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "small.py").write_text(FACTORIES)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def run(project, tmp_path_factory):
    """A run directory: real artefacts and sizes; accuracies and times made up."""
    import small

    folder = tmp_path_factory.mktemp("runs") / "small-0"
    sizes = build_artefacts(small.model(), small.images(32, 3), folder / "models")
    points = [point(number, *POINTS[number], sizes[number]) for number in POINTS]
    document = {
        "run": str(folder),
        "baseline": points[0],
        "points": points,
        "seed": 0,
        "target": "local",
        "host": {"cpu": "test machine", "runtime": "onnxruntime 1.31.1", "threads": 1, "batch": 1},
        "versions": {"paretopress": "0.1.0"},
        "budgets": [{"objective": "accuracy", "limit": "1pp"}],
        "reachable": None,
        "latency_error": {"spearman": 0.97, "median_abs_pct": 6.4},
        "hypervolume": 0.8,
        "comparisons": [point(number, *COMPARISONS[number], sizes[number]) for number in COMPARISONS],
    }
    (folder / "front.json").write_text(json.dumps(document))
    return folder


def point(number, units, accuracy, latency, feasible, why_not, sizes):
    """One POINT of the contract."""
    policy = Policy.from_plain({"units": units})
    return {
        "id": number,
        "name": NAMES.get(number),
        "policy_hash": policy.hash,
        "policy": units,
        "feasible": feasible,
        "knee": number == KNEE,
        "why_not": why_not,
        "predicted": {
            "accuracy": accuracy + 0.001,
            "latency@local": latency * 1.05,
            "size": sizes["size_bytes"],
        },
        "measured": {
            "accuracy": accuracy,
            "accuracy_baseline": 0.989,
            "accuracy_drop": 0.989 - accuracy,
            "accuracy_drop_interval": [0.989 - accuracy - 0.004, 0.989 - accuracy + 0.004],
            "latency_ms": latency,
            "latency_ms_iqr": [latency * 0.98, latency * 1.03],
            "latency_ms_baseline": 0.4,
            "speedup": 0.4 / latency,
            "macs": 30_000 // (2 if "first/channels" in units else 1),
            "peak_memory_bytes": 4096,
            "host": "host",
            "runs": 200,
            **sizes,
        },
    }


def build_artefacts(model, images, folder):
    """Compress, save and export every policy; returns the sizes by id."""
    from paretopress.compressors.calibration import calibrate
    from paretopress.compressors.entries import Entries
    from paretopress.compressors.export_onnx import export_onnx
    from paretopress.compressors.network import dense_network
    from paretopress.compressors.program import build_program
    from paretopress.compressors.realise import realise
    from paretopress.compressors.tuning import tune
    from paretopress.spaces.plan import plan

    program = build_program(model, (images[:2],))
    calibration = calibrate(program, [(images,)])
    entries = Entries(program, calibration)
    sizes = {}
    for number, (units, *_) in {**POINTS, **COMPARISONS}.items():
        planned = plan(program.structure, Policy.from_plain({"units": units}))
        network = (
            tune(program, entries.stitch(planned), calibration)[0]
            if units
            else dense_network(program, planned)
        )
        target = folder / str(number)
        compressed = realise(model, program, network)
        stored = compressed.save(
            target, extra={"model.onnx": lambda path, network=network: export_onnx(program, network, path)}
        )
        sizes[number] = {**stored, "onnx_bytes": (target / "model.onnx").stat().st_size}
    return sizes


@pytest.fixture
def cli(project, monkeypatch, capfd):
    """Run the command line in the project's folder; returns (exit code, stdout, stderr)."""
    from paretopress.cli import main

    monkeypatch.chdir(project)
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run_cli(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        check_output([str(argument) for argument in arguments], ended.value.code, out, err)
        return ended.value.code, out, err

    return run_cli


def check_output(arguments, code, out, err):
    """What holds for every command line: no control characters, JSON by its schema, and a next command."""
    assert not [character for character in out + err if not character.isprintable() and character not in "\n\t"]
    verb = [word for word in arguments[:2] if not word.startswith("-")]
    if code not in (0, 4) or not verb or "--help" in arguments:
        return
    if "--json" in arguments:
        validate_json(schema_name(verb, arguments), out)
    elif not {"csv", "json", "md"} & set(arguments) and verb[:1] != ["schema"]:
        assert "next: " in err, f"{' '.join(arguments)} suggests no next command"


def schema_name(verb, arguments):
    if verb[0] == "search" and "--dry-run" in arguments:
        return "search-dry-run"
    return "-".join(verb) if verb[0] in ("device", "policy") else verb[0]


def validate_json(name, text):
    import jsonschema

    from paretopress.json_schemas import schema_of

    schema = schema_of(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(text), schema)


@pytest.fixture
def process(project):
    """Run the command line in its own process; returns the finished process."""

    def run_process(*arguments, **options):
        environment = {**os.environ, "PYTHONPATH": str(project), **options.pop("env", {})}
        command = [sys.executable, "-m", "paretopress.cli", *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=Path(project),
            env=environment,
            text=True,
            timeout=120,
            check=False,
            **{"capture_output": True, **options},
        )

    return run_process
