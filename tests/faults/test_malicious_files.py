"""Hostile files through every loader: refused in one line, no code runs, nothing outside the root is touched.

An audit hook hears of everything that Python opens, connects, starts or finds for a pickle while a loader works.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from parsers import TARGETS, Refused, mutated

from paretopress.compressors.compressed_model import load
from paretopress.spaces.errors import ParetopressError

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "socket.bind",
             "pickle.find_class", "urllib.Request", "shutil.unpack_archive")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "os.truncate",
           "shutil.rmtree", "shutil.move")


class Watch:
    """One hook for the whole session: hooks cannot be taken away."""

    def __init__(self):
        self.root, self.secret, self.found = None, "", []
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        if self.root is None:
            return
        if event in FORBIDDEN:
            self.found.append((event, str(arguments)[:200]))
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, flags = os.fsdecode(arguments[0]), arguments[2] if isinstance(arguments[2], int) else 0
            inside = os.path.abspath(path).startswith(self.root)  # noqa: PTH100 - links must not be followed here
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            foreign = writes and not inside and not path.startswith("/dev/") and "__pycache__" not in path
            if self.secret in path or foreign:
                self.found.append((event, path))
        elif event in CHANGES and not os.path.abspath(os.fsdecode(arguments[0])).startswith(self.root):  # noqa: PTH100
            self.found.append((event, str(arguments)[:200]))


@pytest.fixture(scope="session")
def watch():
    return Watch()


@pytest.fixture
def ground(tmp_path, watch):
    """A root to load from, a secret beside it, and a marker that hostile code would leave."""
    root, secret, marker = tmp_path / "root", tmp_path / "secret.txt", tmp_path / "marker"
    root.mkdir()
    secret.write_text("a password\n")
    ground = SimpleNamespace(root=root, secret=secret, marker=marker)
    yield ground
    assert not marker.exists()
    assert secret.read_text() == "a password\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "secret.txt"]


def watched(watch, ground, function, *arguments):
    """Call a loader; returns its one-line refusal, or None where it read the file."""
    watch.root, watch.secret, watch.found = str(ground.root), ground.secret.name, []
    line = None
    try:
        function(*arguments)
    except (Refused, ParetopressError) as error:
        line = str(error)
    finally:
        found, watch.root = watch.found, None
    assert found == []
    assert line is None or line.isprintable()   # one line, and no terminal's commands
    return line


class Payload:
    """What a pickle calls when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def documents(ground):
    """Hostile texts, read as settings, policies and profiles, in YAML and in JSON."""
    touch = f"touch {ground.marker}"
    pickled = pickle.dumps(Payload(ground.marker))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("../../marker", b"\0" * 1_000_000)
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    texts = {
        "alias bomb": bomb,
        "anchor without alias": "targets: &x [local]\n",
        "merge key": "base: &b {targets: [local]}\n<<: *b\n",
        "python call": f"targets: !!python/object/apply:os.system ['{touch}']\n",
        "python new": f"!!python/object/new:subprocess.Popen [[['/bin/sh', '-c', '{touch}']]]\n",
        "python name": "targets: !!python/name:os.system\n",
        "python module": "targets: !!python/module:os\n",
        "python tuple": "targets: !!python/tuple [local]\n",
        "tag directive": f"%TAG ! tag:yaml.org,2002:python/\n---\ntargets: !object/apply:os.system ['{touch}']\n",
        "verbatim tag": f"targets: !<tag:yaml.org,2002:python/object/apply:os.system> ['{touch}']\n",
        "binary tag": "targets: !!binary gASVAAAA\n",
        "set tag": "targets: !!set {local}\n",
        "include": f"targets: !include {ground.secret}\n",
        "environment": "targets: !ENV ${HOME}\n",
        "interpolation": "targets: ['${oc.env:HOME}']\nmax_drop: '${oc.env:HOME}'\n",
        "target key": f"_target_: os.system\n_args_: ['{touch}']\n",
        "factory": "model: os:system\n",
        "class attribute": "search: {__class__: {__init__: x}}\n",
        "deep flow": "a: " + "[" * 5000 + "]" * 5000,
        "deep blocks": "\n".join(" " * level + f"k{level}:" for level in range(900)),
        "deep mappings": "{a: " * 5000 + "1" + "}" * 5000,
        "open brackets": "[" * 200_000,
        "open braces": "{" * 200_000,
        "question marks": "? " * 20_000,
        "dashes": "- " * 20_000,
        "duplicate key": "targets: [local]\ntargets: [local]\n",
        "duplicate escaped key": 'targets: [local]\n"t\\x61rgets": [local]\n',
        "two documents": "targets: [local]\n---\ntargets: [local]\n",
        "not finite": "space: {keep: [.nan, .inf]}\n",
        "beyond floats": "space: {keep: [1e999]}\n",
        "huge integer": "search: {trials: " + "9" * 4000 + "}\n",
        "huger integer": "search: {trials: " + "9" * 400_000 + "}\n",
        "octal, sexagesimal": "search: {trials: 0o17, seed: 1:30, workers: 0x1f}\n",
        "list as key": "? [a, b]\n: 1\n",
        "mapping as key": "? {a: b}\n: 1\n",
        "null as key": "~: 1\nnull: 2\n",
        "NUL": "targets: [lo\0cal]\n",
        "terminal": "targets: [\"\\e[2J\\e]0;title\\a\"]\n\x1b[31m: 1\n",
        "line breaks in keys": '"a\\nerror: all is well": 1\n',
        "traversal as a device": "targets: [../../../../../../etc/passwd]\n",
        "secret as a device": f"targets: ['{ground.secret}']\n",
        "long key": "x" * 900_000 + ": 1\n",
        "too large": "# " + "x" * (1 << 20) + "\n",
        "tabs": "search:\n\ttrials: 1\n",
        "JSON not a number": '{"space": {"keep": [NaN, -Infinity]}}',
        "JSON twice": '{"targets": ["local"], "targets": ["local"]}',
        "JSON deep": '{"a":' * 5000 + "1" + "}" * 5000,
        "JSON deeper": "[" * 500_000,
        "JSON surrogate": '{"targets": ["\\ud800"], "\\udfff": 1}',
        "JSON and more": '{"targets": ["local"]} {"x": 1}',
        "JSON comment": '{"targets": ["local"] /* x */}',
        "JSON prototype": '{"__proto__": {"x": 1}, "constructor": {"prototype": 1}}',
    }
    contents = {name: text.encode() for name, text in texts.items()}
    return contents | {
        "UTF-16": "targets: [local]\n".encode("utf-16"),
        "Latin-1": "targets: [caf\xe9]\n".encode("latin-1"),
        "overlong UTF-8": b"targets: [\xc0\xaf\xc0\xae]\n",
        "pickle": pickled,
        "pickle of protocol 0": pickle.dumps(Payload(ground.marker), protocol=0),
        "zip bomb": archive.getvalue(),
        "gzip bomb": gzip.compress(b"\0" * 10_000_000),
        "program": b"\x7fELF" + os.urandom(100),
        "shell script": f"#!/bin/sh\n{touch}\n".encode(),
    }


