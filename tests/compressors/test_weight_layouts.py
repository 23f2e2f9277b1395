"""Layers of every layout: what stands in the user's modules, what runs in ONNX Runtime, and in which operators."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from artefact_models import POLICIES, cases, choices_of, prepared, rounds, same
from layout_models import LAYOUTS, Attention, Columns
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.compressed_model import load
from paretopress.compressors.delta import Delta, LayerEdit, edit_from_plain, edit_to_plain
from paretopress.compressors.distillation import DistillationSettings, distil
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import ArtifactError, PolicyError
from paretopress.spaces.kernels import Family
from paretopress.spaces.layers import Holder
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


def optimised(path):
    """Operators of the graph that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize(("name", "policy"), cases(LAYOUTS))
def test_onnx_runtime_computes_what_the_model_computes(name, policy, tmp_path):
    item = prepared(name)
    network = item.network(choices_of(item, **POLICIES[policy]))
    export_onnx(item.program, network, tmp_path / "model.onnx")
    found = run_session(session(tmp_path / "model.onnx"), item.inputs)[0]
    with torch.no_grad():
        expected = forward(item.program, network, item.inputs)
    # A float rounding apart moves single values to the next step of a rounded tensor.
    tolerance = 0.02 if rounds(network) else 1e-5
    assert (found - expected).norm() <= tolerance * expected.norm()


def test_the_layers_of_gpt2_run_as_integers(tmp_path):
    item = prepared("gpt2")
    network = item.network(choices_of(item, bits=8, activations=8))
    export_onnx(item.program, network, tmp_path / "model.onnx")
    assert optimised(tmp_path / "model.onnx")["QGemm"] == 8
    item = prepared("products")
    export_onnx(item.program, item.network(choices_of(item, bits=8, activations=8)), tmp_path / "products.onnx")
    kinds = optimised(tmp_path / "products.onnx")
    assert kinds["MatMul"] == kinds["Gemm"] == kinds["FusedMatMul"] == 0, kinds


def test_conv1d_keeps_its_class_and_layout(tmp_path):
    item = prepared("gpt2")
    block, dense = "model.transformer.h.0.mlp", item.model.model.transformer.h[0].mlp
    network = item.network({
        f"{block}.c_fc/channels": Keep(0.5), f"{block}.c_proj/rank": Factorised("svd", 5),
        f"{block}.c_fc/weights": Weights(4, 32), f"{block}.c_proj/weights": Weights(3, 32),
    })
    compressed = realise(item.model, item.program, network)
    assert compressed.delta.graph == ""
    fc, (first, second) = (getattr(compressed.network.model.transformer.h[0].mlp, name) for name in ("c_fc", "c_proj"))
    assert {type(fc), type(first), type(second)} == {type(dense.c_fc)}
    assert (tuple(fc.weight.shape), fc.nf) == ((16, 32), 32)
    assert (tuple(first.weight.shape), first.nf, tuple(second.weight.shape), second.nf) == ((32, 5), 5, (5, 16), 16)
    state = compressed.network.state_dict()
    names = {name.removeprefix(block + ".") for name in state if name.startswith(block)}
    assert names == {
        "c_fc.weight_packed", "c_fc.weight_scale", "c_fc.bias", "c_proj.0.weight_packed", "c_proj.0.weight_scale",
        "c_proj.1.weight_packed", "c_proj.1.weight_scale", "c_proj.1.bias",
    }
    assert len(state[f"{block}.c_fc.weight_packed"]) == 16 * 32 // 2
    with torch.no_grad():
        assert same(compressed.network(*item.args), forward(item.program, network, item.inputs))
        compressed.save(tmp_path / "artefact")
        assert same(load(tmp_path / "artefact", item.model)(*item.args), compressed(*item.args))


def test_parameters_of_the_users_code_stay_where_they_are(tmp_path):
    item = prepared("products")
    layers = {layer.name: layer for layer in item.program.structure.layers}
    assert {name: layer.holder for name, layer in layers.items()} == {
        **dict.fromkeys(("first", "second", "third", "fourth", "fifth", "inner"), Holder.CODE),
        "own": Holder.OWN, "head": Holder.MODULE,
    }
    assert [name for name, layer in layers.items() if layer.flipped] == ["first", "fourth", "own"]
    network = item.network({"first/weights": Weights(4, 32), "own/rank": Factorised("svd", 4)})
    compressed = realise(item.model, item.program, network)
    assert compressed.delta.graph == ""
    assert [type(part) for part in compressed.network.own] == [Columns, Columns]
    assert compressed.network.first.shape == (8, 16)
    assert {"first_packed", "first_scale", "own.0.weight", "own.1.weight"} <= set(compressed.network.state_dict())


def test_two_factors_of_a_parameter_run_as_captured(tmp_path):
    item = prepared("products")
    network = item.network({"third/rank": Factorised("svd", 4), "third/weights": Weights(8, 32)})
    compressed = realise(item.model, item.program, network)
    assert "no place for two factors of the parameter 'third'" in compressed.delta.graph
    state = compressed.network.state_dict()
    assert "third" not in state
    assert {"third_first_packed", "third_second_packed", "third_first_scale", "third_second_scale"} <= set(state)
    with torch.no_grad():
        assert same(compressed(*item.args), forward(item.program, network, item.inputs))
        by_hand = compressed.network(*item.args)   # the user's code reads the product of the factors
        torch.testing.assert_close(by_hand, compressed(*item.args), rtol=1e-4, atol=1e-5)
    compressed.save(tmp_path / "artefact")
    with torch.no_grad():
        assert same(load(tmp_path / "artefact", item.model)(*item.args), compressed(*item.args))


