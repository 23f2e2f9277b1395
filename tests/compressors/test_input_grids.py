"""Inputs that layers round for themselves: exact rounding, the best grids, exact bytes, the same in ONNX Runtime."""

import functools
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from artefact_models import OWN_INPUTS, POLICIES, choices_of, prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.compressed_model import load
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, run_session, session, translated_model
from paretopress.compressors.inputs import DynamicRange, InputGrid, dynamic_range, input_grid, read_inputs
from paretopress.compressors.network import apply_parts, forward, runner
from paretopress.compressors.onnx_passes import rewrite
from paretopress.compressors.onnx_tracing import traced_model
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit
from paretopress.compressors.trained_inputs import in_training, latent_inputs, with_latent
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Binary, Factorised, Weights
from paretopress.spaces.errors import ArtifactError, PolicyError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

NAMES = ("w8a16", "w4a4", "w8 dynamic")   # policies of `artefact_models`


def values(bound):
    return arrays(np.float32, st.integers(1, 40), elements=st.floats(-bound, bound, width=32, allow_subnormal=False))


@settings(max_examples=150, deadline=None)
@given(values(2.0**14), st.floats(2.0**-10, 2.0**10, width=32), st.sampled_from([4, 16]), st.data())
def test_a_grid_rounds_to_the_nearest_of_all_its_levels(x, step, bits, data):
    zero_point = data.draw(st.integers(0, 2**bits - 1))
    levels = np.arange(2**bits, dtype=np.float64) - zero_point
    steps = (x / np.float32(step)).astype(np.float64)
    distances = np.abs(steps[:, None] - levels)
    tied = distances == distances.min(axis=1, keepdims=True)
    nearest = [min(levels[row], key=lambda level: level % 2) for row in tied]   # of two the even one
    grid = InputGrid(torch.tensor([step], dtype=torch.float32), zero_point, bits)
    found = grid.of(torch.from_numpy(x), 0)
    assert torch.equal(found, torch.tensor(nearest, dtype=torch.float32) * grid.scale)


@functools.cache
def quantising_session():
    helper, kinds = onnx.helper, onnx.TensorProto
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"])
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (
        ("codes", kinds.UINT8, ["n"]), ("scale", kinds.FLOAT, []), ("zero", kinds.UINT8, []))]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", kinds.FLOAT, ["n"])], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def check_as_onnx_runtime(x):
    codes, scale, zero_point = (torch.from_numpy(np.asarray(one)) for one in quantising_session().run(None, {"x": x}))
    found = dynamic_range(torch.from_numpy(x))
    assert (float(found[0]), int(found[1])) == (float(scale), int(zero_point))
    expected = (codes.float() - zero_point.float()) * scale
    assert torch.equal(DynamicRange().of(torch.from_numpy(x), 0), expected)


@settings(max_examples=200, deadline=None)
@given(values(2.0**20))
def test_ranges_at_run_time_are_those_of_onnx_runtime(x):
    check_as_onnx_runtime(x)


@pytest.mark.parametrize("shift", [-9.0, -1.0, 0.0, 0.3, 9.0])
def test_ranges_of_large_tensors_too(shift):
    for seed in range(5):
        x = torch.randn(9_999, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed - 2) + shift
        check_as_onnx_runtime(x.numpy())


def test_a_tensor_of_zeros_and_one_without_values_stay():
    check_as_onnx_runtime(np.zeros(3, dtype=np.float32))
    empty = torch.empty(0, 4)
    assert DynamicRange().of(empty, 1) is empty
    tiny = torch.full((3,), 1e-45)
    assert bool(DynamicRange().of(tiny, 0).isfinite().all())


