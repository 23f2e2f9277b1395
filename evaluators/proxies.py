"""Proxies: cheap predictions of what a policy loses, each from a table of its choices alone.

- `divergence`: the divergence of the model with one choice substituted, from the outputs' scores (nats).
- `output_error`: mean squared error of the outputs of the layers that a choice changes.
- `snr`: the same relative to each layer's own variance: the inverse of the signal-to-noise ratio.
- `taylor`: gradient times change of these outputs, the size of the first-order change of the loss (Molchanov et al.,
  CVPR 2019).
- `fisher`: squared gradient times squared change, half the diagonal Fisher information (BRECQ, Li et al., ICLR 2021;
  FIT, Zandonati et al., 2022).
- `hessian`: squared change times the layer's mean curvature (HAWQ-V2, Dong et al., NeurIPS 2020).
- `interactions`: second order with all pairs: the outputs' changes of single choices, added up before they are
  squared in the Fisher metric of the outputs; the length of each is that of its measured divergence.

All but the last are sums over units. All are measured on the tuning samples, of layers that are built and corrected
as in a candidate, and repaired so that a stronger choice never looks better than a weaker one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretopress.compressors.distillation_loss import score_scale
from paretopress.compressors.entries import Entries
from paretopress.compressors.refit import settle
from paretopress.evaluators.divergence import divergence
from paretopress.evaluators.perturbations import (
    Change,
    changes,
    output_curvatures,
    output_gradients,
    per_sample,
)
from paretopress.evaluators.sensitivity import (
    WORST_LOSS,
    Cell,
    SensitivityTable,
    assemble,
    cells_in_order,
    first_cells,
)
from paretopress.spaces.errors import ConfigError, unknown_name
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace

LOCAL = ("output_error", "snr", "taylor", "fisher", "hessian")
PROXIES = ("divergence", *LOCAL, "interactions")
MOST_FEATURES = 1 << 15   # numbers that describe a choice's change of the outputs


@dataclass(frozen=True)
class ProxyTable:
    """An additive proxy.

    Attributes:
        name: One of `PROXIES` but `"interactions"`.
        table: Its value of every choice alone.
        seconds: That measuring it took.
    """

    name: str
    table: SensitivityTable
    seconds: float

    def scores(self, space: SearchSpace, policies: Sequence[Policy]) -> list[float]:
        """Return the predicted loss of policies: the sum over their choices."""
        return [sum(self.table.losses[unit][option] for unit, option in cells_of(space, policy)) for policy in policies]


@dataclass(frozen=True, eq=False)
class Interactions:
    """The second-order proxy with pairwise interactions.

    Attributes:
        place: Row of every choice's features; a dense choice has none.
        features: Shape `(choices, features)` float32: the scaled change of the outputs. The squared length of a sum of
            rows is the divergence to be expected; of one row alone it is the measured one.
        divergences: Divergence of every choice alone, which the same outputs give.
        seconds: That measuring it took.
        name: `"interactions"`.
    """

    place: Mapping[Cell, int]
    features: NDArray[np.float32]
    divergences: Mapping[Cell, float]
    seconds: float
    name: str = "interactions"

    def scores(self, space: SearchSpace, policies: Sequence[Policy]) -> list[float]:
        """Return the predicted divergence of policies."""
        found = []
        for policy in policies:
            rows = [self.place[cell] for cell in cells_of(space, policy) if cell in self.place]
            found.append(float(np.square(self.features[rows].sum(axis=0, dtype=np.float64)).sum()) if rows else 0.0)
        return found

    def pairs(self) -> NDArray[np.float64]:
        """Return what every pair of choices adds, shape `(choices, choices)`; on the diagonal each alone."""
        gram: NDArray[np.float64] = (self.features @ self.features.T).astype(np.float64)
        return gram

    def table_around(self, space: SearchSpace, reference: Policy) -> SensitivityTable:
        """Return the additive table of each choice beside the other units' choices in a reference policy.

        It is what the exact solver can work with: alone, plus twice its interactions with the reference's other
        choices, at least 0 and repaired.
        """
        chosen = dict(cells_of(space, reference))
        pairs, measured = self.pairs(), dict[Cell, float]()
        for cell, row in self.place.items():
            others = [self.place[unit, option] for unit, option in chosen.items()
                      if unit != cell[0] and (unit, option) in self.place]
            measured[cell] = max(0.0, float(pairs[row, row] + pairs[row, others].sum()))
        return assemble(space, measured, None)


def cells_of(space: SearchSpace, policy: Policy) -> Iterable[Cell]:
    """Return the cells of a policy's choices in the order of the space.

    Raises:
        ConfigError: The policy holds a choice that the space does not offer.
    """
    for unit, choice in policy.choices.items():
        options = space.options.get(unit, ())
        if choice not in options:
            raise ConfigError(f"unit {unit!r}: {choice} is not among the options of this space")
        yield unit, options.index(choice)


def policy_of_cell(space: SearchSpace, cell: Cell) -> Policy:
    """Return the policy with the choice of one cell alone."""
    choice = space.options[cell[0]][cell[1]]
    return Policy.of({} if choice is None else {cell[0]: choice})


def check_proxy(name: str) -> None:
    """Raise `ConfigError` for a name that is not among `PROXIES`."""
    if name not in PROXIES:
        raise ConfigError(unknown_name("proxy", name, PROXIES))


def local_tables(
    entries: Entries, space: SearchSpace, names: Collection[str] = LOCAL, *, seed: int = 0,
    seconds: float | None = None, should_stop: Callable[[], bool] | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, ProxyTable]:
    """Measure proxies that look at the outputs of the changed layers alone, all in one sweep.

    Args:
        entries: Memoised compressed layers of the model.
        space: The choices.
        names: Which ones, of `LOCAL`.
        seed: Of the noise that curvatures are estimated with.
        seconds: When to stop; one choice of every family is measured however long it takes, the others are estimated.
        should_stop: Asked after every choice; ends the measurement early.
        progress: Called after every choice.

    Raises:
        ConfigError: An unknown name.
    """
    start = time.perf_counter()
    for name in names:
        if name not in LOCAL:
            raise ConfigError(unknown_name("proxy", name, LOCAL))
    spent = dict.fromkeys(names, 0.0)
    begin = time.perf_counter()
    gradients = output_gradients(entries) if {"taylor", "fisher"} & set(names) else {}
    for name in {"taylor", "fisher"} & set(names):
        spent[name] += time.perf_counter() - begin
    begin = time.perf_counter()
    curvatures = output_curvatures(entries, seed) if "hessian" in names else {}
    if "hessian" in names:
        spent["hessian"] += time.perf_counter() - begin
    samples = len(entries.calibration.inputs[0])
    begin, measured = time.perf_counter(), {name: dict[Cell, float]() for name in names}
    for cell in _in_time(space, start, seconds, should_stop):
        policy = policy_of_cell(space, cell)
        totals = dict.fromkeys(names, 0.0)
        for change in changes(entries, policy, gradients):
            for name in names:
                totals[name] += _measure(name, change, samples, curvatures)
        for name, value in totals.items():
            measured[name][cell] = min(WORST_LOSS, value) if math.isfinite(value) else WORST_LOSS
        if progress:
            progress()
    sweep = time.perf_counter() - begin
    return {name: ProxyTable(name, assemble(space, measured[name], None), spent[name] + sweep) for name in names}


def _in_time(
    space: SearchSpace, start: float, seconds: float | None, should_stop: Callable[[], bool] | None
) -> Iterator[Cell]:
    """The cells that there is time for, those first that say most about the others."""
    needed = first_cells(space)
    for number, cell in enumerate(cells_in_order(space)):
        late = seconds is not None and time.perf_counter() - start >= seconds
        if (late and number >= needed) or (should_stop is not None and should_stop()):
            return
        yield cell


def _measure(name: str, change: Change, samples: int, curvatures: Mapping[str, float]) -> float:
    """The value of a local proxy for the change of one layer."""
    error = float(change.difference.square().mean())
    match name:
        case "output_error":
            return error
        case "snr":
            return change.noise_to_signal
        case "taylor":
            if change.gradient is None:
                return 0.0
            return float(per_sample(change.gradient * change.difference, samples).abs().mean())
        case "fisher":
            if change.gradient is None:
                return 0.0
            return 0.5 * float((change.gradient * change.difference).square().sum()) / samples
        case _:
            return curvatures[change.node] * error


def interactions(
    entries: Entries, space: SearchSpace, *, seconds: float | None = None,
    should_stop: Callable[[], bool] | None = None, progress: Callable[[], None] | None = None,
) -> Interactions:
    """Measure the outputs' changes of every choice alone, by substitution, as `divergence` does.

    Args:
        entries: Memoised compressed layers of the model.
        space: The choices.
        seconds: When to stop; choices that are not measured by then have no interactions.
        should_stop: Asked after every choice; ends the measurement early.
        progress: Called after every choice.
    """
    program, calibration = entries.program, entries.calibration
    dense = [calibration.values[name] for name in program.graph.outputs]
    metric = _OutputMetric(dense)
    rows: list[NDArray[np.float32]] = []
    place, divergences = dict[Cell, int](), dict[Cell, float]()
    begin = time.perf_counter()
    for unit, index in _in_time(space, begin, seconds, should_stop):
        policy = policy_of_cell(space, (unit, index))
        _, values = settle(entries, plan(program.structure, policy))
        place[unit, index] = len(rows)
        outputs = [values[name] for name in program.graph.outputs]
        rows.append(metric.features(outputs))
        divergences[unit, index] = min(WORST_LOSS, divergence(dense, outputs))
        if progress:
            progress()
    features = np.stack(rows) if rows else np.zeros((0, 1), dtype=np.float32)
    # The metric of the dense outputs knows nothing of predictions that a large change turns around: every choice
    # keeps its direction, and gets the length that its measured divergence asks for.
    lengths = np.sqrt(np.square(features, dtype=np.float64).sum(axis=1))
    wanted = np.sqrt([divergences[cell] for cell in place])
    features = (features * (wanted / np.maximum(lengths, 1e-12))[:, None]).astype(np.float32)
    return Interactions(place, features, divergences, time.perf_counter() - begin)


class _OutputMetric:
    """Turns changed outputs into features whose squared length is the divergence to second order.

    Of scores `z` with probabilities `p`, half of the variance of the change under `p`: the Fisher metric of the
    Kullback-Leibler divergence (Amari 1998). Of other outputs, the squared error over the dense variance.
    """

    def __init__(self, dense: Sequence[Any]) -> None:
        self.dense = [one.float() if isinstance(one, Tensor) and one.is_floating_point() else None for one in dense]

    def features(self, outputs: Sequence[Any]) -> NDArray[np.float32]:
        pieces = []
        for wanted, found in zip(self.dense, outputs, strict=True):
            if wanted is None:
                continue
            change = found.float() - wanted
            if wanted.ndim == 2 and wanted.shape[1] > 1:
                scale = score_scale(wanted)
                chances, change = torch.softmax(scale * wanted, dim=1), scale * change
                change = change - (chances * change).sum(dim=1, keepdim=True)
                change = change * (0.5 * chances / len(wanted)).sqrt()
            else:
                change = change / (max(float(wanted.var(correction=0)), 1e-12) * change.numel()) ** 0.5
            pieces.append(change.flatten())
        flat = torch.cat(pieces) if pieces else torch.zeros(1)
        if len(flat) > MOST_FEATURES:   # evenly spaced ones stand for all
            chosen = torch.linspace(0, len(flat) - 1, MOST_FEATURES).long()
            flat = flat[chosen] * (len(flat) / MOST_FEATURES) ** 0.5
        finite: NDArray[np.float32] = np.nan_to_num(flat.numpy(), nan=1e3, posinf=1e3, neginf=-1e3)
        return finite
