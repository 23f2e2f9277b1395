"""Fits the latency predictor to timed networks: one joint non-negative least squares, then a correction.

Two kinds of rows share the unknowns. A whole network's clock time is `session + sum(kernels) +
sum(conversions)`, precise to a few percent. The profiler's time of one kernel is `kernel + overhead *
executed nodes`, but cut to whole microseconds, and the overhead is not the same for every node; it tells kernels
apart, above all the longer ones. Every row is divided by its expected error, so small kernels are learnt from whole
networks and large ones directly. Conversions, which are two or three short nodes each, are learnt from whole networks
alone: by the profiler they took next to nothing beside its overhead of 3.6 us per node, and networks that mix floats
and integers were predicted a twelfth too fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.accuracy import Accuracy, accuracy
from paretopress.hardware_profiles.correction import fit_trees, shape_inputs
from paretopress.hardware_profiles.features import Alignment, boundary_matrix, columns, matrix
from paretopress.hardware_profiles.nnls import non_negative_least_squares
from paretopress.hardware_profiles.predictor import FamilyModel, LatencyModel
from paretopress.hardware_profiles.terms import BOUNDARY_TERMS, TERMS, X86
from paretopress.hardware_profiles.timing import Timed
from paretopress.spaces.kernels import Family, Kernel

Array = NDArray[np.float64]
# Expected errors: of the clock relative to the time; of the profiler relative, in microseconds, and per node.
_WALL_ERROR, _KERNEL_ERROR, _PROFILER_STEP_US, _PROFILER_NODE_US = 0.02, 0.10, 0.4, 2.0
_TREES_MIN_WEIGHT = 25.0
_LARGEST_SHIFT_US = 0.6
_WALL_ROUNDS, _WALL_TREES, _WALL_RATE = 8, 3, 0.3

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A latency model with what the fit says about the runtime.

    Attributes:
        model: Predicts kernels, conversions and networks.
        profiler_us: Overhead of the profiler per executed node, for comparing kernels with its times.
        measured: Families with their executed types that timed networks had; others are derived.
    """

    model: LatencyModel
    profiler_us: float
    measured: frozenset[tuple[Family, str]] = frozenset()


def executed_type(kernel: Kernel) -> str:
    """How the measured networks execute a kernel."""
    return "int8" if kernel.activation_bits == 8 else "float32"


class _Layout:
    """Where each (family, type) and conversion has its columns in the joint system."""

    def __init__(self, timed: Sequence[Timed]) -> None:
        self.slots: dict[Key, tuple[int, tuple[str, ...]]] = {}
        self.width = 2  # session, profiler overhead per node
        for key in sorted(
            {(k.family.value, executed_type(k)) for t in timed for k in t.network.view.kernels}
        ):
            self._add(key, TERMS[Family(key[0])])
        for kind in sorted({b.kind for t in timed for b in t.network.view.boundaries}):
            self._add(("boundary", kind), BOUNDARY_TERMS)

    def _add(self, key: Key, terms: tuple[str, ...]) -> None:
        self.slots[key] = (self.width, terms)
        self.width += len(terms)

    def rows(self, timed: Timed, alignment: Mapping[str, Alignment]) -> tuple[Array, Array]:
        """Feature rows of the kernels and of the boundaries of one network."""
        view = timed.network.view
        kernels = np.zeros((len(view.kernels), self.width))
        for key in {(k.family.value, executed_type(k)) for k in view.kernels}:
            members = [i for i, k in enumerate(view.kernels) if (k.family.value, executed_type(k)) == key]
            start, terms = self.slots[key]
            kernels[members, start : start + len(terms)] = matrix(
                columns([view.kernels[i] for i in members]), terms, alignment[key[1]]
            )
        boundaries = np.zeros((len(view.boundaries), self.width))
        for index, item in enumerate(view.boundaries):
            start, terms = self.slots["boundary", item.kind]
            boundaries[index, start : start + len(terms)] = boundary_matrix([item], terms)[0]
        return kernels, boundaries


def _system(
    timed: Sequence[Timed], layout: _Layout, alignment: Mapping[str, Alignment]
) -> tuple[Array, Array, Array]:
    """The joint system: rows, measured times, and the relative and absolute part of each row's error."""
    blocks, targets, errors = [], [], []
    for item in timed:
        kernels, boundaries = layout.rows(item, alignment)
        wall = kernels.sum(axis=0) + boundaries.sum(axis=0)
        wall[0] = 1.0
        rows, times = kernels, item.kernels
        rows[:, 1] = item.kernel_events
        if not item.complete:   # nothing is known of what the profiler did not see
            seen = rows[:, 1] > 0
            rows, times = rows[seen], times[seen]
        blocks += [wall[None], rows]
        targets += [np.array([item.wall]), times]
        profiled = np.full(len(rows), _KERNEL_ERROR), _PROFILER_STEP_US + _PROFILER_NODE_US * rows[:, 1]
        errors += [np.array([[_WALL_ERROR, 0.0]]), np.column_stack(profiled)]
    return np.concatenate(blocks), np.concatenate(targets), np.concatenate(errors)