def error(x, grid):
    return float((grid.of(x, 0) - x).double().square().sum())


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("shape", ["normal", "rectified", "heavy"])
def test_the_grid_has_the_least_squared_error(bits, shape):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(bits))
    x = {"normal": x, "rectified": x.relu(), "heavy": x.pow(5)}[shape]
    best, whole = input_grid(x, bits, "mse"), input_grid(x, bits, "minmax")
    assert whole.bounds[0] * float(whole.scale) <= float(x.min()) + float(whole.scale)
    assert whole.bounds[1] * float(whole.scale) >= float(x.max()) - float(whole.scale)
    shares = torch.linspace(0.05, 1.0, 39).tolist()
    tried = [input_grid(x.clamp(low * float(x.min()), high * float(x.max())), bits, "minmax")
             for high in shares for low in (shares if shape != "rectified" else (1.0,))]
    assert error(x, best) <= 1.05 * min(error(x, one) for one in tried)
    assert error(x, best) <= 1.01 * error(x, whole)
    assert error(x, best) < 0.95 * error(x, whole) or bits == 16   # of that many levels outliers cost few
    assert best.zero_point == 0 or shape != "rectified"
    clipped = input_grid(torch.cat([x, torch.tensor([1e4])]), bits, "percentile")
    assert float(clipped.scale) < 1e4 / 2**bits


@pytest.mark.parametrize("zero_point", [0, 1, 15, 255, 256, 65_535])
@pytest.mark.parametrize("bits", [4, 16])
def test_the_code_of_zero_is_stored_in_as_few_bytes_as_it_needs(bits, zero_point):
    stored = InputGrid(torch.tensor([0.25]), zero_point % (1 << bits), bits).tensors()
    assert {name: tensor.nbytes for name, tensor in stored.items()} == {
        "input_scale": 4, "input_zero_point": {4: 1, 16: 2}[bits]}
    again = read_inputs(Weights(8, bits), stored.__getitem__)
    assert (again.zero_point, again.bits, float(again.scale)) == (zero_point % (1 << bits), bits, 0.25)


def test_a_code_of_zero_beyond_the_grid_is_refused():
    stored = {"input_scale": torch.ones(1), "input_zero_point": torch.tensor([16], dtype=torch.uint8)}
    with pytest.raises(ArtifactError, match="an input of 4 bits: 16 is no code of zero"):
        read_inputs(Weights(8, 4), stored.__getitem__)


@pytest.mark.parametrize(("form", "more"), [(Weights(8, 16), 6), (Weights(8, 4), 5), (Weights(8, ranges="dynamic"), 0)])
def test_every_real_layer_stores_a_step_and_the_code_of_zero(form, more, tmp_path):
    item = prepared("resnet")
    layers = item.program.structure.layers
    ranks = {f"{layer.name}/rank": Factorised("svd", 2) for layer in layers if layer.name.startswith("blocks.1")}
    sizes = []
    for one in (form, Weights(8, 32)):
        network = item.network({**ranks, **item.program.structure.takers(one)})
        compressed = realise(item.model, item.program, network)
        compressed.save(tmp_path / str(one.activations))
        sizes.append(compressed.size_bytes)
        assert compressed.size_bytes == network.plan.stored_bytes
        assert load(tmp_path / str(one.activations), item.model).size_bytes == compressed.size_bytes
    parts = [part for layer in network.plan.layers for part in layer.parts]
    assert len(parts) == len(layers) + len(ranks) > len(layers)
    assert sizes[0] - sizes[1] == more * len(parts)


def inputs_read(program, network, inputs):
    """What every layer of a network reads, before it rounds it."""
    read = {}

    def apply(layer, x, _):
        read[layer.layer.node] = x
        return apply_parts(network, layer, x, lambda _, value: value)

    program.run(inputs, runner(program, network, apply=apply))
    return read


@pytest.mark.parametrize("build", ["tuned", "solved again"])
def test_grids_are_chosen_on_the_compressed_prefix(build):
    item = prepared("depthwise")
    calibration = replace(item.calibration, ranges="minmax")
    entries = Entries(item.program, calibration)
    planned = plan(item.program.structure, Policy.of(choices_of(item, keep=True, form=Weights(4, 4))))
    with torch.inference_mode():
        if build == "tuned":
            network, _ = tune(item.program, entries.stitch(planned), calibration)
        else:
            network = refit(item.program, entries, planned, item.inputs)
        dense, read = (inputs_read(item.program, one, calibration.inputs) for one in (calibration.base, network))
    differing = 0
    for layer in planned.layers:
        (part,) = network.parts[layer.layer.node]
        expected, before = (input_grid(one[layer.layer.node], 4, "minmax") for one in (read, dense))
        assert float(part.inputs.scale) == pytest.approx(float(expected.scale), rel=1e-4)
        assert abs(part.inputs.zero_point - expected.zero_point) <= 1
        differing += abs(float(before.scale) / float(expected.scale) - 1.0) > 1e-3
    assert differing > len(planned.layers) / 2


