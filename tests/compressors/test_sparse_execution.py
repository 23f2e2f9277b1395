"""Sparse products: the same outputs up to rounding, and a reason wherever weights stay dense."""

import copy

import pytest
import torch
from torch import nn

import paretopress
from paretopress.compressors.sparse_execution import BREAK_EVEN, FEWEST_ROWS, SparseProduct, execute_sparse
from paretopress.spaces.errors import ConfigError


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(4, 8, 3, padding=1)
        self.wide = nn.Linear(8 * 16, 96)
        self.head = nn.Linear(96, 5, bias=False)

    def forward(self, x):
        return self.head(torch.relu(self.wide(torch.relu(self.stem(x)).flatten(1))))


def model():
    torch.manual_seed(0)
    return Classifier().eval()


def data():
    x = torch.randn(96, 4, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model()(x).argmax(1)
    return paretopress.Data(calibration=x[:64], search=(x[:64], y[:64]), holdout=(x[64:], y[64:]))


@pytest.fixture(scope="module", params=[0.1, 0.19])
def compressed(request):
    return paretopress.sparsify(model(), data(), density=request.param)


def test_linear_layers_below_the_break_even_are_executed_sparse_and_equal_the_dense_ones(compressed):
    x = torch.randn(3 * FEWEST_ROWS, 4, 16, generator=torch.Generator().manual_seed(2))
    one = copy.deepcopy(compressed)
    with torch.no_grad():
        expected = compressed(x)
        executed = {found.layer: found for found in execute_sparse(one)}
        assert isinstance(one.network.wide, SparseProduct)
        assert executed["wide"].reason == ""
        assert executed["wide"].density <= BREAK_EVEN
        assert "linear" in executed["stem"].reason
        torch.testing.assert_close(one(x), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(one(x[:1]), compressed(x[:1]))   # too few rows: the dense product
    assert one.state_dict().keys() == compressed.state_dict().keys()


def test_the_product_runs_on_the_sparse_weights_from_the_stated_number_of_rows_on(compressed):
    one = copy.deepcopy(compressed)
    execute_sparse(one)
    wide = one.network.wide
    wide.rows = wide.rows * 2.0   # shows which weights are used
    x = torch.randn(FEWEST_ROWS, wide.in_features)
    with torch.no_grad():
        dense = compressed.network.wide
        torch.testing.assert_close(wide(x) - wide.bias, 2.0 * (dense(x) - dense.bias), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(wide(x[1:]), dense(x[1:]))
        torch.testing.assert_close(wide(x.expand(2, *x.shape))[1], wide(x))


def test_what_is_stored_is_the_same_after_it(compressed, tmp_path):
    one = copy.deepcopy(compressed)
    execute_sparse(one)
    compressed.save(tmp_path / "before")
    one.save(tmp_path / "after")
    assert (tmp_path / "before/model.safetensors").read_bytes() == (tmp_path / "after/model.safetensors").read_bytes()
    loaded = paretopress.load(tmp_path / "after", model, sparse=True)
    assert isinstance(loaded.network.wide, SparseProduct)
    with pytest.raises(ConfigError, match="exclude each other"):
        paretopress.load(tmp_path / "after", model, sparse=True, packed=True)


def test_denser_layers_and_packed_ones_stay_with_the_reason(tmp_path):
    half = paretopress.sparsify(model(), data(), density=0.5)
    half.save(tmp_path / "half")
    assert {found.reason for found in execute_sparse(half) if found.layer == "wide"} == {
        f"dense is faster above a density of {BREAK_EVEN:g}"}
    few = paretopress.sparsify(model(), data(), density=0.1)
    few.save(tmp_path / "few")
    packed = execute_sparse(paretopress.load(tmp_path / "few", model, packed=True))
    assert {found.reason for found in packed if found.layer == "wide"} == {"its weights are kept packed"}
