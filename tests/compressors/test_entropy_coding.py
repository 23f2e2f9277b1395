"""Huffman-coded tensors: nothing is lost, nothing gets larger, and damage is refused."""

import json

import pytest
import safetensors.torch
import torch
from artefact_models import choices_of, prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.compressed_model import load
from paretopress.compressors.delta import Delta
from paretopress.compressors.entries import Entries
from paretopress.compressors.entropy_coding import decoded, encoded
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.spaces.choices import Binary, Clustered, Sparse, Weights
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 4000), st.floats(0.2, 30.0), st.integers(0, 1000))
def test_every_byte_comes_back(bits, size, spread, seed):
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread
    tensors = {"a": noise.abs().clamp(max=255).to(torch.uint8), "b": torch.ones(3), "c": torch.ones(2, 2).byte()}
    found, coded = encoded(tensors, {"a": bits})
    assert sum(one.nbytes for one in found.values()) <= sum(one.nbytes for one in tensors.values())
    again = decoded(found, coded, "file")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


FORMS = {
    "8 bits": ({"weights": Weights(8, 32)}, 0.99), "3 bits": ({"weights": Weights(3, 32)}, 0.97),
    "shared": ({"weights": Clustered(4)}, 0.98), "signs": ({"weights": Binary(1)}, 1.0),
    "sparse": ({"weights": Weights(8, 32), "sparsity": Sparse(0.5)}, 1.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_coded_artefact_is_smaller_and_the_same(form, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight)
    x = torch.randn(100, 64)
    program = build_program(model, (x[:2],))
    calibration = calibrate(program, [[x]])
    choices, share = FORMS[form]
    policy = Policy.of({f"{layer}/{kind}": choice for layer in "02" for kind, choice in choices.items()})
    network = Entries(program, calibration).stitch(plan(program.structure, policy))
    compressed = realise(model, program, network)
    plain, coded = (compressed.save(tmp_path / name, huffman=name == "coded") for name in ("plain", "coded"))
    assert plain["size_bytes"] == compressed.size_bytes
    assert coded["size_bytes"] <= share * plain["size_bytes"]
    stored = safetensors.torch.load_file(tmp_path / "coded" / "model.safetensors")
    assert coded["size_bytes"] == sum(tensor.nbytes for tensor in stored.values())
    loaded = load(tmp_path / "coded", model)
    assert loaded.delta == compressed.delta
    with torch.no_grad():
        assert torch.equal(compressed(x), loaded(x))


@pytest.mark.parametrize("damage", ["huffman_data", "huffman_starts", "huffman_lengths", "type", "count"])
def test_damage_is_refused(damage):
    found, coded = encoded({"a": (torch.arange(9000) % 5).byte()}, {})
    assert coded == {"a": (8, 9000)}
    if damage == "type":
        found["a.huffman_data"] = found["a.huffman_data"].float()
    elif damage == "count":
        coded = {"a": (8, 90000)}
    else:
        found[f"a.{damage}"] = found[f"a.{damage}"][:3]
    with pytest.raises(ArtifactError):
        decoded(found, coded, "file")


def test_what_is_coded_is_checked():
    item = prepared("mlp")
    compressed = realise(item.model, item.program, item.network(choices_of(item, bits=8)))
    plain = json.loads(json.dumps(compressed.delta.to_plain()))
    for value in ({"a": [9, 3]}, {"a": [8]}, {"a": 3}, [3]):
        with pytest.raises(ArtifactError, match=r"delta\.json: coded"):
            Delta.from_plain({**plain, "coded": value}, "delta.json")