def test_layers_read_what_they_round_and_others_read_the_floats():
    item = prepared("mlp")
    network = item.network({"up/weights": Weights(8, 4), "down/weights": Weights(8, ranges="dynamic")})
    with torch.no_grad():
        read = inputs_read(item.program, network, item.inputs)
    nodes = {layer.layer.name: layer.layer.node for layer in network.plan.layers}
    grid = network.parts[nodes["up"]][0].inputs
    rounded = grid.of(read[nodes["up"]], 2)
    assert len(rounded.unique()) <= 16
    assert len(read[nodes["up"]].unique()) > 1000
    assert network.plan.arithmetic.ranges == ()
    compressed = realise(item.model, item.program, network)
    assert compressed.delta.graph == "layer 'up' rounds its input to 4 bits, which the model's code does not"
    with torch.no_grad():
        assert torch.equal(compressed(*item.args), forward(item.program, network, item.inputs))
        assert not torch.equal(compressed.network(*item.args), compressed(*item.args))


def test_a_batch_shares_the_range_that_is_found_at_run_time():
    x = torch.tensor([[0.0, 1.0], [0.0, 100.0]])
    together, alone = DynamicRange().of(x, 1), DynamicRange().of(x[:1], 1)
    assert float(alone[0, 1]) == pytest.approx(1.0)
    assert abs(float(together[0, 1]) - 1.0) > 0.1


SINGLE = {
    "linear": (nn.Linear(24, 10), (24,)),
    "sequence": (nn.Linear(24, 10, bias=False), (5, 24)),
    "convolution": (nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 2), (1, 2)), (4, 9, 8)),
    "pointwise": (nn.Conv2d(4, 8, 1, bias=False), (4, 5, 5)),
    "grouped": (nn.Conv2d(8, 12, 3, padding=1, groups=4), (8, 6, 6)),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 6, 6)),
    "row": (nn.Conv1d(4, 6, 3, padding=1, stride=2), (4, 11)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2), (4, 5, 5)),
}


