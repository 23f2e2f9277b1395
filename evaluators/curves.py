"""Sensitivity curves: for every unit and family of choices how the loss grows with how much is compressed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from paretopress.evaluators.sensitivity import WORST_LOSS, SensitivityTable, amount
from paretopress.spaces.choice_families import kind_of
from paretopress.spaces.choices import Binary, Choice, Factorised, Half, Weights, choice_to_plain, describe
from paretopress.spaces.factor_forms import factor_weights
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Layer
from paretopress.spaces.space import SearchSpace
from paretopress.spaces.structure import Structure

LOSS = "divergence from the dense model's outputs: nats, or squared error over their variance where they are no scores"
Axis = Literal["removed", "bits"]
_FAMILIES: Mapping[tuple[str, ...], str] = {
    ("keep",): "keep",
    ("drop",): "drop the branch",
    ("factorised", "svd"): "rank",
    ("sparse", "unstructured"): "sparse",
    ("sparse", "n:m"): "sparse n:m",
    ("sparse", "blocks"): "sparse blocks",
    ("clustered",): "shared values",
}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One choice of a curve.

    Attributes:
        text: The choice in words.
        choice: The choice as plain data.
        amount: Share that is removed, of channels, weights or the full rank, in (0, 1]; or bits of a weight.
        loss: Of the model with this choice alone; at least 0.
        estimated: Whether it follows from measured neighbours.
        failed: Whether it could not be measured, or its outputs are not finite: it counts as the worst.
    """

    text: str
    choice: Mapping[str, Any]
    amount: float
    loss: float
    estimated: bool
    failed: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """The choices of one family of a unit, from the weakest to the strongest.

    Attributes:
        unit: The unit.
        family: What the choices have in common, in words.
        axis: What `amount` of its points is.
        points: Its choices.
    """

    unit: str
    family: str
    axis: Axis
    points: tuple[CurvePoint, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return the curve as plain data."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}


def sensitivity_curves(structure: Structure, space: SearchSpace, table: SensitivityTable) -> list[Curve]:
    """Return the curves of a table in the order of the space's units.

    Args:
        structure: Of the dense model: ranks are counted against a layer's full rank.
        space: The choices.
        table: Their losses.
    """
    layers = {f"{layer.name}/rank": layer for layer in structure.layers}
    found: dict[tuple[str, str], list[CurvePoint]] = {}
    for unit, options in space.options.items():
        for index, choice in enumerate(options):
            if choice is None:
                continue
            loss = table.losses[unit][index]
            point = CurvePoint(
                describe(choice), choice_to_plain(choice), _compressed(choice, layers.get(unit)), loss,
                (unit, index) in table.estimated, loss >= WORST_LOSS,
            )
            found.setdefault((unit, family_name(choice)), []).append(point)
    return [Curve(unit, family, _axis(unit), _by_strength(_axis(unit), points))
            for (unit, family), points in found.items()]


def family_name(choice: Choice) -> str:
    """What the choices of a family have in common, in words."""
    kind = kind_of(choice)
    if isinstance(choice, Half):
        return "16-bit floats"
    if isinstance(choice, Weights):
        layout = {"symmetric": "integers", "asymmetric": "integers with zero points", "tensor": "integers, one scale"}
        text = layout[choice.scheme] + (f", groups of {choice.group}" if choice.group else "")
        return text + ("" if choice.activations == 32 else f", {choice.activations}-bit activations")
    if isinstance(choice, Binary):
        return "signs" + ("" if choice.activations == 32 else f", {choice.activations}-bit activations")
    return _FAMILIES.get(kind, " ".join(kind))


def _axis(unit: str) -> Axis:
    return "bits" if unit.endswith("/weights") else "removed"


def _compressed(choice: Choice, layer: Layer | None) -> float:
    """The share that is removed, or the bits of a weight that are left; of factors but SVD the share of weights."""
    match choice:
        case Factorised("svd", rank) if layer is not None:
            return 1.0 - rank / min(layer.sides(layer.shape))
        case Factorised() if layer is not None:
            return 1.0 - factor_weights(choice, layer, layer.shape) / product(layer.shape)
        case Half():
            return 16.0
        case _ if _is_format(choice):
            return float(round(-math.log2(amount(choice))))
        case _:
            return amount(choice)


def _is_format(choice: Choice) -> bool:
    return kind_of(choice)[0] in ("weights", "clustered", "binary")


def _by_strength(axis: Axis, points: Iterable[CurvePoint]) -> tuple[CurvePoint, ...]:
    return tuple(sorted(points, key=lambda point: -point.amount if axis == "bits" else point.amount))
