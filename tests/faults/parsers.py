"""Every parser of files from outside, one function each: content in, nothing or one of the project's errors out.

`test_fuzz.py` and the scripts of `benchmarks/faults` share them.
"""

import functools
import json
import math
import random
import shutil
import string
from copy import deepcopy
from pathlib import Path

from paretopress.spaces.errors import ParetopressError


class Refused(Exception):  # noqa: N818
    """The parser refused, as it should: one line, of the project's own type."""


def guarded(parse):
    """Let only named one-line errors pass, as `Refused`."""

    def run(content, folder):
        try:
            parse(content, folder)
        except ParetopressError as error:
            lines = str(error).splitlines()
            assert len(lines) == 1, lines
            assert len(lines[0]) < 20_000
            raise Refused(lines[0]) from None

    run.__name__ = parse.__name__
    return run


def written(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@guarded
def settings(content, folder):
    from paretopress.settings import read_settings, search_settings

    path = written(content, folder / "settings.yaml")
    search_settings(read_settings(path), str(path)).to_plain()


@guarded
def override(content, folder):
    from paretopress.settings import override, search_settings

    search_settings(override({}, content.decode(errors="surrogateescape")))


@guarded
def policy(content, folder):
    from paretopress.spaces.policy import Policy

    read = Policy.load(written(content, folder / "policy.json"))
    assert Policy.from_plain(read.to_plain()) == read
    assert read.hash


@guarded
def policy_yaml(content, folder):
    from paretopress.spaces.policy import Policy

    Policy.load(written(content, folder / "policy.yaml"))


@guarded
def profile(content, folder):
    from paretopress.hardware_profiles.catalogue import read_profile

    read = read_profile(written(content, folder / "profile.json"))
    assert read.fingerprint
    read.capabilities()


@guarded
def manifest(content, folder):
    from paretopress.compressors.artefact_folder import check_folder

    written(content, folder / "manifest.json")
    check_folder(folder)


@guarded
def delta(content, folder):
    from paretopress.compressors.compressed_model import _read_delta

    read = _read_delta(content, "delta.json")
    assert read.to_plain()


@guarded
def tensors(content, folder):
    from paretopress.compressors.artefact_folder import read_tensors

    read_tensors(content, "model.safetensors")


@guarded
def run(content, folder):
    """The first line is `run.yaml` as JSON, the rest `trials.jsonl`."""
    from paretopress.search.ledger import read_run

    first, _, rest = content.partition(b"\n")
    written(first, folder / "run.yaml")
    written(rest, folder / "trials.jsonl")
    _, records = read_run(folder)
    for record in records:
        assert all(math.isfinite(value) for value in record.values.values())


@guarded
def front(content, folder):
    from paretopress.front_formats import csv_text, front_rows
    from paretopress.result import Result
    from paretopress.tables import front_text

    written(content, folder / "front.json")
    result = Result.load(folder)
    front_text(result.front, width=100, colour=False)
    csv_text(front_rows(result.front))


@guarded
def onnx_file(content, folder):
    from paretopress.hardware_profiles.onnx_view import onnx_kernels

    onnx_kernels(written(content, folder / "network.onnx"))


@functools.cache
def known_profile():
    """A profile to compare tables with, read once."""
    from paretopress.hardware_profiles.catalogue import load_profile

    return load_profile("stm32-h7a3")


@guarded
def measured_table(content, folder):
    from paretopress.hardware_profiles.measured import read_measured

    read_measured(written(content, folder / "measured.csv"), known_profile())


@guarded
def samples(content, folder):
    from paretopress.hardware_profiles.samples import read_samples

    read_samples(written(content, folder / "samples.csv"))


TARGETS = {
    function.__name__: function
    for function in (settings, override, policy, policy_yaml, profile, manifest, delta, tensors, run, front,
                     onnx_file, measured_table, samples)
}
# Mutated as trees; the others only as bytes.
STRUCTURED = ("settings", "policy", "policy_yaml", "profile", "manifest", "delta", "run", "front")

STRANGE = (
    None, True, False, -1, 0, 1, 2, 3, 255, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, math.nan,
    math.inf, -math.inf, "", "0", "x", "nan", "-5%", "1e999ms", "../../etc/passwd", "/etc/passwd", "a\x00b", "a\nb",
    "\x1b[2J", "\ud800", "é" * 50, "x" * 3000, "__class__", "forward", "os:system", "!!python/name:os.system",
    [], [[]], {}, {"": None}, {"__proto__": {}}, [0] * 300, ["x", 1, None],
)
PIECES = (b"&a ", b"*a", b"!!python/object:os.x ", b"[" * 40, b"\x00", b"{{", b"1e999", b": ", b"- ", b"? ", b"NaN",
          b"\n...\n---\n", b"'", b'"', b"%TAG ! x\n")


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def mutated(plain, random_source):
    """Return a copy of a document with one to three places changed."""
    copy = deepcopy(plain)
    for _ in range(random_source.randint(1, 3)):
        copy = _mutated_once(copy, random_source)
    return copy


def _mutated_once(plain, source):
    places = list(_places(plain))
    if not places:
        return deepcopy(source.choice(STRANGE))
    parent, key = source.choice(places)
    kind = source.randrange(7)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        name = "".join(source.choices(string.printable, k=source.randint(0, 6)))
        parent[source.choice([name, f"{key}x", "schema", "units", "__class__"])] = deepcopy(source.choice(STRANGE))
    elif kind == 2:
        parent[key] = deep(source.randint(1, 45))
    elif kind == 3:
        other, name = source.choice(places)
        if (isinstance(other, list) and name < len(other)) or (isinstance(other, dict) and name in other):
            parent[key] = deepcopy(other[name])
    elif kind == 4 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        factor = source.choice([-1, 0, 10, 1e9, 1e-9, 1.5])
        parent[key] = parent[key] * (int(factor) if isinstance(parent[key], int) else factor)
    else:
        parent[key] = deepcopy(source.choice(STRANGE))
    return plain


def _places(plain):
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in items:
        yield plain, key
        yield from _places(value)


def damaged(content, source):
    """Return bytes with a few flipped, cut, doubled or put in."""
    result = bytearray(content)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(result) + 1)
        match source.randrange(5):
            case 0:
                del result[at:]
            case 1:
                result[at:at] = bytes(source.choices(range(256), k=source.randint(1, 8)))
            case 2 if at < len(result):
                result[at] ^= 1 << source.randrange(8)
            case 3:
                result[at:at] = result[at : at + source.randint(1, 40)]
            case _:
                result[at:at] = source.choice(PIECES)
    return bytes(result)


