"""Running from packed tensors: the same outputs from the memory of the artefact."""

import pytest
import torch
from artefact_models import POLICIES, choices_of, prepared, same

from paretopress.compressors.compressed_model import load, network_of
from paretopress.compressors.export_onnx import export_onnx
from paretopress.compressors.packed_memory import keep_packed, resident_bytes
from paretopress.compressors.realise import realise

CASES = [("resnet", "w3"), ("resnet", "w4a8"), ("depthwise", "mixed"), ("gpt2", "w3"), ("gpt2", "sparse clustered"),
         ("upsampling", "w2"), ("table", "clustered"), ("mlp", "signs"), ("resnet", "signs a1"), ("products", "w2")]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_a_packed_model_computes_the_same_and_holds_no_float_weights(name, policy, tmp_path):
    item = prepared(name)
    compressed = realise(item.model, item.program, item.network(choices_of(item, **POLICIES[policy])))
    with torch.no_grad():
        expected = compressed(*item.args, **item.kwargs)
    compressed.save(tmp_path / "artefact")
    before = resident_bytes(load(tmp_path / "artefact", item.model))
    packed = load(tmp_path / "artefact", item.model, packed=True)
    with torch.no_grad():
        for _ in range(2):
            assert same(expected, packed(*item.args, **item.kwargs))
    assert resident_bytes(packed) < before
    assert resident_bytes(packed) == packed.size_bytes + (0 if packed.delta.ranges else _ranges(packed))
    packed.save(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "artefact/model.safetensors").read_bytes()


def _ranges(packed):
    """Empty tensors of ranges are held, and not stored."""
    return packed.activation_scale.nbytes + packed.activation_zero_point.nbytes


def test_a_packed_model_is_exported_as_before(tmp_path):
    item = prepared("resnet")
    compressed = realise(item.model, item.program, item.network(choices_of(item, **POLICIES["w4a8"])))
    export_onnx(item.program, network_of(compressed), tmp_path / "one.onnx")
    export_onnx(item.program, network_of(keep_packed(compressed)), tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
