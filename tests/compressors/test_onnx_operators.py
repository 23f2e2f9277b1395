"""Every rule writes an ONNX graph that computes what PyTorch computes, also at other batch sizes."""

import functools
from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from artefact_models import POLICIES, choices_of, prepared
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.compressors.export_onnx import export_onnx, run_session, session, translated_model
from paretopress.compressors.network import dense_network
from paretopress.compressors.onnx_operators import RULES
from paretopress.compressors.onnx_passes import rewrite
from paretopress.compressors.onnx_tracing import traced_model
from paretopress.compressors.onnx_values import UntranslatableError
from paretopress.compressors.program import build_program
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE

IMAGE, ROWS = (4, 6, 6), (5, 8)


class Chain(nn.Module):
    """A layer, so that there is something to compress, and the operators under test behind it."""

    def __init__(self, function, shape):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1) if len(shape) == 3 else nn.Linear(shape[-1], shape[-1])
        self.function = function
        self.inner = function if isinstance(function, nn.Module) else None

    def forward(self, x):
        return self.function(self.first(x))


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.table(x)).mean(1)


def scaled_product(x):
    return torch.addmm(x.mean((0, 1), keepdim=True), x, x.mean(0, keepdim=True).transpose(0, 1), beta=2.0, alpha=0.5)


def attention_of_some(x):
    """A query may look at the positive keys of its own sample; one that may look at none gets zeros."""
    allowed = (x.sum(-1) > 0.3)[:, None, :] & (x.sum(-1) > -9.0)[:, :, None]
    return F.scaled_dot_product_attention(x, x * 2, x + 1, attn_mask=allowed)


def attention_of_neighbours(x):
    places = torch.arange(x.shape[1])
    return F.scaled_dot_product_attention(x, x, x + 1, attn_mask=(places[:, None] - places).abs() < 2)


def looked_up_by_batch(x):
    """How the transformers library reads a padding mask: by the numbers of samples and places."""
    samples, places = torch.arange(x.shape[0])[:, None, None, None], torch.arange(x.shape[1])[None, None, None, :]
    kept = (places >= 0) & (samples >= 0)
    rows = torch.logical_and((x > 0)[:, :, 0][samples, places], torch.bitwise_and(kept, kept))
    return x * rows[:, 0, 0, :, None].expand(-1, -1, x.shape[2]).to(x.dtype)


def case(function, shape=IMAGE):
    return function, shape


