"""A realised model computes what the search scored, is as small as planned, and survives saving."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime
import pytest
import safetensors.torch
import torch
from artefact_models import (
    FACTORED,
    FACTORS,
    MODELS,
    PLAIN,
    POLICIES,
    build,
    cases,
    choices_of,
    prepared,
    same,
    without_conflicts,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from paretopress.compressors.compressed_model import artefact_tensors, load, network_of
from paretopress.compressors.export_onnx import export_onnx, run_session
from paretopress.compressors.network import forward
from paretopress.compressors.packing import unpack
from paretopress.compressors.realise import realise
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.policy import Policy


def check_artefact(item, choices, folder):
    """Everything that must hold for any model under any policy; returns the reloaded model."""
    network = item.network(choices)
    compressed = realise(item.model, item.program, network)
    with torch.no_grad():
        outputs = compressed(*item.args, **item.kwargs)
        if choices:
            assert same(outputs, forward(item.program, network, item.inputs))
    sizes = compressed.save(folder)
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert sizes["size_bytes"] == compressed.size_bytes == network.plan.stored_bytes
    assert sizes["size_bytes"] == sum(tensor.nbytes for tensor in stored.values())
    assert sizes["disk_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    loaded = load(folder, item.model)
    assert stored.keys() == artefact_tensors(loaded).keys()
    with torch.no_grad():
        assert same(outputs, loaded(*item.args, **item.kwargs))
    return compressed, loaded


@pytest.mark.parametrize(("name", "policy"), cases(MODELS))
def test_a_policy_is_computed_stored_and_reloaded_exactly(name, policy, tmp_path):
    item = prepared(name)
    choices = choices_of(item, **POLICIES[policy])
    assert choices or policy == "dense" or name not in PLAIN
    compressed, loaded = check_artefact(item, choices, tmp_path / "artefact")
    assert loaded.delta == compressed.delta
    assert loaded.plan.stored_bytes == compressed.size_bytes
    assert not loaded.training
    assert not loaded.network.training


@pytest.mark.parametrize("policy", FACTORS)
@pytest.mark.parametrize("name", FACTORED)
def test_every_kind_of_factors_is_computed_stored_and_reloaded_exactly(name, policy, tmp_path):
    item = prepared(name)
    choices = choices_of(item, **FACTORS[policy])
    kind = FACTORS[policy]["rank"]
    assert sum(unit.endswith("/rank") and choice.kind == kind for unit, choice in choices.items()) > 1
    compressed, loaded = check_artefact(item, choices, tmp_path / "artefact")
    assert loaded.delta == compressed.delta
    assert not compressed.delta.graph or "keep" in FACTORS[policy]   # sizes of shortcuts are written in code
    shapes = {name: tuple(module.weight.shape) for name, module in compressed.network.named_modules()
              if isinstance(module, nn.Conv2d | nn.Linear)}
    planned = {name: shape for layer in compressed.plan.layers for name, shape in layer.parts}
    assert shapes == planned


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(PLAIN))
def test_any_legal_policy_is_computed_stored_and_reloaded_exactly(data, name):
    item = prepared(name)
    drawn = {unit: data.draw(st.sampled_from(options), unit) for unit, options in item.options.items()}
    choices = without_conflicts({unit: choice for unit, choice in drawn.items() if choice is not None})
    with tempfile.TemporaryDirectory() as folder:
        check_artefact(item, choices, Path(folder) / "artefact")


@pytest.mark.parametrize("name", MODELS)
def test_the_dense_artefact_is_the_unmodified_state(name, tmp_path):
    item = prepared(name)
    compressed, loaded = check_artefact(item, {}, tmp_path / "artefact")
    stored = safetensors.torch.load_file(tmp_path / "artefact" / "model.safetensors")
    state = item.model.state_dict()
    assert compressed.delta.edits == ()
    assert all(torch.equal(tensor, state[name]) for name, tensor in stored.items())
    aliases = item.program.structure.aliases
    assert stored.keys() == {name for name in state if aliases.get(name, name) == name}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.network.state_dict().items())


def test_the_input_model_is_not_changed():
    item = prepared("resnet")
    model = build("resnet").train()
    model.blocks[0].bn1.eval()
    before = _traits(model)
    choices = choices_of(item, keep=True, rank=True, bits=8, activations=8)
    compressed = realise(model, item.program, item.network(choices))
    assert _traits(model) == before
    assert not compressed.network.training
    own = {tensor.data_ptr() for tensor in artefact_tensors(compressed).values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in model.state_dict().values())


def _traits(model):
    state = sorted(model.state_dict().items())
    content = b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in state)
    modes = [module.training for module in model.modules()]
    return hashlib.sha256(content).hexdigest(), modes, [p.requires_grad for p in model.parameters()]


def test_modules_are_really_smaller_and_keep_their_type():
    item = prepared("depthwise")
    choices = {
        "expand/channels": Keep(0.5), "head/rank": Factorised("svd", 3), "head/weights": Weights(4, 32),
        "expand/weights": Weights(3, 32),
    }
    network = realise(item.model, item.program, item.network(choices)).network
    assert (network.expand.in_channels, network.expand.out_channels) == (8, 8)
    assert (network.depthwise.groups, tuple(network.depthwise.weight.shape)) == (8, (8, 1, 3, 3))
    assert isinstance(network.bn1, nn.Identity)
    assert isinstance(network.stem[1], nn.Identity)
    first, second = network.head
    assert (first.in_features, first.out_features, first.bias) == (128, 3, None)
    assert (second.in_features, second.out_features) == (3, 5)
    state = network.state_dict()
    assert "expand.weight" not in state
    assert len(state["expand.weight_packed"]) == 8 * 8 * 3 // 8
    integers = unpack(state["head.1.weight_packed"], 4, (5, 3))
    assert torch.equal(second.weight, integers.float() * state["head.1.weight_scale"].unsqueeze(1))
    assert {parameter.requires_grad for parameter in network.parameters()} == {False}


def test_normalisations_that_are_not_folded_lose_channels():
    item = prepared("group_norm")
    network = realise(item.model, item.program, item.network({"conv1/channels": Keep(0.5)})).network
    assert (network.norm1.num_channels, network.norm1.num_groups, len(network.norm1.weight)) == (6, 2, 6)
    assert (network.norm2.num_channels, network.norm2.num_groups) == (6, 3)
    assert (network.bn.num_features, len(network.bn.running_var)) == (6, 6)
    mlp = prepared("mlp")
    network = realise(mlp.model, mlp.program, mlp.network({"embed/channels": Keep(0.25)})).network
    assert network.norm.normalized_shape == network.plain.normalized_shape == (4,)


def test_a_normalisation_that_also_activates_keeps_doing_so():
    item = prepared("activated")
    network = item.network({"conv1/channels": Keep(0.5)})
    realised = realise(item.model, item.program, network).network
    assert not isinstance(realised.norm1, nn.Identity)
    assert set(realised.state_dict()) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    with torch.no_grad():
        assert same(realised(*item.args), forward(item.program, network, item.inputs))
        assert not same(realised(*item.args), item.model(*item.args))


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    item = prepared("tied")
    compressed = realise(item.model, item.program, item.network({"c/channels": Keep(0.5)}))
    compressed.save(tmp_path / "artefact")
    stored = safetensors.torch.load_file(tmp_path / "artefact" / "model.safetensors")
    assert set(stored) == {"a.weight", "a.bias", "c.weight", "c.bias", "d.weight", "d.bias"}
    loaded = load(tmp_path / "artefact", lambda: build("tied"))
    assert loaded.network.a.weight is loaded.network.b.weight
    assert torch.equal(loaded.network.b.weight, item.model.a.weight)


def test_a_fixed_batch_is_filled_up_and_cut():
    item = prepared("fixed_batch")
    assert not item.program.graph.dynamic_batch
    compressed = realise(item.model, item.program, item.network(choices_of(item, bits=8, activations=8)))
    x = torch.randn(15, 6)
    with torch.no_grad():
        outputs = compressed(x)
        assert outputs.shape == (15, 5)
        for start in (0, 6):
            assert torch.equal(outputs[start : start + 6], compressed(x[start : start + 6]))
        # the last three rows ran with three copies of the last one behind them
        assert torch.equal(outputs[12:], compressed(torch.cat([x[12:], x[-1:].expand(3, -1)]))[:3])


def test_keywords_are_passed_by_name():
    item = prepared("keyword")
    compressed = realise(item.model, item.program, item.network(choices_of(item, bits=8, activations=8)))
    first, second = item.args[0], item.kwargs["second"]
    with torch.no_grad():
        outputs = compressed(first, second=second)
    assert set(outputs) == {"logits", "norm"}
    with pytest.raises(ConfigError, match="1 positional inputs and the keywords second"):
        compressed(first, second)


def test_code_that_depends_on_the_sizes_is_run_as_it_was_captured(tmp_path):
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = torch.relu(self.first(x))
            return self.second(y) * (1.0 if self.first.out_features == 8 else 2.0)

    from paretopress.compressors.calibration import calibrate
    from paretopress.compressors.entries import Entries
    from paretopress.compressors.program import build_program
    from paretopress.spaces.plan import plan

    model, x = Stubborn(), torch.randn(32, 4)
    program = build_program(model, (x,))
    entries = Entries(program, calibrate(program, [(x,)]))
    network = entries.stitch(plan(program.structure, Policy.of({"first/channels": Keep(0.5)})))
    compressed = realise(model, program, network)
    assert "does not compute what was captured" in compressed.delta.graph
    with torch.inference_mode():
        wanted = forward(program, network, [x])
        assert torch.equal(compressed(x), wanted)
        assert not torch.allclose(compressed.network(x), wanted)
        compressed.save(tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", Stubborn)(x), wanted)


def float_session(path):
    """ONNX Runtime with float activations behind weight-only products (its default rounds them to int8)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    off = ["WeightBiasQuantization"]
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"], disabled_optimizers=off)


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in PLAIN if name != "mlp"]


