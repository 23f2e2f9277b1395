from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import paretopress
from paretopress.demo import factories
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.memory import peak_bytes
from paretopress.hardware_profiles.networks import random_network
from paretopress.hardware_profiles.onnx_view import onnx_view
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Family
from paretopress.spaces.plan import plan

FIELDS = (
    "family", "weight_bits", "activation_bits", "cin", "cout", "window", "stride", "groups", "input_size",
    "output_size", "fused", "input_elements", "output_elements",
)


def facts(view):
    """Of a mean over space the file does not say whether its empty dimensions stay: that costs nothing."""
    flat = [replace(one, output_size=()) if one.family is Family.GLOBAL_POOL else one for one in view.kernels]
    kernels = [tuple(getattr(kernel, field) for field in FIELDS) for kernel in flat]
    boundaries = sorted((item.kind, item.elements, item.rank) for item in view.boundaries)
    return kernels, boundaries, peak_bytes(view.lifetimes, len(kernels))


@pytest.mark.parametrize("mode", ["float32", "int8", "mixed"])
def test_random_networks_are_read_back_as_they_were_built(mode, tmp_path):
    path, compared = tmp_path / "network.onnx", 0
    for seed in range(16):
        network = random_network(seed, mode)
        if is_described_otherwise(network.view, mode):
            continue
        path.write_bytes(network.model)
        view = onnx_view(path)
        assert facts(view) == facts(network.view), (mode, seed)
        assert view.weight_bytes == network.view.weight_bytes
        compared += 1
    assert compared >= 8


def is_described_otherwise(view, mode):
    """Networks that are built with what a file does not tell: dimensions of tokens; pools of floats that stand between
    integers, which the runtime computes in integers."""
    families = {kernel.family for kernel in view.kernels}
    pools = [kernel for kernel in view.kernels if kernel.family in (Family.POOL, Family.GLOBAL_POOL)]
    return Family.MATMUL in families or (mode != "float32" and any(pool.activation_bits == 32 for pool in pools))


def model(nodes, weights, inputs=((1, 8, 6, 6),), outputs=("y",), opset=20):
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(inputs)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def read(tmp_path, *args, **kwargs):
    path = tmp_path / "model.onnx"
    onnx.save(model(*args, **kwargs), str(path))
    return onnx_view(path)


ONES = np.ones(16, np.float32)


def test_normalisation_and_activation_are_folded(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x0", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    view = read(tmp_path, nodes, {"w": np.ones((16, 8, 3, 3), np.float32), "s": ONES})
    (kernel,) = view.kernels
    assert (kernel.family, kernel.fused, kernel.stride) == (Family.CONV, ("relu",), (2, 2))
    assert kernel.macs == 16 * 8 * 9 * 9


def test_linear_layers_in_both_spellings(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x0", "w"], ["a"]),
        helper.make_node("Add", ["a", "s"], ["b"]),
        helper.make_node("Gemm", ["b", "v"], ["y"], transB=1),
    ]
    weights = {"w": np.ones((8, 16), np.float32), "s": ONES, "v": np.ones((4, 16), np.float32)}
    view = read(tmp_path, nodes, weights, inputs=((3, 8),))
    assert [(k.family, k.cin, k.cout, k.rows) for k in view.kernels] == [
        (Family.LINEAR, 8, 16, 3), (Family.LINEAR, 16, 4, 3),
    ]
    assert view.macs == 3 * (8 * 16 + 16 * 4)


def test_products_of_activations_and_unknown_operators(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x0", "x1"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("Det", ["b"], ["y"]),
    ]
    view = read(tmp_path, nodes, {}, inputs=((2, 5, 7), (2, 7, 5)))
    assert [kernel.family for kernel in view.kernels] == [Family.MATMUL, Family.ELEMENTWISE, Family.OTHER]
    assert view.macs == 2 * 5 * 7 * 5


def test_shapes_are_no_kernels(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x0"], ["a"]),
        helper.make_node("Gather", ["a", "zero"], ["b"]),
        helper.make_node("Relu", ["x0"], ["y"]),
    ]
    view = read(tmp_path, nodes, {"zero": np.array(0, np.int64)})
    assert [kernel.family for kernel in view.kernels] == [Family.ELEMENTWISE]


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(ProfileError, match="no such file"):
        onnx_view(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("conv, please")
    with pytest.raises(ProfileError, match=r"text.onnx: not an ONNX model"):
        onnx_view(tmp_path / "text.onnx")
    then = helper.make_graph([helper.make_node("Relu", ["x0"], ["t"])], "then", [],
                             [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)])
    branch = [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=then)]
    with pytest.raises(ProfileError, match="If branches at run time"):
        read(tmp_path, branch, {"c": np.array(True)})


@pytest.mark.parametrize(("bits", "activations"), [
    (8, 8), (8, 32), pytest.param(4, 8, marks=pytest.mark.slow),
])
def test_an_exported_model_is_priced_as_its_plan(bits, activations, tmp_path):
    """What users measure is the exported file; searches price the plan."""
    compressed = paretopress.quantize(factories.model(), factories.data(), bits, activations, refit=False)
    path = tmp_path / "small.onnx"
    compressed.export_onnx(path)
    view, planned = onnx_view(path), cost_view(plan(compressed.program.structure, compressed.policy))
    assert view.macs == planned.macs
    assert [(k.family, k.activation_bits, k.fused) for k in view.kernels] == [
        (k.family, k.activation_bits, k.fused) for k in planned.kernels
    ]
    assert view.weight_bytes == planned.weight_bytes
    profile = load_profile("x86-zen4-vnni-onnxruntime")
    assert profile.latency_ms(view).mid == pytest.approx(profile.latency_ms(planned).mid, rel=1e-9)