def _solve(rows: Array, measured: Array, errors: Array, rounds: int = 4) -> Array:
    """Reweighted non-negative least squares.

    The expected error follows the mean of measured and predicted time (an error relative to the measured
    time alone pulls predictions down), and rows far outside it weigh less (Huber).
    """
    predicted, solution = measured, np.zeros(rows.shape[1])
    for _ in range(rounds):
        scale = np.hypot(errors[:, 0] * (measured + predicted) / 2, errors[:, 1])
        scale *= np.sqrt(np.maximum(1.0, np.abs(measured - predicted) / (3 * scale)))
        # An orthogonal reduction keeps the least-squares problem and makes every active-set step small.
        orthogonal, triangle = np.linalg.qr(rows / scale[:, None])
        solution = non_negative_least_squares(triangle, orthogonal.T @ (measured / scale))
        predicted = rows @ solution
    return solution


def fit_model(
    device: str, timed: Sequence[Timed], alignment: Mapping[str, Alignment] = X86, trees: bool = True
) -> Fitted:
    """Fit a latency model to timed networks.

    Args:
        device: Name for messages.
        timed: At least a few dozen networks.
        alignment: How the runtime rounds channels up.
        trees: Whether to add the correction where a family has enough rows.
    """
    layout = _Layout(timed)
    solution = _solve(*_system(timed, layout, alignment))
    families: dict[tuple[Family, str], FamilyModel] = {}
    boundaries: dict[str, tuple[tuple[str, ...], Array]] = {}
    for (name, kind), (start, terms) in layout.slots.items():
        chosen = [
            (term, value)
            for term, value in zip(terms, solution[start : start + len(terms)], strict=True)
            if value > 0
        ] or [("one", 0.0)]
        pair = tuple(term for term, _ in chosen), np.array([value for _, value in chosen])
        if name == "boundary":
            boundaries[kind] = pair
        else:
            families[Family(name), kind] = FamilyModel(*pair, None)
    model = LatencyModel(device, alignment, families, boundaries, {}, float(solution[0]), 1.0, 1.0)
    fitted = Fitted(model, float(solution[1]), frozenset(families))
    if trees:
        fitted = replace(fitted, model=_with_trees(fitted, timed))
        fitted = replace(fitted, model=_with_wall_trees(fitted.model, timed))
    return replace(fitted, model=_calibrated(fitted.model, timed))


def _with_trees(fitted: Fitted, timed: Sequence[Timed]) -> LatencyModel:
    """Add corrections for the families with enough kernels.

    The target is the relative residual, not its logarithm: truncated times of small kernels are unbiased
    only on a linear scale. They count little, but choosing rows by their measured time would bias the rest.
    """
    families = dict(fitted.model.families)
    for (family, executed), (kernels, measured) in kernel_rows(timed, fitted).items():
        table, base, blocks = columns(kernels), families[family, executed], fitted.model.alignment[executed]
        predicted = base.predict(table, blocks)
        weights = 1 / (1 + ((_PROFILER_STEP_US + _PROFILER_NODE_US) / (_KERNEL_ERROR * predicted)) ** 2)
        if weights.sum() < _TREES_MIN_WEIGHT:
            continue
        residual = np.clip(measured / predicted - 1, -0.9, 2.0)
        families[family, executed] = replace(
            base, trees=fit_trees(shape_inputs(table, blocks), residual, weights)
        )
    return replace(fitted.model, families=families)


def _with_wall_trees(model: LatencyModel, timed: Sequence[Timed]) -> LatencyModel:
    """Add corrections that follow from the clock times of whole networks.

    Boosting on sums: what a network takes longer than predicted is expected of all its kernels alike, each weighs by
    its share of the time, and over many networks the kernels that are really slower stand out. This also reaches
    kernels that are too short for the profiler.
    """
    kernels, types, networks = _all_kernels(timed)
    walls = np.array([item.wall for item in timed])
    members: dict[tuple[Family, str], list[int]] = {}
    for index, (kernel, executed) in enumerate(zip(kernels, types, strict=True)):
        members.setdefault((kernel.family, executed), []).append(index)
    tables = {key: columns([kernels[index] for index in found]) for key, found in members.items()}
    for _ in range(_WALL_ROUNDS):
        errors = np.clip(walls / network_us(model, timed) - 1, -0.5, 0.5)[networks]
        shares = np.minimum(1.0, model.kernel_us(kernels, types) / walls[networks])
        families = dict(model.families)
        for key, found in members.items():
            if shares[found].sum() >= _TREES_MIN_WEIGHT:
                inputs = shape_inputs(tables[key], model.alignment[key[1]])
                families[key] = _boosted(families[key], inputs, errors[found], shares[found])
        model = replace(model, families=families)
    return model