CASES = {
    **{
        name: case(getattr(torch, name))
        for name in ("relu", "sigmoid", "tanh", "exp", "abs", "neg", "erf")
    },
    **{
        name: case(getattr(F, name))
        for name in ("relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "leaky_relu")
    },
    "sqrt": case(lambda x: torch.sqrt(torch.abs(x))),
    "gelu tanh": case(lambda x: F.gelu(x, approximate="tanh")),
    "leaky": case(lambda x: F.leaky_relu(x, 0.3)),
    "clamp": case(lambda x: torch.clamp(x, -0.2, 0.3)),
    "clamp below": case(lambda x: torch.clamp(x, min=0.1)),
    "clamp above": case(lambda x: torch.clamp(x, max=0.1)),
    "numbers": case(lambda x: (x + 1) * 2.5 - 3 / 2),
    "divisions": case(lambda x: x / 3.0 + x / (x.abs() + 1.0)),
    "broadcast": case(lambda x: x - x.mean((2, 3), keepdim=True)),
    "softmax": case(lambda x: torch.softmax(x, 1)),
    "dropout": case(nn.Dropout()),
    "view": case(lambda x: x.reshape(x.shape[0], 4, -1).view(x.shape[0], -1)),
    "view with the batch last": case(lambda x: x.permute(1, 2, 3, 0).reshape(4, 36, x.shape[0]).transpose(0, 2)),
    "unflatten": case(lambda x: x.unflatten(1, (2, 2)).flatten(2)),
    "squeeze": case(lambda x: x[:, :1].squeeze(1).unsqueeze(3)),
    "merged batch": case(lambda x: F.softmax(x.reshape(-1, 6), 1).reshape(x.shape[0], 4, 6, 6)),
    "transpose": case(lambda x: x.transpose(1, -1)),
    "contiguous": case(lambda x: x.permute(0, 2, 3, 1).contiguous().clone().detach()),
    "t": case(lambda x: (x.mean((2, 3)).t() * 2).t()),
    "slice": case(lambda x: x[:, 1:3, ::2, -4:-1]),
    "select": case(lambda x: x[:, -1] + x.select(1, 0)),
    "unbind": case(lambda x: x.unbind(1)[0] * x.unbind(1)[3]),
    "split": case(lambda x: x.split(3, 1)[1] + x.chunk(4, 1)[0] + x.split([1, 2, 1], 1)[2]),
    "cat": case(lambda x: torch.cat([x, x * 2], 1)),
    "concat of batches": case(lambda x: torch.cat([x, x * 2], 0)),
    "stack": case(lambda x: torch.stack([x, x * 2], -1)),
    "zeros": case(lambda x: F.pad(x, (1, 2, 0, 1))),
    "ones": case(lambda x: F.pad(x, (0, 0, 2, 0), value=1.0)),
    "channels": case(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))),
    "reflected": case(lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect")),
    "replicated": case(lambda x: F.pad(x, (1, 2, 3, 1), mode="replicate")),
    "circular": case(lambda x: F.pad(x, (1, 2, 3, 1), mode="circular")),
    "constant_pad_nd": case(lambda x: torch.constant_pad_nd(x, (1, 2), 0.5)),
    "means": case(lambda x: x.mean(1) + x.mean() + x.mean((2, 3), keepdim=True).sum(1)),
    "sums": case(lambda x: x.sum((1, -1), keepdim=True) + x.sum()),
    "extremes": case(lambda x: x.amax((2, 3)) - x.amin(-1, keepdim=True).amin((2, 3))),
    "adaptive": case(lambda x: F.adaptive_avg_pool2d(x, (3, 2)) + F.adaptive_avg_pool2d(x, 1)),
    "adaptive of rows": case(lambda x: F.adaptive_avg_pool1d(x, 4) + F.adaptive_avg_pool1d(x, 1), ROWS),
    "average": case(lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "average without the padding": case(lambda x: F.avg_pool2d(x, (3, 2), padding=1, count_include_pad=False)),
    "average with a divisor": case(lambda x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False, divisor_override=3)),
    "average of all": case(lambda x: F.avg_pool2d(x, 6)),
    "average of rows": case(lambda x: F.avg_pool1d(x, 2), ROWS),
    "maximum": case(lambda x: F.max_pool2d(x, 3, 2, 1)),
    "dilated maximum": case(lambda x: F.max_pool2d(x, 2, 1, dilation=2)),
    "maximum of rows": case(lambda x: F.max_pool1d(x, 2), ROWS),
    "convolution": case(nn.Conv2d(4, 6, 3, (2, 1), (1, 2), dilation=(1, 2), groups=2, bias=False)),
    "same": case(nn.Conv2d(4, 4, (3, 4), padding="same")),
    "valid": case(nn.Conv2d(4, 4, 3, padding="valid")),
    "convolution of rows": case(nn.Conv1d(5, 4, 3, 2, 1), ROWS),
    "batch norm": case(nn.BatchNorm2d(4)),
    "batch norm without parameters": case(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, affine=False))),
    "batch norm of rows": case(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5)), ROWS),
    "batch norm of a linear layer": case(nn.Sequential(nn.Linear(8, 7), nn.BatchNorm1d(7)), (8,)),
    "batch norm of a plain convolution": case(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6))),
    "layer norm": case(nn.LayerNorm((5, 8)), ROWS),
    "layer norm without parameters": case(nn.LayerNorm(8, elementwise_affine=False), ROWS),
    "group norm": case(nn.GroupNorm(2, 4)),
    "group norm without parameters": case(nn.GroupNorm(2, 4, affine=False)),
    "addmm": case(scaled_product, (8,)),
    "conv_transpose1d": case(nn.ConvTranspose1d(5, 3, 3, 2, 1, 1, bias=False, dilation=2), ROWS),
    "conv_transpose2d": case(nn.ConvTranspose2d(4, 6, (2, 3), 2, (0, 1), (1, 0), groups=2)),
    "linear": case(nn.Linear(8, 3, bias=False), (8,)),
    "linear of rows": case(nn.Linear(8, 3, bias=False), ROWS),
    "linear with a bias of rows": case(nn.Linear(8, 3), ROWS),
    "products": case(lambda x: torch.matmul(x, x.transpose(1, 2)) + torch.bmm(x, x.transpose(1, 2)), ROWS),
    "mm": case(lambda x: torch.mm(x, torch.mm(x.t(), x)), (8,)),
    "attention": case(lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1, scale=0.3)),
    "causal attention": case(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), ROWS),
    "attention of neighbours": case(attention_of_neighbours, ROWS),
    "attention of some": case(attention_of_some, ROWS),
    "looked up by batch": case(looked_up_by_batch, ROWS),
    "looked up": case(lambda x: x[:, torch.tensor([3, 0, 3])] + x[:, :3, torch.arange(7, -1, -1)], ROWS),
    "expansions": case(lambda x: x[:, :1].expand(-1, 5, -1) * x[:, :, :1].expand_as(x), ROWS),
    "expansion to the batch": case(lambda x: x + torch.arange(8.0).expand(x.shape[0], 5, 8).flip(2), ROWS),
    "bounds": case(lambda x: torch.clamp_min(x, -0.1) + torch.clamp_max(x, 0.2)),
    "length": case(lambda x: F.normalize(x, dim=1) + torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)),
    "both": case(lambda x: x * ((x > 0) & (x < 1)).to(x.dtype)),
    "comparisons": case(lambda x: (x >= x.mean()).to(x.dtype) + (x <= 0.5).to(x.dtype) + (x == x.amax()).to(x.dtype)),
    "types": case(lambda x: x * x.to(torch.int64).to(torch.float32)),
}