DOCUMENTS = sorted(documents(SimpleNamespace(marker="marker", secret="secret.txt")))
# Text in them stays text: names of devices are looked up later, and a policy's model is a fingerprint to compare.
HARMLESS = {
    "traversal as a device": ["settings"], "secret as a device": ["settings"], "anchor without alias": ["settings"],
    "factory": ["policy_yaml"],
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(watch, ground, name):
    content = documents(ground)[name]
    read = []
    for target in ("settings", "policy", "policy_yaml", "profile", "manifest"):
        folder = ground.root / target
        folder.mkdir()
        if watched(watch, ground, TARGETS[target], content, folder) is None:
            read.append(target)
    both = TARGETS["run"], TARGETS["front"]
    for target in both:
        folder = ground.root / target.__name__
        folder.mkdir()
        assert watched(watch, ground, target, content, folder) is not None
    assert read == HARMLESS.get(name, [])


def special(kind, ground):
    """Things that are no regular files, where a document is expected."""
    path = ground.root / "document.yaml"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link to an endless device":
            path.symlink_to("/dev/zero")
        case "link to a terminal":
            path.symlink_to("/dev/tty")
        case "link to itself":
            path.symlink_to(path)
        case "broken link":
            path.symlink_to(ground.root / "nowhere")
        case "socket":
            import socket

            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case "name with a NUL":
            return Path(f"{path}\0.yaml")
        case "name with a line break":
            return ground.root / "a\nerror: fine.yaml"
        case "very long name":
            return ground.root / ("x" * 5000)
    return path


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to an endless device", "link to a terminal", "link to itself",
                                  "broken link", "socket", "name with a NUL", "name with a line break",
                                  "very long name"])
