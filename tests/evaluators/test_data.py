"""Data: every accepted form gives the same batches; every defect is one line that names its place."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from paretopress.evaluators.batches import Batch
from paretopress.evaluators.data import Data, normalise_set, prepare
from paretopress.spaces.errors import DataError

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 3, 4, generator=GENERATOR)
Y = torch.randint(0, 5, (60,), generator=GENERATOR)


def sets(**changes):
    return Data(**{"calibration": X[:10], "search": (X[:30], Y[:30]), "holdout": (X[30:], Y[30:]), **changes})


def joined(batches):
    return torch.cat([batch.args[0] for batch in batches]), torch.cat([batch.targets for batch in batches])


FORMS = {
    "tensors": lambda: (X, Y),
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "read-only arrays": lambda: (np.frombuffer(X.numpy().tobytes(), np.float32).reshape(60, 3, 4), Y),
    "list of pairs": lambda: [(X[:7], Y[:7]), (X[7:], Y[7:])],
    "generator": lambda: ((X[i : i + 9], Y[i : i + 9]) for i in range(0, 60, 9)),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=11),
    "dataset": lambda: TensorDataset(X, Y),
    "one positional input": lambda: ((X,), Y),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_set_gives_the_same_batches(form):
    batches = normalise_set(FORMS[form](), "search", 16, needs_targets=True)
    reference = normalise_set((X, Y), "search", 16, needs_targets=True)
    assert [batch.count for batch in batches] == [16, 16, 16, 12]
    assert (len(batches), batches.count) == (4, 60)
    inputs, targets = joined(batches)
    assert torch.equal(inputs, X)
    assert torch.equal(targets, Y)
    assert batches.fingerprint == reference.fingerprint
    assert batches.row_hashes() == reference.row_hashes()


@given(st.lists(st.integers(1, 59), unique=True, max_size=6), st.integers(1, 70), st.integers(1, 80))
@settings(max_examples=50, deadline=None)
def test_neither_batching_nor_batch_size_changes_a_set(cuts, size, count):
    edges = [0, *sorted(cuts), 60]
    parts = [(X[a:b], Y[a:b]) for a, b in itertools.pairwise(edges)]
    batches = normalise_set(parts, "search", size, needs_targets=True)
    assert torch.equal(joined(batches)[0], X)
    assert all(batch.count == size for batch in batches[:-1])
    assert batches.fingerprint == normalise_set((X, Y), "search", 16, needs_targets=True).fingerprint
    first = batches.first(count)
    assert first.count == min(count, 60)
    assert torch.equal(joined(first)[0], X[:count])


def test_positional_and_keyword_inputs_reach_the_model_in_their_places():
    mask = torch.arange(60 * 2).reshape(60, 2)
    positional = normalise_set(((X, mask), Y), "search", 50, needs_targets=True)[1]
    keyword = normalise_set([({"x": X, "mask": mask}, Y)], "search", 50, needs_targets=True)[1]
    assert torch.equal(positional.args[0], X[50:])
    assert torch.equal(positional.args[1], mask[50:])
    assert positional.kwargs == {}
    assert keyword.args == ()
    assert torch.equal(keyword.kwargs["mask"], mask[50:])


@pytest.mark.parametrize("value", [X, X.numpy(), [X[:20], X[20:]], (X, None), {"x": X}, (X, X, X)])
def test_calibration_may_be_inputs_only(value):
    batches = normalise_set(value, "calibration", 25, needs_targets=False)
    batch = batches[0]
    assert batch.targets is None
    assert torch.equal((*batch.args, *batch.kwargs.values())[0], X[:25])
    with pytest.raises(DataError, match="calibration: this set has inputs only"):
        _ = batches.targets


def test_a_model_that_writes_into_its_input_changes_nothing():
    batches = normalise_set((X.clone(), Y), "search", 16, needs_targets=True)
    before = batches.whole.args[0].clone()
    for batch in batches:
        batch.args[0].zero_()
    assert torch.equal(batches.whole.args[0], before)


def test_row_hashes_tell_rows_inputs_and_types_apart():
    def hashes(value):
        return normalise_set(value, "search", 8, needs_targets=False).row_hashes()

    assert len(set(hashes(X))) == 60
    assert hashes(X) == hashes((X, Y))
    assert hashes({"a": X}) != hashes({"b": X})
    assert hashes((X, X, Y)) != hashes((X, Y, X))
    assert len(set(hashes(X.bfloat16()))) == 60
    assert hashes(X.transpose(1, 2).contiguous().transpose(1, 2)) == hashes(X)


def test_the_fingerprint_follows_values_targets_types_and_shapes():
    changed = X.clone()
    changed[59, 2, 3] += 1e-6
    values = [(X, Y), (changed, Y), (X, Y + 1), (X.double(), Y), (X.reshape(60, 12), Y), (X, None)]
    assert len({normalise_set(value, "train", 8, needs_targets=False).fingerprint for value in values}) == 6


def test_prepared_data_carries_every_set_and_its_fingerprint_every_part():
    data = sets(train=(X[:20], Y[:20]))
    prepared = prepare(data, batch_size=16)
    counts = [prepared.calibration.count, prepared.search.count, prepared.holdout.count, prepared.train.count]
    assert counts == [10, 30, 30, 20]
    assert prepared.metrics[0].name == "accuracy"
    assert prepare(data, batch_size=16).fingerprint == prepared.fingerprint
    others = [
        prepare(data, batch_size=8),
        prepare(sets()),
        prepare(sets(metric=lambda *_: 0.0)),
        prepare(sets(holdout=(X[31:], Y[31:]))),
    ]
    assert len({prepared.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_calibration_may_be_the_search_set():
    pairs = (X[:30], Y[:30])
    prepared = prepare(sets(calibration=pairs, search=pairs))
    assert prepared.calibration.fingerprint == prepared.search.fingerprint
    assert prepared.calibration.name == "calibration"


def test_a_generator_is_read_once_and_serves_two_sets_and_two_preparations():
    pairs = ((X[i : i + 10], Y[i : i + 10]) for i in (0, 10, 20))
    data = sets(calibration=pairs, search=pairs)
    assert prepare(data).search.count == 30
    assert prepare(data).fingerprint == prepare(sets(calibration=(X[:30], Y[:30]))).fingerprint


def broken(value):
    changed = X[:30].clone()
    changed[[4, 7], 1, 2] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"search": (X[:0], Y[:0])}, "search is empty: 0 samples"),
        ({"search": []}, "search is empty"),
        ({"search": iter(())}, "search is empty.*generator"),
        ({"holdout": [(X[30:], Y[30:]), (X[:0], Y[:0])]}, "holdout batch 1 is empty"),
        ({"calibration": {}}, "calibration is empty: no inputs"),
        ({"search": (broken(float("nan")), Y[:30])}, r"search: input 0 holds NaN.* 2 of 30 .*row 4"),
        ({"search": [(X[:9], Y[:9]), (broken(float("inf")), Y[:30])]}, "search batch 1: input 0 holds NaN"),
        ({"holdout": ({"x": broken(float("-inf"))}, Y[:30])}, "holdout: input 'x' holds NaN"),
        ({"search": (X[:30], Y[:29])}, "search: 30 samples in the inputs, 29 in the targets"),
        ({"search": ((X[:30], X[:29]), Y[:30])}, "search: input 1 has 29 samples, input 0 has 30"),
        ({"search": X}, r"search: targets are needed: expected \(inputs, targets\), got a Tensor"),
        ({"search": [X[:5], X[5:30], X[30:]]}, "search batch 0: targets are needed"),
        ({"search": "images"}, "search: expected .* got str"),
        ({"search": 3}, "search: expected .* got int"),
        ({"search": (X[:30], "labels")}, "search: targets: expected a tensor or array, got a str"),
        ({"search": (X[0, 0, 0], Y[0])}, "search: input 0: expected samples on dimension 0"),
        ({"calibration": X[:10].double()}, "calibration does not fit search: input 0 is torch.float64"),
        ({"calibration": X[:10, :2]}, r"calibration does not fit search: input 0 has shape \(2, 4\)"),
        ({"holdout": (X[30:, :2], Y[30:])}, "holdout does not fit search"),
        ({"holdout": (X[30:], X[30:])}, "holdout does not fit search: targets have shape"),
        ({"holdout": ({"x": X[30:]}, Y[30:])}, "it has input 'x', expected input 0"),
        ({"train": X[:10].int()}, "train does not fit search"),
        ({"search": [(X[:9], Y[:9]), (X[9:30, :1], Y[9:30])]}, "search batch 1 differs from batch 0"),
        ({"calibration": [(X[:9], Y[:9]), X[9:]]}, "calibration batch 1 differs.*: one has targets"),
        ({"holdout": (X[28:], Y[28:])}, r"2 of 32 holdout samples also stand in search \(first: row 0\)"),
        ({"calibration": X[25:33]}, r"3 of 30 holdout samples also stand in calibration \(first: row 0\)"),
        ({"train": X[40:41]}, r"1 of 30 holdout samples also stand in train \(first: row 10\)"),
    ],
)
def test_every_defect_is_one_line_that_names_its_place(changes, says):
    with pytest.raises(DataError, match=says) as caught:
        prepare(sets(**changes))
    assert "\n" not in str(caught.value)


def test_calibration_may_overlap_with_search_but_batch_sizes_must_be_positive():
    assert prepare(sets(calibration=X[:30])).calibration.count == 30
    with pytest.raises(DataError, match="batch size"):
        prepare(sets(), batch_size=0)


def test_a_batch_counts_keyword_samples():
    assert Batch((), {"x": X[:7]}).count == 7


def both(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator), torch.arange(count) % 2


def test_samples_of_both_sets_are_either_fitted_to_or_scored():
    seen, holdout = both(256), both(50, seed=1)
    prepared = prepare(Data(seen, seen, holdout))
    assert (prepared.fitted.count, prepared.scored.count) == (128, 128)
    assert not set(prepared.fitted.row_hashes()) & set(prepared.scored.row_hashes())
    assert set(prepared.fitted.row_hashes()) | set(prepared.scored.row_hashes()) == set(prepared.search.row_hashes())
    first = [int((seen[0] == row).all(1).nonzero()) for row in prepared.scored.whole.args[0]]
    assert prepared.scored.targets.tolist() == seen[1][first].tolist()
    assert prepared.calibration.count == prepared.search.count == 256


def test_sets_that_share_few_samples_lose_none_of_the_others():
    calibration, extra = both(200), both(100, seed=2)
    search = torch.cat([calibration[0][:20], extra[0]]), torch.cat([calibration[1][:20], extra[1]])
    prepared = prepare(Data(calibration[0], search, both(50, seed=1)))
    assert (prepared.fitted.count, prepared.scored.count) == (190, 110)
    assert not set(prepared.fitted.row_hashes()) & set(prepared.scored.row_hashes())


@pytest.mark.parametrize(("calibration", "search"), [(both(100), both(100)), (both(300), both(300, seed=3))])
def test_few_samples_and_sets_apart_stay_whole(calibration, search):
    """100 samples are too few to divide; sets that share nothing need no dividing."""
    prepared = prepare(Data(calibration, search, both(50, seed=1)))
    assert prepared.fitted.whole is prepared.calibration.whole
    assert prepared.scored.whole is prepared.search.whole


def test_a_sample_that_stands_twice_is_on_one_side():
    inputs, targets = both(200)
    twice = torch.cat([inputs, inputs]), torch.cat([targets, targets])
    prepared = prepare(Data(twice, twice, both(50, seed=1)))
    assert not set(prepared.fitted.row_hashes()) & set(prepared.scored.row_hashes())
    assert prepared.fitted.count == prepared.scored.count == 200
