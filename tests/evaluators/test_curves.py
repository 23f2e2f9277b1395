"""Curves of a table: every choice in its place, stronger ones later."""

from types import SimpleNamespace

import pytest

from paretopress.evaluators.curves import family_name, sensitivity_curves
from paretopress.evaluators.sensitivity import WORST_LOSS, SensitivityTable
from paretopress.spaces.choices import (
    Binary,
    Clustered,
    Factorised,
    Half,
    Keep,
    Sparse,
    Weights,
    choice_from_plain,
    describe,
)
from paretopress.spaces.layers import Layer, LayerKind

OPTIONS = {
    "a/channels": (None, Keep(0.75), Keep(0.25), Keep(0.0)),
    "a/rank": (None, Factorised("svd", 6), Factorised("svd", 2)),
    "a/sparsity": (None, Sparse(0.5), Sparse(0.5, "2:4"), Sparse(0.25)),
    "a/weights": (Weights(2), Weights(8), Weights(4, 32), Half("fp16"), Half("bf16"), Clustered(5), Binary(2),
                  Binary(1, 1), None),
}
SPACE = SimpleNamespace(options=OPTIONS)
LAYER = SimpleNamespace(name="a", shape=(8, 12), sides=lambda shape: shape)
STRUCTURE = SimpleNamespace(layers=[LAYER])
LOSSES = {unit: tuple(0.0 if choice is None else 0.1 * place for place, choice in enumerate(options, 1))
          for unit, options in OPTIONS.items()}


@pytest.fixture(scope="module")
def curves():
    failed = {**LOSSES, "a/rank": (0.0, 0.2, WORST_LOSS)}
    table = SensitivityTable(failed, frozenset({("a/channels", 2), ("a/rank", 2)}))
    return {(curve.unit, curve.family): curve for curve in sensitivity_curves(STRUCTURE, SPACE, table)}


def test_amounts_by_hand(curves):
    amounts = {key: (curve.axis, [point.amount for point in curve.points]) for key, curve in curves.items()}
    assert amounts == {
        ("a/channels", "keep"): ("removed", [0.25, 0.75]),
        ("a/channels", "drop the branch"): ("removed", [1.0]),
        ("a/rank", "rank"): ("removed", [0.25, 0.75]),
        ("a/sparsity", "sparse"): ("removed", [0.5, 0.75]),
        ("a/sparsity", "sparse n:m"): ("removed", [0.5]),
        ("a/weights", "integers, 8-bit activations"): ("bits", [8.0, 2.0]),
        ("a/weights", "integers"): ("bits", [4.0]),
        ("a/weights", "16-bit floats"): ("bits", [16.0, 16.0]),
        ("a/weights", "shared values"): ("bits", [5.0]),
        ("a/weights", "signs"): ("bits", [2.0]),
        ("a/weights", "signs, 1-bit activations"): ("bits", [1.0]),
    }


def test_every_choice_is_a_point_once_with_its_loss_and_how_it_is_known(curves):
    seen = {}
    for (unit, family), curve in curves.items():
        for point in curve.points:
            choice = choice_from_plain(dict(point.choice), "test")
            assert (point.text, family) == (describe(choice), family_name(choice))
            seen[unit, choice] = (point.loss, point.estimated, point.failed)
    offered = {(unit, choice) for unit, options in OPTIONS.items() for choice in options if choice is not None}
    assert seen.keys() == offered
    assert seen["a/channels", Keep(0.75)] == (pytest.approx(0.2), False, False)
    assert seen["a/channels", Keep(0.25)] == (pytest.approx(0.3), True, False)
    assert seen["a/rank", Factorised("svd", 2)] == (WORST_LOSS, True, True)
    assert sum(estimated for _, estimated, _ in seen.values()) == 2


def test_plain_data_are_plain(curves):
    plain = curves["a/channels", "keep"].to_plain()
    assert plain == {
        "unit": "a/channels", "family": "keep", "axis": "removed",
        "points": [
            {"text": "keep 0.75", "choice": {"keep": 0.75}, "amount": 0.25, "loss": LOSSES["a/channels"][1],
             "estimated": False, "failed": False},
            {"text": "keep 0.25", "choice": {"keep": 0.25}, "amount": 0.75, "loss": LOSSES["a/channels"][2],
             "estimated": True, "failed": False},
        ],
    }
    assert isinstance(plain["points"], list)


def test_factors_of_any_kind_remove_a_share_of_the_weights():
    """Spatial ranks may be above the sides of the layer's matrix, which SVD ranks are counted against."""
    layer = Layer("a", LayerKind.CONV, "a", "a.weight", "", (16, 16, 3, 3), (1, 1), (1, 1), (1, 1))
    structure = SimpleNamespace(layers=(layer,))
    options = (None, Factorised("spatial", 18), Factorised("tucker", 8, 8), Factorised("svd", 8))
    space = SimpleNamespace(options={"a/rank": options})
    curves = sensitivity_curves(structure, space, SensitivityTable({"a/rank": (0.0, 0.1, 0.2, 0.3)}))
    assert {curve.family: [point.amount for point in curve.points] for curve in curves} == {
        "factorised spatial": [0.25], "factorised tucker": [pytest.approx(1 - (128 + 576 + 128) / 2304)], "rank": [0.5]}
