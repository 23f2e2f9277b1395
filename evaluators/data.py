"""Data: the user's calibration, search and holdout sets, checked against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paretopress.evaluators.batches import (
    Batch,
    Batches,
    Set,
    normalise_set,
    sample_difference,
    target_difference,
)
from paretopress.evaluators.metrics import Metric, MetricLike, normalise_metric, top1
from paretopress.spaces.documents import fingerprint
from paretopress.spaces.errors import DataError

__all__ = ["BATCH_SIZE", "Batch", "Batches", "Data", "PreparedData", "normalise_set", "prepare"]

BATCH_SIZE = 128
FEWEST_APART = 64   # samples on either side from which on a set that is both calibration and search is divided


@dataclass(frozen=True)
class Data:
    """The data of a run.

    A set is `(inputs, targets)`, a tuple of exactly two, or an iterable that yields such pairs batch by
    batch (a `DataLoader`, a list, a generator) or sample by sample (a `Dataset`); calibration and train may
    be inputs only. Inputs are a tensor or array, a tuple (positional) or a mapping (keywords, such as the
    `BatchEncoding` of a tokenizer), samples on dimension 0. In a mapping, `labels` or `label` are the
    targets. A generator is read once, here.

    Attributes:
        calibration: Inputs that statistics are taken from; may be the search set.
        search: What candidates are scored on.
        holdout: What finalists are verified on; must share no sample with calibration, search or train.
        metric: `(outputs, targets) -> float` (maximised), a `Metric`, or `{name: either}`, the first of which
            is the objective `accuracy`.
        train: What retraining and distillation may use.
    """

    calibration: Set
    search: Set
    holdout: Set
    metric: MetricLike | Mapping[str, MetricLike] = top1
    train: Set | None = None

    def __post_init__(self) -> None:
        read: dict[int, list[Any]] = {}
        for name in ("calibration", "search", "holdout", "train"):
            value = getattr(self, name)
            if isinstance(value, Iterator):
                object.__setattr__(self, name, read.setdefault(id(value), list(value)))


@dataclass(frozen=True)
class PreparedData:
    """Checked and batched data.

    Attributes:
        calibration: Statistics are taken from these; targets may be missing.
        search: Candidates are scored on these; targets are present.
        holdout: Finalists are verified on these; targets are present.
        train: For retraining; targets may be missing; None where the user gave none.
        metrics: The first is `accuracy`.
        fingerprint: Sixteen hexadecimal digits of all sets, the batch size and the metrics.
        fitted: The calibration samples that compressed layers are fitted to: all that are not scored.
        scored: The search samples that candidates are scored on: all that are not fitted to, where that leaves
            enough of both.
    """

    calibration: Batches
    search: Batches
    holdout: Batches
    train: Batches | None
    metrics: tuple[Metric, ...]
    fingerprint: str
    fitted: Batches
    scored: Batches


def prepare(data: Data, batch_size: int = BATCH_SIZE) -> PreparedData:
    """Check the sets against each other and batch them.

    Raises:
        DataError: One line naming the set and batch: empty, not finite, counts or shapes that do not match,
            or samples of calibration, search or train that also stand in holdout.
        ConfigError: A malformed metric.
    """
    metrics = normalise_metric(data.metric)
    search = normalise_set(data.search, "search", batch_size, needs_targets=True)
    holdout = normalise_set(data.holdout, "holdout", batch_size, needs_targets=True)
    train = None
    if data.train is not None:
        train = normalise_set(data.train, "train", batch_size, needs_targets=False)
    if data.calibration is data.search:
        calibration = replace(search, name="calibration")
    else:
        calibration = normalise_set(data.calibration, "calibration", batch_size, needs_targets=False)
    for other in (calibration, holdout, *([train] if train else [])):
        _require_same_samples(search, other)
    others = [search, *([] if calibration.whole is search.whole else [calibration]), *([train] if train else [])]
    _require_unseen(holdout, others)
    sets = [one.fingerprint if one else None for one in (calibration, search, holdout, train)]
    fitted, scored = divide(calibration, search)
    counts = [fitted.count, scored.count]
    identity = fingerprint([sets, batch_size, [metric.identity() for metric in metrics], counts])
    return PreparedData(calibration, search, holdout, train, metrics, identity, fitted, scored)


def divide(calibration: Batches, search: Batches) -> tuple[Batches, Batches]:
    """Part the samples that stand in both sets: layers are fitted to every second one, candidates scored on the others.

    Least squares on the very samples that a candidate is scored on make the smallest candidates look best: they have
    the most to fit.

    Returns:
        What is fitted to and what is scored; both sets as they are where they share nothing, or where either side
        would keep fewer than `FEWEST_APART` samples.
    """
    known = set(calibration.row_hashes())
    rows = search.row_hashes()
    shared = list(dict.fromkeys(digest for digest in rows if digest in known))
    if not shared:
        return calibration, search
    only_scored, only_fitted = set(shared[1::2]), set(shared[::2])
    scored = [row for row, digest in enumerate(rows) if digest not in only_fitted]
    fitted = [row for row, digest in enumerate(calibration.row_hashes()) if digest not in only_scored]
    if min(len(scored), len(fitted)) < FEWEST_APART:
        return calibration, search
    return calibration.take(fitted), search.take(scored)


def _require_same_samples(expected: Batches, got: Batches) -> None:
    difference = sample_difference(expected.whole, got.whole)
    if not difference and got.whole.targets is not None:
        difference = target_difference(expected.whole, got.whole)
    if difference:
        raise DataError(f"{got.name} does not fit {expected.name}: {difference}")


def _require_unseen(holdout: Batches, others: Sequence[Batches]) -> None:
    rows = holdout.row_hashes()
    for seen in others:
        known = set(seen.row_hashes())
        shared = [row for row, digest in enumerate(rows) if digest in known]
        if shared:
            raise DataError(
                f"{len(shared)} of {holdout.count} holdout samples also stand in {seen.name} "
                f"(first: row {shared[0]}); holdout must be data that nothing else has seen"
            )
