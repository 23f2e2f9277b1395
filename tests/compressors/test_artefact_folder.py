"""An artefact's folder: all or nothing when written, refused when a single bit differs when read."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from artefact_models import POLICIES, build, choices_of, prepared
from torch import nn

from paretopress.compressors.artefact_folder import MANIFEST, check_folder, read_folder
from paretopress.compressors.compressed_model import load
from paretopress.compressors.realise import realise
from paretopress.spaces.documents import write_atomic
from paretopress.spaces.errors import ArtifactError, ConfigError
from paretopress.spaces.policy import Policy

FILES = ("model.safetensors", "delta.json", "policy.yaml")


@pytest.fixture(scope="module")
def compressed():
    item = prepared("depthwise")
    return realise(item.model, item.program, item.network(choices_of(item, **POLICIES["mixed"])))


@pytest.fixture
def folder(compressed, tmp_path):
    compressed.save(tmp_path / "artefact")
    return tmp_path / "artefact"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(error):
    return len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_every_changed_byte_is_detected(folder, name):
    path = folder / name
    original = path.read_bytes()
    assert read_folder(folder, FILES)
    for index in range(len(original)):
        altered = bytearray(original)
        altered[index] ^= 1 << index % 8
        path.write_bytes(altered)
        with pytest.raises(ArtifactError) as error:
            read_folder(folder, FILES)
        assert one_line(error)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_damaged_files_are_named_on_loading(folder, name):
    path = folder / name
    original = path.read_bytes()
    altered = bytearray(original)
    altered[len(original) // 2] ^= 16
    for content in (bytes(altered), original[:-1], original + b"\n", b""):
        path.write_bytes(content)
        with pytest.raises(ArtifactError) as error:
            load(folder, lambda: build("depthwise"))
        assert one_line(error)
        if name != MANIFEST:
            assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(ArtifactError, match="missing") as error:
        load(folder, lambda: build("depthwise"))
    assert name in str(error.value)


def test_files_that_do_not_belong_are_refused(folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes\.txt: not part of the artefact"):
        load(folder, lambda: build("depthwise"))


def test_a_manifest_without_a_needed_file_is_refused(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"]["policy.yaml"]
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    (folder / "policy.yaml").unlink()
    with pytest.raises(ArtifactError, match=r"policy\.yaml: missing"):
        load(folder, lambda: build("depthwise"))


def test_a_manifest_cannot_name_files_elsewhere(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../outside"] = {"size": 1, "sha256": "0"}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    with pytest.raises(ArtifactError, match="outside"):
        check_folder(folder)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere: no such folder"):
        load(tmp_path / "nowhere", nn.Identity)


def test_saving_is_deterministic(compressed, folder, tmp_path):
    compressed.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    load(folder, lambda: build("depthwise")).save(tmp_path / "reloaded")
    assert contents(tmp_path / "reloaded") == contents(folder)


def test_the_folder_documents_what_it_holds(compressed, folder):
    assert Policy.load(folder / "policy.yaml") == compressed.policy
    delta = json.loads((folder / "delta.json").read_text())
    assert delta["structure"] == compressed.program.structure.fingerprint
    assert delta["versions"]["torch"] == torch.__version__
    kept = delta["kept"]["expand"]
    assert len(kept) == compressed.network.depthwise.out_channels
    assert kept == sorted(set(kept))


def test_extra_files_are_covered_by_the_manifest(compressed, tmp_path):
    target = tmp_path / "artefact"
    plain = compressed.save(tmp_path / "plain")
    sizes = compressed.save(target, extra={"model.onnx": lambda path: path.write_bytes(b"graph")})
    assert sizes["size_bytes"] == plain["size_bytes"]
    assert load(target, lambda: build("depthwise")).policy == compressed.policy
    (target / "model.onnx").write_bytes(b"grapf")
    with pytest.raises(ArtifactError, match=r"model\.onnx: altered"):
        load(target, lambda: build("depthwise"))


def test_only_own_artefacts_are_overwritten(compressed, folder, tmp_path):
    before = contents(folder)
    with pytest.raises(ConfigError, match="not empty"):
        compressed.save(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    compressed.save(empty)
    assert contents(empty) == before
    other = prepared("depthwise")
    dense = realise(other.model, other.program, other.network({}))
    dense.save(folder, overwrite=True)
    assert contents(folder).keys() == before.keys()
    assert load(folder, lambda: build("depthwise")).policy.is_dense
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        compressed.save(folder, overwrite=True)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "data").write_text("mine")
    with pytest.raises(ConfigError, match="holds no artefact"):
        compressed.save(strange, overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        compressed.save(folder / "thesis.txt", overwrite=True)
    assert (folder / "thesis.txt").read_text() == (strange / "data").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"artefact", "empty", "strange"}


def test_files_get_the_permissions_of_the_umask(compressed, tmp_path):
    mask = os.umask(0o027)
    try:
        compressed.save(tmp_path / "artefact")
        write_atomic(tmp_path / "file", lambda stream: stream.write(b"x"))
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "artefact").stat().st_mode) == 0o750
    for path in (tmp_path / "file", *(tmp_path / "artefact").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_failure_while_writing_leaves_nothing(compressed, folder, tmp_path):
    before = contents(folder)

    def fail(path):
        path.write_bytes(b"part")
        raise RuntimeError("the exporter failed")

    for target in (folder, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="the exporter failed"):
            compressed.save(target, overwrite=True, extra={"model.onnx": fail})
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from artefact_models import POLICIES, choices_of, prepared
from paretopress.compressors.realise import realise
from paretopress.spaces.errors import DiskError
item = prepared("depthwise")
compressed = realise(item.model, item.program, item.network(choices_of(item, **POLICIES["mixed"])))
folder = Path(sys.argv[2])
limits = sorted({path.stat().st_size - 1 for path in (folder / "artefact").iterdir()} | {0, 100})
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name in ("artefact", "new"):
        try:
            compressed.save(folder / name, overwrite=True)
        except DiskError as error:
            assert str(error).startswith(f"cannot write {folder / name}"), error
            assert str(error).endswith("the disk is full"), error
            print("refused", limit, name)
        else:
            print("written", limit, name)
"""


