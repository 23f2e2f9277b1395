"""ONNX files of encoders with padding: written by our own rules, small graphs, integer products with float biases."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import paretopress
from paretopress.compressors.export_onnx import run_session, session
from paretopress.spaces.policy import DENSE

transformers = pytest.importorskip("transformers")


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=12,
            initializer_range=0.3,
        )
        self.bert = transformers.BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids, attention_mask):
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.mean(1)


def tokens(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (count, 12), generator=generator)
    lengths = torch.randint(1, 13, (count, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(12) < lengths).to(torch.int64)}


@pytest.fixture(scope="module")
def encoder():
    return Encoder().eval()


@pytest.fixture(scope="module")
def integers(encoder):
    return paretopress.quantize(encoder, tokens(64), 8, refit=False)


def test_the_file_is_written_without_torch_onnx_and_computes_the_same(integers, tmp_path, monkeypatch):
    monkeypatch.setattr("paretopress.compressors.onnx_tracing.traced_model", None)   # it would be called
    path = integers.export_onnx(tmp_path / "model.onnx")
    opened = session(path)
    for count in (1, 5):
        inputs = tokens(count, seed=count)
        inputs["attention_mask"][0] = 0   # a sample of nothing but padding: its queries may look at nothing
        (found,) = run_session(opened, list(inputs.values()))
        with torch.inference_mode():
            torch.testing.assert_close(found, integers(**inputs), rtol=0.02, atol=0.02)


def test_masks_are_made_once_and_biases_of_products_are_constants(integers, tmp_path):
    graph = onnx.load(integers.export_onnx(tmp_path / "model.onnx")).graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["Softmax"] == 2
    assert counts["Where"] == counts["ReduceMax"] == 1
    assert not {"IsNaN", "GatherND", "GatherElements", "Range"} & counts.keys()
    dequantised = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert not [name for name in dequantised if "bias" in name]


def test_half_of_the_heads_and_of_the_feed_forward_width_go(encoder, tmp_path):
    groups = {"*query": 0.5, "*intermediate.dense": 0.5}
    small = paretopress.prune(encoder, tokens(64), groups, refit=False)
    inputs = tokens(3, seed=9)
    (found,) = run_session(session(small.export_onnx(tmp_path / "small.onnx")), list(inputs.values()))
    with torch.inference_mode():
        torch.testing.assert_close(found, small(**inputs), rtol=1e-4, atol=1e-5)
    assert small.size_bytes < 0.8 * sum(4 * one.numel() for one in encoder.parameters())


@pytest.mark.parametrize("format_", ["dense", "integers"])
def test_residual_sums_stay_out_of_the_slow_normalisation(encoder, integers, format_, tmp_path):
    model = integers if format_ == "integers" else paretopress.apply(encoder, tokens(64), DENSE, refit=False)
    path = model.export_onnx(tmp_path / "model.onnx")
    written = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert written["Sum"] == 5   # two of each layer, and one of the embeddings
    options = onnxruntime.SessionOptions()   # as anyone opens it
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert run["SkipLayerNormalization"] == 0
    assert run["Sum"] == written["Sum"]
    assert run["LayerNormalization"] == 5


def test_sums_that_nothing_merges_with_a_normalisation_stay_additions(tmp_path):
    class Pictures(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.LayerNorm((3, 6, 6))

        def forward(self, x):
            return self.norm(x + self.convolution(x)).flatten(1)   # the convolution's kernel adds

    dense = paretopress.apply(Pictures().eval(), torch.randn(8, 3, 6, 6), DENSE, refit=False)
    written = Counter(node.op_type for node in onnx.load(dense.export_onnx(tmp_path / "model.onnx")).graph.node)
    assert written["Add"] == 1
    assert written["Sum"] == 0