def encode(target, plain):
    """Return the bytes of a document as a target reads them."""
    if target == "run":
        return b"\n".join(json.dumps(part).encode() for part in (plain if isinstance(plain, list) else [plain])) + b"\n"
    if target == "manifest":
        return (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode()
    return json.dumps(plain).encode()


def seeds(run_path, folder):
    """Return valid content of every target, from a finished run; structured ones as documents too."""
    artefact = sorted(path for path in (run_path / "models").iterdir() if path.is_dir())[-1]
    trials = [json.loads(line) for line in (run_path / "trials.jsonl").read_text().splitlines()[:4]]
    from paretopress.hardware_profiles.catalogue import shipped_document
    from paretopress.spaces.documents import read_document

    shutil.copytree(artefact, folder / "artefact", dirs_exist_ok=True)
    documents = {
        "settings": {
            "version": 1, "targets": ["local", "stm32-h7a3"], "budgets": {"latency": "<=5ms", "size": "-50%"},
            "max_drop": "1pp",
            "search": {
                "trials": 40, "seed": 7, "sampler": "tpe", "workers": 2, "time": "1h30m", "executor": "ray",
                "worker_resources": "gpu=0.5", "ray": "auto",
            },
            "space": {
                "keep": [0.25, 1.0], "bits": [8, 4], "pin": {"fc/weights": {"weights": 8, "activations": 8}},
                "sparsity": [0.5, "2:4"], "exclude": ["a*"],
            },
            "distillation": {"steps": 90, "augmentation": {"mirror": 0.5}}, "timing": {"runs": 5},
        },
        "policy": POLICY, "policy_yaml": POLICY,
        "profile": shipped_document("stm32-h7a3"),
        "manifest": json.loads((artefact / "manifest.json").read_text()),
        "delta": json.loads((artefact / "delta.json").read_text()),
        "run": [read_document(run_path / "run.yaml"), *trials],
        "front": json.loads((run_path / "front.json").read_text()),
    }
    content = {name: encode(name, plain) for name, plain in documents.items()}
    content |= {
        "override": b"space.bits=[8, 4]",
        "tensors": (artefact / "model.safetensors").read_bytes(),
        "onnx_file": (run_path / "models" / "0" / "model.onnx").read_bytes(),
        "measured_table": b"op,cin,cout,measured_ms\nconv,8,16,0.25\n",
        "samples": b"format,runtime\n1,onnxruntime\n",
    }
    return documents, content


POLICY = {
    "schema": "paretopress-policy/1", "model": "", "space": "",
    "units": {
        "a/channels": {"keep": 0.5}, "b/rank": {"factorised": "tucker", "rank": 4, "inner": 3},
        "c/weights": {"weights": 8, "activations": 8, "scheme": "symmetric"}, "d/weights": {"half": "fp16"},
        "d/sparsity": {"sparse": 0.5, "pattern": "2:4"}, "e/weights": {"weights": 4, "activations": 32, "group": 32},
    },
}


def fuzzed(target, documents, content, number, folder: Path):
    """Run one example, a pure function of its number; returns whether the parser accepted it."""
    source = random.Random(f"{target}/{number}")
    if target in STRUCTURED and source.random() < 0.7:
        data = encode(target, mutated(documents[target], source))
    else:
        data = damaged(content[target], source)
    try:
        TARGETS[target](data, folder)
    except Refused:
        return False
    return True
