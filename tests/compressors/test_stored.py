"""Stored weights: rows can be multiplied by anything, and everything comes back from what is written."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paretopress.compressors.matrices import Matrix, in_format, plain_mask, table_in_format
from paretopress.compressors.stored import Integers, read_stored, written
from paretopress.spaces.choices import Binary, Clustered, Half, Sparse, Weights
from paretopress.spaces.errors import ArtifactError, PolicyError
from paretopress.spaces.stored_weights import stored_forms

AFFINE = (Weights(4, 32, "asymmetric", 16), Weights(3, 32, "symmetric", 16), Weights(2, 32, "asymmetric"),
          Weights(8, 32, "tensor"))
FORMS = (None, Weights(2, 32), Weights(8, 32), *AFFINE, Half("fp16"), Half("bf16"), Clustered(3), Binary(1), Binary(3))
SPARSITIES = (None, Sparse(0.5), Sparse(0.04), Sparse(0.5, "2:4"), Sparse(0.75, "3:4"), Sparse(0.4, "2x3"))
CASES = [(form, sparse) for form in FORMS for sparse in SPARSITIES
         if (form or sparse) and not (isinstance(form, Binary) and sparse)]


def stored_matrix(form, sparse, rows=9, columns=21, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    x = torch.cat([x, torch.ones(200, 1)], dim=1).double()
    dense = Matrix(torch.randn(rows, columns, generator=generator), torch.randn(rows, generator=generator))
    return dense, in_format(dense, x.T @ x / 200, form, sparse)


@pytest.mark.parametrize(("form", "sparse"), CASES, ids=str)
def test_what_is_written_comes_back_in_the_bytes_that_were_planned(form, sparse):
    _, matrix = stored_matrix(form, sparse)
    tensors = written(matrix.stored)
    planned = stored_forms(form, sparse, 9, 21)
    assert {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()} == {
        name: (one.shape, one.dtype) for name, one in planned.items()}
    assert sum(t.nbytes for t in tensors.values()) == sum(one.size_bytes for one in planned.values())
    again = read_stored(form, sparse, (9, 7, 3), tensors.__getitem__)
    assert torch.equal(again.weight(), matrix.weight)
    assert torch.equal(matrix.stored.weight(), matrix.weight)


@pytest.mark.parametrize(("form", "sparse"), CASES, ids=str)
def test_rows_are_multiplied_by_anything(form, sparse):
    _, matrix = stored_matrix(form, sparse)
    factors = torch.tensor([1.0, -2.0, 0.0, 0.5, 1e-38, -1e-3, 3.0, 1.0, -1.0])
    scaled = matrix.stored.scaled(factors)
    # 16-bit floats are rounded again, and what has one scale for all rows.
    tolerance = 2.0**-8 if isinstance(form, Half) else 1e-6
    wanted = matrix.weight * factors.unsqueeze(1)
    if form == Weights(8, 32, "tensor"):
        assert bool(((scaled.weight() - wanted).abs() <= wanted.abs().max() / 250).all())
        return
    assert bool(((scaled.weight() - wanted).abs() <= tolerance * wanted.abs() + 1e-7).all())
    if scaled.rows() is not None:
        integers, scales = scaled.rows()
        assert bool((scales > 0.0).all())
        torch.testing.assert_close(integers.float() * scales.unsqueeze(1), scaled.weight(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("form", "sparse"), CASES, ids=str)
def test_a_finer_format_is_nearer_and_a_bias_keeps_the_mean(form, sparse):
    dense, matrix = stored_matrix(form, sparse)
    assert not torch.equal(matrix.weight, dense.weight)
    share = (matrix.weight != 0).float().mean()
    assert float(share) <= (sparse.density + 0.1 if sparse else 1.0)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SPARSITIES[1:]), st.sampled_from([None, Half("fp16"), Weights(4, 32), Clustered(2)]),
       st.integers(1, 12), st.integers(1, 20), st.integers(0, 100))
def test_tables_are_stored_alike(sparse, form, rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    matrix = table_in_format(weight, form, sparse)
    again = read_stored(form, sparse, (rows, columns), written(matrix.stored).__getitem__)
    assert torch.equal(again.weight(), matrix.weight)
    assert torch.equal(matrix.weight != 0, (matrix.weight != 0) & plain_mask(weight, sparse))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0.1, 0.3, 0.5, 0.7]), st.sampled_from(["unstructured", "2x3", "1x1"]), st.integers(1, 12),
       st.integers(1, 20))
@example(0.1, "unstructured", 3, 15)   # 4.5 of 45: products of three factors round otherwise
def test_as_many_weights_are_kept_as_are_planned(density, pattern, rows, columns):
    sparse = Sparse(density, pattern)
    matrix = table_in_format(torch.randn(rows, columns), None, sparse)
    assert {name: tuple(t.shape) for name, t in written(matrix.stored).items()} == {
        name: one.shape for name, one in stored_forms(None, sparse, rows, columns).items()}


def test_what_cannot_be_is_refused():
    with pytest.raises(PolicyError, match="embedding"):
        table_in_format(torch.ones(2, 2), Binary(1), None)
    with pytest.raises(PolicyError, match="signs cannot be sparse"):
        in_format(Matrix(torch.ones(2, 4), None), torch.eye(5), Binary(1), Sparse(0.5))
    form, sparse = Weights(4, 32), Sparse(0.5, "2x3")
    tensors = written(stored_matrix(form, sparse)[1].stored)
    tensors["blocks"] = tensors["blocks"] ^ 1
    with pytest.raises(ArtifactError, match="blocks are marked"):
        read_stored(form, sparse, (9, 21), tensors.__getitem__)


def test_rows_that_vanish_keep_a_scale():
    """Biases of integer layers are rounded to multiples of it."""
    stored = Integers(torch.ones(2, 3, dtype=torch.int8), torch.tensor([0.5, 0.5]), 8).scaled(torch.tensor([0.0, 2.0]))
    assert stored.integers.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert stored.scales.tolist() == [0.5, 1.0]