def captured(model, x):
    """The model's program and its dense network, normalisations given statistics that are not trivial."""
    for module in model.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm) and tensor is not None:
                nn.init.uniform_(tensor, 0.5, 1.5)
    program = build_program(model.eval().requires_grad_(False), (x,))
    return program, dense_network(program, plan(program.structure, DENSE))


@functools.cache
def chain(name):
    """A case's model, program and dense network."""
    torch.manual_seed(0)
    function, shape = CASES[name]
    model = Chain(function, shape)
    return model, *captured(model, torch.randn(2, *shape))


def check_same(model, path, x):
    with torch.no_grad():
        wanted = model(x)
    (found,) = run_session(session(path), [x])
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_computes_what_pytorch_computes(name, tmp_path):
    (model, program, network), path = chain(name), tmp_path / "model.onnx"
    translated_model(program, network)   # does not raise: nothing here goes through torch.onnx
    export_onnx(program, network, path)
    for count in (2, 1, 5) if program.graph.dynamic_batch else (2,):
        check_same(model, path, torch.randn(count, *CASES[name][1]))
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)   # the stored shapes are right
    first = proto.graph.input[0].type.tensor_type.shape.dim[0]
    assert (first.dim_param == "batch") == program.graph.dynamic_batch


def test_a_lookup_takes_integers(tmp_path):
    model, x = Lookup(), torch.arange(10).reshape(2, 5)
    program, network = captured(model, x)
    translated_model(program, network)
    export_onnx(program, network, tmp_path / "model.onnx")
    check_same(model, tmp_path / "model.onnx", torch.tensor([[10, 3, 3, 0, 1]]))


POOLED = {
    "maximum": lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 2),
    "maximum that pads too": lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2, 1),
    "maximum of rows": lambda x: F.max_pool1d(F.pad(x.flatten(1, 2), (1, 0)), 2),
    "padded twice": lambda x: F.max_pool2d(F.pad(F.pad(x, (1, 1)), (0, 0, 1, 1)), 2),
    "behind dropout": lambda x: F.max_pool2d(F.dropout(F.pad(x, (1, 1, 1, 1)), training=False), 2),
    "read twice": lambda x: F.max_pool2d(F.pad(x, (0, 3)), 3) + F.max_pool2d(F.pad(x, (0, 3)), 3).sum(),
    "wide": lambda x: F.max_pool2d(F.pad(x, (2, 3, 0, 1)), 2),
    "average": lambda x: F.avg_pool2d(F.pad(x, (1, 2, 0, 1)), 2),
    "average that pads too": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 2, padding=1),
    "through torch.onnx": lambda x: F.max_pool2d(F.pad(torch.cumsum(x, 1), (1, 1, 1, 1)), 2),
}


