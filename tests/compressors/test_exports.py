"""Exports: every format computes what the model computes, is timed, and is refused where it does not."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import paretopress
from paretopress.compressors import exports
from paretopress.compressors.artefact_folder import read_manifest
from paretopress.compressors.exports import as_inputs, synthetic_inputs
from paretopress.spaces.errors import ArtifactError, ConfigError


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(x.mean((2, 3)))


class Keywords(nn.Module):
    """Ids and a mask by keyword, outputs in a mapping: the shape of a language model."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 16)
        self.inner = nn.Linear(16, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, ids, mask):
        x = torch.relu(self.inner(self.table(ids))) * mask[..., None]
        return {"logits": self.head(x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1.0))}


@pytest.fixture(scope="module")
def images():
    return torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def models(images):
    torch.manual_seed(0)
    model = Small().eval()
    return {
        "pruned": paretopress.prune(model, images, 0.5),
        "int8": paretopress.quantize(model, images),
        "int4": paretopress.quantize(model, images, bits=4, activations=32),
    }


@pytest.mark.parametrize("kind", ["pruned", "int8", "int4"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_an_export_computes_what_the_model_computes(models, images, tmp_path, kind, suffix):
    path = tmp_path / f"small{suffix}"
    found = models[kind].export(path, inputs=images, runs=3)
    assert found.path == path
    assert found.format == {".onnx": "onnx", ".pt2": "pt2", ".xml": "openvino"}[suffix]
    assert found.samples == 64
    assert found.difference <= 1e-4 or (kind == "int8" and found.agreement >= 0.99)
    assert found.latency_ms > 0
    assert found.quartiles[0] <= found.latency_ms <= found.quartiles[1]
    assert found.bytes == sum(one.stat().st_size for one in tmp_path.iterdir())
    assert sorted(one.suffix for one in tmp_path.iterdir()) == sorted({suffix, *([".bin"] if suffix == ".xml" else [])})


@pytest.mark.parametrize(("size", "values", "sound"), [(0.1, False, False), (0.1, True, True), (0.4, True, False)])
def test_values_may_differ_by_more_than_scores(models, images, tmp_path, monkeypatch, size, values, sound):
    """Outputs that are off by a share of their length, whichever of them is the largest."""
    def run(compressed, path, form):
        def off(args, kwargs):
            with torch.inference_mode():
                outputs = compressed(*args, **kwargs)
            return [outputs * (1.0 + size)]
        return off

    monkeypatch.setattr(exports, "opened", run)
    model = models["int8"]
    firsts = iter(torch.arange(8)[:, None].expand(8, 64))                 # never the same one
    monkeypatch.setattr(exports, "_leading", lambda _: next(firsts))
    if sound:
        model.export(tmp_path / "a.onnx", inputs=images, runs=0, values=values)
        return
    with pytest.raises(ArtifactError, match="agrees on"):
        model.export(tmp_path / "a.onnx", inputs=images, runs=0, values=values)


def test_a_program_file_runs_without_paretopress_and_the_user_s_class(models, images, tmp_path):
    models["int8"].export(tmp_path / "small.pt2", inputs=images, runs=0)
    expected = models["int8"](images[:5])
    torch.save({"x": images[:5], "y": expected}, tmp_path / "io.pt")
    code = (
        "import sys, torch; sys.modules['paretopress'] = None; d = torch.load('io.pt', weights_only=True);"
        "m = torch.export.load('small.pt2').module(); print(torch.equal(m(d['x']), d['y']), tuple(m(d['x'][:1]).shape))"
    )
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, text=True, capture_output=True,
                           check=True, timeout=120)
    assert ended.stdout.split("\n")[0] == "True (1, 4)"


def test_a_packed_program_holds_the_integers_and_the_model_stays_as_it_was(models, images, tmp_path):
    model = models["int4"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.export(tmp_path / "packed.pt2", inputs=images, runs=0, packed=True)
    program = torch.export.load(tmp_path / "packed.pt2")
    stored = [tensor for tensor in program.constants.values() if tensor.dtype == torch.uint8]
    weights = [16 * 9, 32 * 16 * 9, 4 * 32]
    assert sorted(tensor.numel() for tensor in stored)[-1] <= weights[1] // 2 + 32
    assert not [tensor for tensor in program.constants.values() if tensor.is_floating_point() and tensor.numel() > 64]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_keyword_inputs_and_mapped_outputs(tmp_path):
    torch.manual_seed(0)
    model = Keywords().eval()
    generator = torch.Generator().manual_seed(1)
    inputs = {"ids": torch.randint(0, 11, (64, 7), generator=generator), "mask": torch.ones(64, 7)}
    compressed = paretopress.quantize(model, inputs, bits=8, activations=32)
    for suffix in (".onnx", ".pt2"):
        found = compressed.export(tmp_path / f"small{suffix}", inputs=inputs, runs=2)
        assert found.difference <= 1e-4
    loaded = torch.export.load(tmp_path / "small.pt2").module()
    assert torch.allclose(loaded(**inputs)["logits"], compressed(**inputs)["logits"], atol=1e-6)
    drawn = synthetic_inputs(compressed)[1]
    assert drawn["ids"].dtype == torch.int64
    assert compressed.export(tmp_path / "drawn.onnx").samples == exports.SYNTHETIC


def test_an_export_that_computes_something_else_is_refused_and_leaves_the_earlier_one(
    models, images, tmp_path, monkeypatch
):
    path = tmp_path / "small.onnx"
    models["pruned"].export(path, inputs=images, runs=0)
    before = path.read_bytes()
    real = exports.opened
    monkeypatch.setattr(exports, "opened", lambda *given: lambda args, kwargs: [
        1.001 * one for one in real(*given)(args, kwargs)])
    with pytest.raises(ArtifactError, match=r"small\.onnx: the export's outputs differ by .*; nothing was written"):
        models["pruned"].export(path, inputs=images, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_exported_is_one_line(models, tmp_path):
    model = models["pruned"]
    (tmp_path / "there.onnx").write_bytes(b"")
    for path, form, text in [
        ("there.onnx", None, "exists"), ("no/small.onnx", None, "does not exist"),
        ("small.onnx", "pt2", r"ends in \.pt2"), ("small.onnx", "onxx", "did you mean 'onnx'"),
    ]:
        with pytest.raises(ConfigError, match=text) as raised:
            model.export(tmp_path / path, form)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="expected a tensor"):
        as_inputs("text")


def test_openvino_that_is_missing_is_one_line(models, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 'paretopress\[openvino\]'"):
        models["pruned"].export(tmp_path / "small.xml", inputs=images)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_a_model_card_that_its_manifest_covers(models, tmp_path):
    import yaml

    found = models["int4"].export(tmp_path / "small")
    assert found.format == "safetensors"
    card = (tmp_path / "small" / "README.md").read_text()
    assert "README.md" in read_manifest(tmp_path / "small")
    _, front, body = card.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["library_name"] == "paretopress"
    assert matter["paretopress"]["policy_hash"] == models["int4"].policy.hash
    assert matter["paretopress"]["versions"]["torch"].startswith("2.")
    assert "x smaller" in body
    assert f"{models['int4'].size_bytes:,} bytes" in body
    assert "last/weights" in body
    loaded = paretopress.load(tmp_path / "small", Small)
    assert torch.equal(loaded(torch.ones(2, 1, 8, 8)), models["int4"](torch.ones(2, 1, 8, 8)))


def test_a_card_takes_names_as_text():
    from paretopress.compressors.model_card import Card
    from paretopress.spaces.policy import Policy

    policy = Policy.from_plain({"units": {"a|b`<script>/weights": {"half": "fp16"}}})
    text = Card("x: [y", policy, "one\nline", metrics={"accuracy": 0.5}).text()
    assert "<script>" not in text
    assert "a\\|b\\`" in text
    import yaml

    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["name"] == "x: [y"