def _all_kernels(timed: Sequence[Timed]) -> tuple[list[Kernel], list[str], NDArray[np.int64]]:
    """All kernels of all networks, what they execute as, and which network each belongs to."""
    kernels = [kernel for item in timed for kernel in item.network.view.kernels]
    counts = [len(item.network.view.kernels) for item in timed]
    return kernels, [executed_type(kernel) for kernel in kernels], np.repeat(np.arange(len(timed)), counts)


def _boosted(base: FamilyModel, inputs: Array, errors: Array, shares: Array) -> FamilyModel:
    """A family's model with a few more trees."""
    factors = 1.0 if base.trees is None else 1.0 + base.trees.predict(inputs)
    more = fit_trees(inputs, errors * factors, shares, trees=_WALL_TREES, rate=_WALL_RATE)
    return replace(base, trees=more if base.trees is None else base.trees.with_more(more))


def kernel_rows(
    timed: Sequence[Timed], fitted: Fitted
) -> dict[tuple[Family, str], tuple[list[Kernel], Array]]:
    """All kernels with their microseconds by the profiler, its overhead removed.

    What the profiler's whole microseconds lose or gain over a network shows in the clock time of the whole
    call; it is shared out evenly over the executed nodes. Kernels that an incomplete profile lacks are left out.
    """
    collected: dict[tuple[Family, str], tuple[list[Kernel], list[float]]] = {}
    for item in timed:
        shift = -fitted.profiler_us
        if item.complete:
            missing = item.wall - fitted.model.session_us - (item.profiled - item.events * fitted.profiler_us)
            shift += float(np.clip(missing / item.events, -_LARGEST_SHIFT_US, _LARGEST_SHIFT_US))
        for kernel, spent, events in zip(
            item.network.view.kernels, item.kernels, item.kernel_events, strict=True
        ):
            if not item.complete and not events:
                continue
            kernels, times = collected.setdefault((kernel.family, executed_type(kernel)), ([], []))
            kernels.append(kernel)
            times.append(spent + events * shift)
    return {key: (kernels, np.array(times)) for key, (kernels, times) in collected.items()}


def network_us(model: LatencyModel, timed: Sequence[Timed]) -> Array:
    """Predicted microseconds of whole networks, shape (networks,)."""
    return np.array([parts[:2].sum() + parts[2:].sum() for parts in _parts(model, timed)])


def _parts(model: LatencyModel, timed: Sequence[Timed]) -> Array:
    """Columns float32 kernels, int8 kernels, conversions, session: shape (networks, 4)."""
    kernels, types, networks = _all_kernels(timed)
    times, quantised = model.kernel_us(kernels, types), np.array([name == "int8" for name in types], dtype=bool)
    boundaries = [item for one in timed for item in one.network.view.boundaries]
    crossed = np.repeat(np.arange(len(timed)), [len(one.network.view.boundaries) for one in timed])
    count = len(timed)
    return np.column_stack([
        np.bincount(networks[~quantised], times[~quantised], count),
        np.bincount(networks[quantised], times[quantised], count),
        np.bincount(crossed, model.boundary_us(boundaries), count),
        np.full(count, model.session_us),
    ])


def _calibrated(model: LatencyModel, timed: Sequence[Timed]) -> LatencyModel:
    """One scalar per executed type from whole networks, and the interval of measured / predicted."""
    parts = _parts(model, timed)
    wall = np.array([item.wall for item in timed])
    rest = wall - parts[:, 2] - parts[:, 3]
    scalars = non_negative_least_squares(parts[:, :2] / wall[:, None], rest / wall)
    used = parts[:, :2].any(axis=0) & (scalars > 0)
    calibration = {name: float(scalars[i]) if used[i] else 1.0 for i, name in enumerate(("float32", "int8"))}
    return replace(model, calibration=calibration)


def with_interval(model: LatencyModel, result: Accuracy) -> LatencyModel:
    """Store the residual quantiles of held-out networks as the prediction interval.

    The prediction itself always lies inside: a few networks, measured in a hurry, may all turn out faster
    (or all slower) than predicted.
    """
    return replace(model, low=min(1.0, result.low), high=max(1.0, result.high))


def kernel_accuracy(
    fitted: Fitted,
    timed: Sequence[Timed],
    smallest_us: float = 5.0,
) -> Mapping[tuple[Family, str], Accuracy]:
    """Errors per (family, executed type) on kernels predicted to take at least `smallest_us`.

    Shorter kernels are below what the profiler resolves; whole networks check them.
    """
    result = {}
    for (family, executed), (kernels, times) in sorted(kernel_rows(timed, fitted).items()):
        predicted = fitted.model.kernel_us(kernels, [executed] * len(kernels))
        long = predicted >= smallest_us
        if long.any():
            result[family, executed] = accuracy(predicted[long], np.maximum(times[long], 0.1))
    return result