@pytest.mark.parametrize("name", POOLED)
def test_a_zero_padding_in_front_of_a_pooling_is_zeros_in_every_session(name, tmp_path):
    """ONNX Runtime's default optimisations would merge the two and pool negative numbers as if never padded."""
    torch.manual_seed(0)
    model, x = Chain(POOLED[name], IMAGE), torch.randn(2, *IMAGE)
    with torch.no_grad():
        model.first.bias -= 20.0
    program, network = captured(model, x)
    export_onnx(program, network, tmp_path / "model.onnx")
    check_same(model, tmp_path / "model.onnx", x)
    defaults = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        torch.testing.assert_close(run_session(defaults, [x])[0], model(x), rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)


# The capture itself never leaves these in a graph, or they stand for another name of a tested rule.
SPELLINGS = {"_unsafe_view", "alias", "concat"}


def test_every_rule_is_tested():
    used = {node.short_op for name in CASES for node in chain(name)[1].graph.operators()} | {"embedding"}
    assert RULES.keys() - used <= SPELLINGS


REFUSED = {
    "no rule": lambda x: torch.cumsum(x, 1),
    "several types": lambda x: x * torch.ones(6, dtype=torch.float64),
    "ceiling": lambda x: F.max_pool2d(x, 4, 4, ceil_mode=True),
    "windows of several sizes": lambda x: F.adaptive_avg_pool2d(x, 4),
    "weighted sum": lambda x: torch.add(x, x, alpha=2),
    "attention with a mask of numbers": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x),
    "places that are computed": lambda x: x[:, (x > 0).sum((1, 2, 3)) * 0],
    "bits": lambda x: x * torch.bitwise_and(x.to(torch.int64), 3).to(x.dtype),
    "another norm": lambda x: x / torch.linalg.vector_norm(x, 1, dim=1, keepdim=True),
    "a number that depends on the batch": lambda x: x * x.shape[0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_refuses_what_it_does_not_cover(name):
    program, network = captured(Chain(REFUSED[name], IMAGE), torch.randn(2, *IMAGE))
    with pytest.raises(UntranslatableError):
        translated_model(program, network)


@pytest.mark.parametrize("name", ["no rule", "a number that depends on the batch"])
def test_what_no_rule_covers_is_exported_all_the_same(name, tmp_path):
    model, path = Chain(REFUSED[name], IMAGE), tmp_path / "model.onnx"
    program, network = captured(model, torch.randn(2, *IMAGE))
    export_onnx(program, network, path)
    for count in (2, 5):
        check_same(model, path, torch.randn(count, *IMAGE))


@pytest.mark.parametrize("policy", ["mixed", "w2"])
def test_rules_and_torch_quantise_in_the_same_places(policy, tmp_path):
    """Both ways of writing operators give the same graph with the same outputs, bit for bit."""
    item = prepared("resnet")
    network = item.network(choices_of(item, **POLICIES[policy]))
    program = item.program.under(network.plan.structure)
    protos = [rewrite(make(program, network)) for make in (translated_model, traced_model)]
    counts = [Counter(node.op_type for node in proto.graph.node) for proto in protos]
    expanded = [counts[0].pop(name, 0) for name in ("Cast", "Mul")]   # torch.onnx computes these at once
    assert counts[0] == counts[1]
    assert (counts[0]["DequantizeLinear"] > 0, min(expanded) > 0) == (policy == "mixed", policy == "w2")
    found = []
    for index, proto in enumerate(protos):
        onnx.save(proto, tmp_path / f"{index}.onnx")
        found.append(run_session(session(tmp_path / f"{index}.onnx"), item.inputs)[0])
    assert torch.equal(*found)


def test_the_file_names_no_trace_of_where_it_was_made(tmp_path):
    _, program, network = chain("batch norm of a plain convolution")
    export_onnx(program, network, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert [node.op_type for node in proto.graph.node] == ["Conv", "Conv"]   # the normalisation is in the weights
    assert [node.name for node in proto.graph.node] == ["conv2d", "conv2d_1"]
    assert not proto.metadata_props
    assert proto.ir_version == 10
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert b"/" not in b"".join(node.SerializeToString() for node in proto.graph.node)