def test_transposed_convolutions_and_tables_in_the_users_modules():
    item = prepared("upsampling")
    network = item.network({"wide/rank": Factorised("svd", 3), "up/channels": Keep(0.5), "up/weights": Weights(4, 32)})
    realised = realise(item.model, item.program, network).network
    first, second = realised.wide
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.ConvTranspose2d)
    assert (tuple(first.weight.shape), tuple(second.weight.shape)) == ((3, 12, 1, 1), (3, 8, 3, 3))
    assert (realised.up.in_channels, realised.up.out_channels) == (16, 4)
    assert tuple(realised.up.weight.shape) == (16, 4, 2, 2)
    assert realised.up.bias is not None   # the normalisation behind it is folded
    table = prepared("table")
    network = table.network({"words/channels": Keep(0.5), "words/weights": Weights(2, 32)} if
                            "words/channels" in table.options else {"words/weights": Weights(2, 32)})
    words = realise(table.model, table.program, network).network.words
    assert isinstance(words, nn.Embedding)
    assert words.weight_scale.shape == (30,)
    assert words.embedding_dim == words.weight.shape[1]
    assert not words.weight[0].any()   # the row of the padding stays zero


def test_the_table_stays_in_integers_in_the_exported_file(tmp_path):
    item = prepared("table")
    export_onnx(item.program, item.network({"words/weights": Weights(8, 32)}), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    (integers,) = (tensor for tensor in graph.initializer if list(tensor.dims) == [30, 16])
    assert integers.data_type == onnx.TensorProto.INT8
    (reader,) = (node for node in graph.node if integers.name in node.input)
    assert reader.op_type == "Gather"


@pytest.mark.parametrize(("name", "unit"), [("upsampling", "up/weights"), ("table", "words/weights")])
def test_integer_activations_are_refused_where_no_kernel_has_them(name, unit):
    with pytest.raises(PolicyError, match="no kernel computes layers of this kind"):
        plan(prepared(name).program.structure, Policy.of({unit: Weights(8, 8)}))


def test_torchs_attention_is_compressed_though_its_child_is_never_called():
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(32, 3, 6)
    program = build_program(model, (x[:2],))
    calibration = calibrate(program, [[x]])
    names = [layer.name for layer in program.structure.layers if not layer.frozen]
    assert names == ["stem", "inner.in_proj_weight", "inner.out_proj", "head"]
    for choices in (
        program.structure.takers(Weights(8, 32)),
        {f"{name}/rank": Factorised("svd", 4) for name in names},
    ):
        planned = plan(program.structure, Policy.of(choices))
        network, _ = tune(program, Entries(program, calibration).stitch(planned), calibration)
        compressed = realise(model, program, network)
        assert ("factors" in compressed.delta.graph) == ("stem/rank" in choices)
        with torch.no_grad():   # PyTorch's own code for inference rounds otherwise than its composition
            torch.testing.assert_close(compressed(x), forward(program, network, [x]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_refitting_and_distilling_bring_every_layout_nearer(name):
    item = prepared(name)
    choices = choices_of(item, keep=name != "gpt2", bits=4)
    planned = plan(item.program.structure, Policy.of(choices))
    with torch.no_grad():
        dense = item.model(*item.args)
        tuned = item.network(choices)
        fitted = refit(item.program, item.entries, planned, item.inputs)
        errors = [float((forward(item.program, n, item.inputs) - dense).norm()) for n in (tuned, fitted)]
    assert errors[1] < errors[0]
    distilled = distil(item.program, fitted, item.inputs, DistillationSettings(steps=30, batch_size=16))
    assert distilled.after <= distilled.before
    with torch.no_grad():
        assert same(realise(item.model, item.program, distilled.network)(*item.args),
                    forward(item.program, distilled.network, item.inputs))


def test_what_is_priced_is_what_runs():
    item = prepared("gpt2")
    view = cost_view(plan(item.program.structure, Policy()))
    linear = {kernel.layer: kernel for kernel in view.kernels if kernel.family is Family.LINEAR}
    fc = linear["model.transformer.h.0.mlp.c_fc"]
    assert (fc.rows, fc.cin, fc.cout, fc.macs) == (4, 16, 64, 4 * 16 * 64)   # four words in one sample
    assert linear["model.transformer.wte"].macs == 4 * 16 * 30               # the tied head
    item = prepared("upsampling")
    dense, factored = (
        {kernel.name: kernel for kernel in cost_view(plan(item.program.structure, Policy.of(choices))).kernels}
        for choices in ({}, {"wide/rank": Factorised("svd", 3)})
    )
    (wide,) = (kernel for kernel in dense.values() if kernel.layer == "wide")
    assert wide.family is Family.TRANSPOSED
    assert wide.macs == 12 * 8 * 9 * 6 * 6    # every input position meets the whole window
    assert factored["wide:first"].macs + factored[wide.name].macs == (12 * 3 + 3 * 8 * 9) * 6 * 6


def test_edits_are_written_and_read_without_loss_and_checked():
    item = prepared("gpt2")
    delta = realise(item.model, item.program, item.network(choices_of(item, bits=4))).delta
    assert Delta.from_plain(delta.to_plain(), "delta") == delta
    edit = next(edit for edit in delta.edits if isinstance(edit, LayerEdit) and edit.held is not None)
    plain = edit_to_plain(edit)
    assert edit_from_plain(plain, "delta") == edit
    for change in ({"weight": "forward"}, {"holder": "nobody"}, {"kind": 3}, {"flipped": "yes"}, {"more": 1}):
        with pytest.raises(ArtifactError, match="delta: 'model"):
            edit_from_plain({**plain, "held": {**plain["held"], **change}}, "delta")