def test_a_full_disk_leaves_nothing_half_written(compressed, folder, tmp_path):
    before = contents(folder)
    arguments = [str(Path(__file__).parent), str(tmp_path)]
    command = [sys.executable, "-c", FULL_DISK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    limits = {len(content) for content in before.values()} | {1, 101}
    assert done.stdout.count("refused") == 2 * len(limits)
    assert "written" not in done.stdout
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


class OtherActivation(type(build("depthwise"))):
    def forward(self, x):
        return torch.tanh(super().forward(x))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: build("resnet"), "'bn1.bias' is none in this model and (16,) in the artefact's"),
        (lambda: nn.Sequential(build("depthwise")), "'bn1.bias' is none in this model"),
        (OtherActivation, "the fingerprint of its operators"),
    ],
)
def test_another_model_is_refused(folder, factory, message):
    with pytest.raises(ArtifactError) as error:
        load(folder, factory)
    assert message in str(error.value)
    assert one_line(error)


def test_another_model_is_refused_when_it_is_captured_later(tmp_path):
    item = prepared("depthwise")
    realise(item.model, item.program, item.network(choices_of(item, bits=4))).save(tmp_path / "artefact")
    loaded = load(tmp_path / "artefact", OtherActivation)
    with pytest.raises(ArtifactError, match="the fingerprint of its operators"):
        _ = loaded.plan


def test_another_type_of_element_is_refused(folder):
    with pytest.raises(ArtifactError, match=r"'depthwise\.bias': \(\d+,\) torch\.float32 in the artefact"):
        load_float64(folder)


def load_float64(folder):
    from paretopress.compressors.apply_edits import apply_edits, load_tensors, stored_tensors

    item = prepared("depthwise")
    loaded = load(folder, item.model)
    other = build("depthwise").double()
    apply_edits(other, loaded.delta.edits)
    load_tensors(other, stored_tensors(loaded.network), loaded.delta.edits)


def test_a_factory_must_return_a_module(folder):
    with pytest.raises(ConfigError, match=r"returned a dict, not a torch\.nn\.Module"):
        load(folder, dict)