def test_what_is_no_file(watch, ground, kind):
    from paretopress.hardware_profiles.catalogue import read_profile
    from paretopress.settings import read_settings
    from paretopress.spaces.policy import Policy

    path = special(kind, ground)
    for loader in (read_settings, Policy.load, read_profile):
        assert watched(watch, ground, loader, path) is not None


def tensor_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"first.weight": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def tensor_files(ground):
    """Hostile safetensors files; each gets a manifest that fits, as an attacker would make it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("archive/data.pkl", pickle.dumps(Payload(ground.marker)))
        stream.writestr("archive/version", "3\n")
    nested = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    return {
        "pickle": pickle.dumps(Payload(ground.marker)),
        "checkpoint with a pickle": archive.getvalue(),
        "empty": b"",
        "seven bytes": b"\0" * 7,
        "header of 2^64 bytes": b"\xff" * 8 + b"{}",
        "header of 100 MB": struct.pack("<Q", 100_000_000) + b"{}",
        "header beyond the end": struct.pack("<Q", 9) + b"{}",
        "header that is no JSON": tensor_file(b"\0\1\2"),
        "header that nests": tensor_file(nested),
        "tensor beyond the end": tensor_file(one(offsets=(0, 1 << 40)), b"\0" * 8),
        "offsets backwards": tensor_file(one(offsets=(8, 0)), b"\0" * 8),
        "overlapping tensors": tensor_file({"a": one()["first.weight"], "b": one()["first.weight"]}, b"\0" * 8),
        "shape that overflows": tensor_file(one(shape=(1 << 62, 1 << 62)), b"\0" * 8),
        "shape larger than its data": tensor_file(one(shape=(1 << 40,)), b"\0" * 8),
        "negative shape": tensor_file(one(shape=(-1,)), b"\0" * 8),
        "fractional shape": tensor_file(one(shape=(1.5,)), b"\0" * 8),
        "unknown type": tensor_file(one(dtype="PICKLE"), b"\0" * 8),
        "same name twice": tensor_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                                       b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"\0" * 8),
        "hole between tensors": tensor_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 8),
        "no tensors": tensor_file({}),
        "tensors of no model": tensor_file(one(), b"\0" * 8),
        "200,000 tensors": tensor_file({
            f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}),
        "metadata with code": tensor_file({"__metadata__": {"_target_": "os.system"}, **one()}, b"\0" * 8),
        "metadata that is no text": tensor_file({"__metadata__": {"x": {"y": 1}}, **one()}, b"\0" * 8),
    }


def sealed(folder):
    """Write the manifest that fits the folder's files, as an attacker can."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir()) if path.name != "manifest.json"
    }
    manifest = {"schema": "paretopress-manifest/1", "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


@pytest.fixture
def artefact(tiny_run, ground):
    """A copy of a real artefact inside the root."""
    source = sorted(path for path in (tiny_run.path / "models").iterdir() if path.is_dir())[-1]
    shutil.copytree(source, ground.root / "artefact")
    return ground.root / "artefact"


@pytest.mark.parametrize("name", sorted(tensor_files(SimpleNamespace(marker="marker"))))
def test_tensor_files_with_fitting_manifests(watch, ground, artefact, tiny, name):
    (artefact / "model.safetensors").write_bytes(tensor_files(ground)[name])
    sealed(artefact)
    assert watched(watch, ground, load, artefact, tiny.module.model) is not None


HOSTILE_DELTAS = {
    "input of terabytes": lambda d: d["inputs"][0].update(shape=[1 << 20, 1 << 20]),
    "negative input": lambda d: d["inputs"][0].update(shape=[-1, 1]),
    "type that is a function": lambda d: d["inputs"][0].update(dtype="load"),
    "type with a path": lambda d: d["inputs"][0].update(dtype="serialization.os.system"),
    "module outside": lambda d: d["edits"].append({"drop": "../../etc", "channels": 0}),
    "module of the interpreter": lambda d: d["edits"].append({"fold": "__class__.__init__", "channels": 4}),
    "root module": lambda d: d["edits"].append({"drop": "", "channels": 1}),
    "attribute forward": lambda d: d["edits"].append({"resize": "first", "attributes": {"forward": 1}, "tensors": {}}),
    "attribute class": lambda d: d["edits"].append({"resize": "first", "attributes": {"__class__": 1}, "tensors": {}}),
    "parameter of terabytes": lambda d: d["edits"].append(
        {"resize": "first", "attributes": {}, "tensors": {"weight": [1 << 30, 1 << 30]}}),
    "layer of terabytes": lambda d: d["edits"].append(
        {"layer": "first", "shape": [1 << 30, 1 << 30, 3, 3], "groups": 1, "rank": None, "format": None,
         "sparsity": None, "bias": True}),
    "rank of millions": lambda d: d["edits"].append(
        {"layer": "last", "shape": [4, 24], "groups": 1, "rank": 1 << 30, "format": None, "sparsity": None,
         "bias": True}),
    "zeros of terabytes": lambda d: d["edits"].append({"drop": "second", "channels": (1 << 31) - 1}),
    "Huffman bomb": lambda d: d.update(coded={"first.weight": [8, (1 << 31) - 1]}),
    "ranges of no tensors": lambda d: d.update(ranges=["x"] * 50),
    "state of another model": lambda d: d.update(state={"x": [1]}),
    "schema of the future": lambda d: d.update(schema="paretopress-delta/99"),
    "unknown key": lambda d: d.update(hook="os.system"),
    "policy with an import": lambda d: d["policy"].update(_target_="os.system"),
    "edits that are text": lambda d: d.update(edits="os.system"),
    "equalised by text": lambda d: d.update(equalised="x"),
}


@pytest.mark.parametrize("name", HOSTILE_DELTAS)
def test_deltas_with_fitting_manifests(watch, ground, artefact, tiny, name):
    delta = json.loads((artefact / "delta.json").read_text())
    HOSTILE_DELTAS[name](delta)
    (artefact / "delta.json").write_text(json.dumps(delta, sort_keys=True, separators=(",", ":")) + "\n")
    sealed(artefact)

    def load_and_run():
        return load(artefact, tiny.module.model).program

    assert watched(watch, ground, load_and_run) is not None


def test_changed_deltas_with_fitting_manifests(watch, ground, artefact, tiny):
    """Whatever stands in a delta: the model is as it was stored, or the artefact is refused in one line."""
    whole = json.loads((artefact / "delta.json").read_text())
    expected = load(artefact, tiny.module.model)
    refused = 0
    for number in range(40):
        delta = mutated(whole, random.Random(f"delta/{number}"))
        (artefact / "delta.json").write_text(json.dumps(delta, sort_keys=True, separators=(",", ":")) + "\n")
        sealed(artefact)
        found = []
        if watched(watch, ground, lambda found=found: found.append(load(artefact, tiny.module.model))) is not None:
            refused += 1
            continue
        shapes = {name: tensor.shape for name, tensor in found[0].network.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in expected.network.state_dict().items()}
    assert refused > 20


HOSTILE_ENTRIES = {
    "parent": ("../secret.txt", {}), "absolute": ("/etc/passwd", {}), "folder": ("a/b", {}), "dots": ("..", {}),
    "empty name": ("", {}), "backslash": ("..\\secret.txt", {}), "NUL": ("a\0b", {}), "line break": ("a\nb", {}),
    "itself": ("manifest.json", {}), "option": ("-rf", {}), "hidden": (".ssh", {}), "long": ("x" * 300, {}),
    "look-alike": ("mоdel.safetensors", {}), "drive": ("C:evil", {}),
    "size that is a fraction": ("policy.yaml", {"size": 3.0}), "negative size": ("policy.yaml", {"size": -1}),
    "size that is true": ("policy.yaml", {"size": True}), "size beyond all": ("policy.yaml", {"size": 10**30}),
    "digest that is a list": ("policy.yaml", {"sha256": []}), "digest of zeros": ("policy.yaml", {"sha256": "0" * 64}),
    "no digest": ("policy.yaml", {"sha256": ""}), "further key": ("policy.yaml", {"exec": "x"}),
}


@pytest.mark.parametrize("name", HOSTILE_ENTRIES)
def test_manifests(watch, ground, artefact, tiny, name):
    manifest = json.loads((artefact / "manifest.json").read_text())
    entry, changes = HOSTILE_ENTRIES[name]
    whole = {"size": 11, "sha256": hashlib.sha256(b"a password\n").hexdigest()}
    manifest["files"][entry] = {**manifest["files"].get(entry, whole), **changes}
    (artefact / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    assert watched(watch, ground, load, artefact, tiny.module.model) is not None


@pytest.mark.parametrize("name", ["model.safetensors", "delta.json", "policy.yaml", "manifest.json", "model.onnx"])
@pytest.mark.parametrize("kind", ["link outside", "link to a copy", "folder", "pipe"])
def test_files_of_an_artefact_that_are_none(watch, ground, artefact, tiny, name, kind):
    path = artefact / name
    content = path.read_bytes()
    path.unlink()
    match kind:
        case "link outside":
            path.symlink_to(ground.secret)
        case "link to a copy":
            (ground.root / "copy").write_bytes(content)
            path.symlink_to(ground.root / "copy")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
    assert watched(watch, ground, load, artefact, tiny.module.model) is not None


def onnx_model(kind, ground):
    """Hostile ONNX files; none of their external data are ever read."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    location = {"parent": "../secret.txt", "absolute": str(ground.secret), "link": "link"}.get(kind)
    if location:
        weight.data_location = TensorProto.EXTERNAL
        for key, text in (("location", location), ("offset", "0"), ("length", "64")):
            entry = weight.external_data.add()
            entry.key, entry.value = key, text
    else:
        weight.raw_data = b"\0" * 64
    if kind == "huge dimensions":
        del weight.dims[:]
        weight.dims.extend([1 << 62, 1 << 62])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if kind == "cycle":
        nodes = [helper.make_node("Add", ["x", "z"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    if kind == "unknown operator":
        nodes = [helper.make_node("System", ["x"], ["y"], domain="evil", command=f"touch {ground.marker}")]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(nodes, "g", [value], [result], [weight])
    content = helper.make_model(graph).SerializeToString()
    return content[: len(content) // 2] if kind == "cut" else content


@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "huge dimensions", "cycle", "unknown operator", "cut"])
def test_onnx_files(watch, ground, kind):
    (ground.root / "link").symlink_to(ground.secret)
    content = onnx_model(kind, ground)
    refused = watched(watch, ground, TARGETS["onnx_file"], content, ground.root)
    assert kind != "cut" or refused


@pytest.mark.parametrize(("change", "text"), [
    (lambda record: record.update(number=10**30), ""),
    (lambda record: record.update(policy={"../../x/channels": {"keep": 0.5}}), "does not match its hash"),
    (lambda record: record.update(reason="x\x1b[2J"), None),
    (lambda record: record["values"].update(accuracy=10**400), "finite"),
    (lambda record: record.update(state="__class__"), "is not one of"),
])
def test_trials(watch, ground, tiny_run, change, text):
    run = ground.root / "run"
    run.mkdir()
    shutil.copy(tiny_run.path / "run.yaml", run)
    lines = (tiny_run.path / "trials.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    change(record)
    (run / "trials.jsonl").write_text("\n".join([lines[0], json.dumps(record), *lines[2:]]) + "\n")
    from paretopress.search.ledger import read_run

    refused = watched(watch, ground, read_run, run)
    assert refused is None if text in (None, "") else text in refused


@pytest.mark.parametrize("arguments", [
    ("search", "FILE", "--model", "tiny:model", "--data", "tiny:data"),
    ("search", "--target", "FILE", "--model", "tiny:model", "--data", "tiny:data"),
    ("apply", "--policy", "FILE", "--model", "tiny:model", "--data", "tiny:data", "-o", "out"),
    ("device", "show", "FILE"),
    ("verify", "FOLDER", "--model", "tiny:model", "--data", "tiny:data"),
    ("front", "FOLDER"),
])
def test_flags_that_read_files(watch, ground, command, arguments):
    path = ground.root / "hostile.yaml"
    path.write_bytes(documents(ground)["python call"])
    (ground.root / "folder").mkdir()
    for name in ("front.json", "manifest.json", "run.yaml"):
        (ground.root / "folder" / name).write_bytes(pickle.dumps(Payload(ground.marker)))
    filled = [{"FILE": str(path), "FOLDER": str(ground.root / "folder"), "out": str(ground.root / "out")}.get(one, one)
              for one in arguments]
    code, out, err = command(*filled)
    assert code == 2, err
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]
    assert "Traceback" not in err


def test_there_are_enough_of_them():
    counts = (len(DOCUMENTS), 10, len(tensor_files(SimpleNamespace(marker="x"))), len(HOSTILE_DELTAS),
              len(HOSTILE_ENTRIES), 20, 7, 5)
    assert sum(counts) >= 60