@pytest.mark.parametrize("name", ["mlp", *SLOWER])
def test_onnx_from_a_reloaded_artefact_is_the_one_from_memory(name, tmp_path):
    item = prepared(name)
    for policy in ("prune", "w2", "mixed"):
        network = item.network(choices_of(item, **POLICIES[policy]))
        realise(item.model, item.program, network).save(tmp_path / policy)
        loaded = load(tmp_path / policy, lambda: build(name))
        paths = [tmp_path / f"{policy}-{place}.onnx" for place in ("memory", "reloaded")]
        sources = [(item.program, network), (loaded.program, network_of(loaded))]
        for path, (program, source) in zip(paths, sources, strict=True):
            export_onnx(program, source, path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        with torch.no_grad():
            expected = loaded(*item.args)
        (found,) = run_session(float_session(paths[1]), item.inputs)
        if loaded.delta.ranges:
            assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.95
            assert (found - expected).abs().mean() < 0.02 * expected.abs().max()
        else:
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


RELOAD = """
import sys
sys.path.insert(0, sys.argv[1])
import safetensors.torch, torch
from artefact_models import MODELS
from paretopress.compressors.compressed_model import load
torch.manual_seed(12345)  # other weights than the artefact's
torch.set_num_threads(int(sys.argv[4]))
compressed = load(sys.argv[2], MODELS["resnet"][0])
x = safetensors.torch.load_file(sys.argv[3])["x"]
with torch.no_grad():
    safetensors.torch.save_file({"y": compressed(x)}, sys.argv[3])
"""


@pytest.mark.parametrize("policy", ["prune", "mixed"])
def test_a_clean_process_reloads_the_same_model(policy, tmp_path):
    item = prepared("resnet")
    compressed = realise(item.model, item.program, item.network(choices_of(item, **POLICIES[policy])))
    compressed.save(tmp_path / "artefact")
    exchange = tmp_path / "exchange.safetensors"
    safetensors.torch.save_file({"x": item.args[0]}, exchange)
    arguments = [Path(__file__).parent, tmp_path / "artefact", exchange, torch.get_num_threads()]
    subprocess.run([sys.executable, "-c", RELOAD, *map(str, arguments)], check=True, timeout=120)
    with torch.no_grad():
        assert torch.equal(safetensors.torch.load_file(exchange)["y"], compressed(*item.args))
