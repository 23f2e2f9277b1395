"""The label-free loss against closed forms, and on outputs that are not finite."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.compressors.distillation_loss import output_loss, score_scale
from paretopress.evaluators.divergence import divergence


def test_logits_are_kullback_leibler_in_nats():
    """Of (9/10, 1/10) from (1/10, 9/10): 9/10 ln 9 - 1/10 ln 9 = 4/5 ln 9."""
    dense, candidate = torch.tensor([[math.log(9.0), 0.0]]), torch.tensor([[0.0, math.log(9.0)]])
    assert divergence([dense], [candidate]) == pytest.approx(0.8 * math.log(9.0), rel=1e-6)
    both = divergence([dense.repeat(2, 1)], [torch.cat([dense, candidate])])
    assert both == pytest.approx(0.4 * math.log(9.0), rel=1e-6)   # the mean over samples


@pytest.mark.parametrize("size", [0.01, 0.05, 0.9])
def test_embeddings_diverge_by_half_of_their_squared_error_whatever_their_size(size):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(64, 384, generator=generator)
    noise = 0.05 * torch.randn(64, 384, generator=generator)
    found = divergence([size * dense], [size * (dense + noise)])
    assert found == pytest.approx(0.5 * 0.05**2, rel=0.05)
    assert float(output_loss([size * dense], [size * (dense + noise)])) == pytest.approx(found, rel=1e-4)


def test_scores_that_are_a_nat_apart_are_taken_as_they_are():
    scores = torch.tensor([[1.5, -1.5, -math.inf], [2.0, -2.0, 0.0]])
    assert score_scale(scores) == 1.0
    assert score_scale(0.1 * scores) == pytest.approx(10.0 / math.sqrt((2 * 1.5**2 + 2 * 2.0**2) / 5), rel=1e-6)
    assert score_scale(torch.full((2, 3), 7.0)) == 1.0
    assert score_scale(torch.full((2, 3), math.nan)) == 1.0


def test_other_outputs_are_squared_error_over_variance():
    dense = torch.tensor([[[0.0, 2.0]]])   # variance 1
    assert divergence([dense], [dense + 0.5]) == pytest.approx(0.25)
    assert divergence([100 * dense], [100 * (dense + 0.5)]) == pytest.approx(0.25)
    column = torch.tensor([[0.0], [2.0]])
    assert divergence([column], [column + 1.0]) == pytest.approx(1.0)


def test_several_outputs_add_up_and_integers_do_not_count():
    column, steps = torch.tensor([[0.0], [2.0]]), torch.arange(3)
    assert divergence([column, column, steps], [column + 1.0, column + 1.0, steps + 1]) == pytest.approx(2.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 20.0))
def test_never_negative_and_zero_for_the_same_and_for_shifted_logits(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    one, other = (scale * torch.randn(5, 7, generator=generator) for _ in range(2))
    assert divergence([one], [other]) >= 0.0
    assert divergence([one], [one]) == 0.0
    assert divergence([one], [one + 3.0]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (4, 1)])
def test_outputs_that_are_not_finite_are_infinitely_far(bad, shape):
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    broken = dense.clone()
    broken.view(-1)[1] = bad
    assert divergence([dense], [broken]) == math.inf


def test_masked_logits_do_not_spoil_the_sum():
    """A dense probability of exactly 0 adds nothing: the limit of p log p."""
    dense = torch.tensor([[math.log(9.0), 0.0, -math.inf]])
    assert divergence([dense], [dense]) == 0.0
    candidate = torch.tensor([[0.0, math.log(9.0), -math.inf]])
    assert divergence([dense], [candidate]) == pytest.approx(0.8 * math.log(9.0), rel=1e-6)