class Alone(nn.Module):
    """One layer behind what shifts the values away from zero."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x + 0.3)


@functools.cache
def alone(name):
    torch.manual_seed(1)
    layer, shape = SINGLE[name]
    model, inputs = Alone(layer).eval(), torch.randn(64, *shape)
    program = build_program(model, (inputs[:4],))
    return model, program, Entries(program, calibrate(program, [(inputs,)])), inputs


@pytest.mark.parametrize("form", [*OWN_INPUTS, Weights(2, 16)], ids=str)
@pytest.mark.parametrize("name", SINGLE)
def test_onnx_runtime_computes_the_same_layer(name, form, tmp_path):
    """Both round the same input: what is left are sums of floats."""
    model, program, entries, inputs = alone(name)
    if name == "transposed" and form.is_dynamic:
        with pytest.raises(PolicyError, match=r"no kernel computes layers of this kind .*\(activations: 32\)"):
            plan(program.structure, Policy.of({"layer/weights": form}))
        return
    planned = plan(program.structure, Policy.of({"layer/weights": form}))
    network, _ = tune(program, entries.stitch(planned), entries.calibration)
    export_onnx(program, network, tmp_path / "model.onnx")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    integer = "ConvInteger" if planned.layers[0].layer.window else "MatMulInteger"
    assert (operators["DynamicQuantizeLinear"], operators[integer]) == ((1, 1) if form.is_dynamic else (0, 0))
    assert operators["Round"] == (0 if form.is_dynamic else 1)
    opened = session(tmp_path / "model.onnx")
    for count in (1, 64):
        with torch.inference_mode():
            expected = realise(model, program, network)(inputs[:count])
        (found,) = run_session(opened, [inputs[:count]])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_linear_layers_on_ranges_at_run_time_are_one_integer_operator(tmp_path):
    _, program, entries, _ = alone("linear")
    planned = plan(program.structure, Policy.of({"layer/weights": Weights(8, ranges="dynamic")}))
    export_onnx(program, tune(program, entries.stitch(planned), entries.calibration)[0], tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    run = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert run == {"Add": 1, "DynamicQuantizeMatMul": 1}


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize("name", ["resnet", "depthwise", "mlp", "conv1d", "gpt2"])
def test_onnx_runtime_computes_whole_models(name, policy, tmp_path):
    item = prepared(name)
    network = item.network(choices_of(item, **POLICIES[policy]))
    export_onnx(item.program, network, tmp_path / "model.onnx")
    (found,) = run_session(session(tmp_path / "model.onnx"), item.inputs)
    with torch.no_grad():
        expected = forward(item.program, network, item.inputs)
    # A float rounding apart moves single values to the next step.
    assert (found - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("policy", NAMES)
def test_rules_and_torch_write_the_same_rounding(policy, tmp_path):
    item = prepared("resnet")
    network = item.network(choices_of(item, **POLICIES[policy]))
    program = item.program.under(network.plan.structure)
    found = []
    for make in (translated_model, traced_model):
        onnx.save(rewrite(make(program, network)), tmp_path / "model.onnx")
        found.append(run_session(session(tmp_path / "model.onnx"), item.inputs)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5 * float(found[0].abs().max()))


def test_layers_that_read_the_same_tensor_share_its_range(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            x = x.relu()
            return self.left(x) * self.right(x)

    torch.manual_seed(2)
    inputs = torch.randn(32, 16)
    program = build_program(Pair().eval(), (inputs[:4],))
    entries = Entries(program, calibrate(program, [(inputs,)]))
    policy = Policy.of(program.structure.takers(Weights(8, ranges="dynamic")))
    network, _ = tune(program, entries.stitch(plan(program.structure, policy)), entries.calibration)
    export_onnx(program, network, tmp_path / "model.onnx")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert (operators["DynamicQuantizeLinear"], operators["MatMulInteger"]) == (1, 2)
    (found,) = run_session(session(tmp_path / "model.onnx"), [inputs])
    with torch.no_grad():
        assert torch.allclose(found, forward(program, network, [inputs]), rtol=1e-4, atol=1e-5)


def test_the_step_of_a_grid_is_learned():
    """Esser et al. 2020, equation 3: round(x / s) - x / s within the grid, its bounds beyond."""
    grid = InputGrid(torch.tensor([0.5]), 4, 4)
    x = torch.tensor([-9.0, -1.1, 0.0, 0.3, 2.4, 99.0], requires_grad=True)
    (latent,) = latent_inputs(grid)
    assert torch.equal(with_latent(grid, (latent,)).scale, grid.scale)
    output = in_training(with_latent(grid, (latent,))).of(x, 0)
    assert torch.equal(output, grid.of(x.detach(), 0))
    output.sum().backward()
    steps = x.detach() / 0.5
    expected = torch.where(steps < -4, -4.0, torch.where(steps > 11, 11.0, steps.round() - steps)).sum() * 0.5
    assert float(latent.grad) == pytest.approx(float(expected), rel=1e-5)
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    with torch.no_grad():
        assert float(with_latent(grid, (latent - 5.0,)).scale) > 0.0


def test_gradients_pass_a_range_that_is_found_at_run_time():
    x = torch.tensor([-1.0, 0.2, 3.0], requires_grad=True)
    output = in_training(DynamicRange()).of(x, 0)
    assert torch.equal(output, DynamicRange().of(x.detach(), 0))
    output.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
    assert latent_inputs(DynamicRange()) == latent_inputs(None) == ()


def test_an_embedding_has_no_input_to_round():
    structure = prepared("table").program.structure
    name = next(layer.name for layer in structure.layers if layer.kind.value == "embedding")
    for form in (Weights(8, 16), Weights(4, 4)):
        with pytest.raises(PolicyError, match=r"what an embedding reads are places .*\(activations: 32\)"):
            plan(structure, Policy.of({f"{name}/weights": form}))
        assert f"{name}/weights" not in structure.takers(form)
    with pytest.raises(PolicyError, match=r"no kernel computes layers of this kind .*\(activations: 32\)"):
        plan(structure, Policy.of({f"{name}/weights": Weights(8, ranges="dynamic")}))
    with pytest.raises(PolicyError, match="the rows of an embedding are no signs"):
        plan(structure, Policy.of({f"{name}/weights": Binary(1, 1)}))
