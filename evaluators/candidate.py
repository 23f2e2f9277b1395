"""The candidate evaluator: predicted costs first, then the label-free proxy, the true metric last.

The metric is scored batch by batch: once a candidate is clearly worse than others that cost no more, or clearly outside
the budget on the metric, the samples that are left are not forwarded (`subset_test`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from paretopress.compressors.entries import Entries
from paretopress.compressors.network import Network
from paretopress.evaluators.batches import Batches
from paretopress.evaluators.construction import flat_outputs, outputs_of, outputs_on, stitched
from paretopress.evaluators.costs import CostModel, runs_everywhere, violations
from paretopress.evaluators.divergence import divergence
from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.evaluators.metrics import Array, Metric, concatenate_outputs, score
from paretopress.evaluators.subset_test import NO_RIVALS, Bar, Rivals, halted_at
from paretopress.spaces.errors import DataError
from paretopress.spaces.plan import Plan, plan
from paretopress.spaces.policy import Policy

HOPELESS_DIVERGENCE = 1.0   # nats: such a model agrees with the dense one hardly better than chance
DROP = "max_drop"
SAME = 1e-6                 # by which a metric and the mean of its sample values may differ
RECOVERABLE = 0.3           # of the dense accuracy: what distillation may recover
HOPELESS_FOR_DISTILLATION = 3.0   # nats: of keyword spotting at half width, 1 nat becomes 0.1 by distillation


@dataclass(frozen=True)
class Limits:
    """Budgets as numbers.

    Attributes:
        costs: `(label, cost name, limit)`; the label is what the user asked for.
        accuracy: The worst accuracy allowed, None where no drop budget is set.
        direction: `"max"` or `"min"`: which accuracy is better.
        drop_label: Name of the constraint on accuracy.
    """

    costs: tuple[tuple[str, str, float], ...] = ()
    accuracy: float | None = None
    direction: str = "max"
    drop_label: str = DROP

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the constraints, in order."""
        drop = (self.drop_label,) if self.accuracy is not None else ()
        return (*(label for label, _, _ in self.costs), *drop)

    def check(self, costs: Mapping[str, float], accuracy: float | None) -> dict[str, float]:
        """Return how far each budget is exceeded; at most 0 where it is met."""
        found = violations(self.costs, costs)
        if self.accuracy is not None and accuracy is not None:
            worse = self.accuracy - accuracy if self.direction == "max" else accuracy - self.accuracy
            found[self.drop_label] = 0.0 if abs(worse) < 1e-9 else worse
        return found

    def before_distillation(self, dense: float) -> Limits:
        """The same for candidates that are distilled later, which may lose more of the dense accuracy before."""
        if self.accuracy is None:
            return self
        more = RECOVERABLE * abs(dense)
        worst = self.accuracy - more if self.direction == "max" else self.accuracy + more
        return replace(self, accuracy=worst, drop_label=f"{DROP} before distillation")


@dataclass(frozen=True)
class CandidateEvaluator:
    """Evaluates policies; ships to workers as one value.

    Attributes:
        entries: Memoised compressed layers.
        costs: Cost models of the target devices.
        samples: What candidates are scored on.
        metrics: The first is `accuracy`.
        limits: Budgets.
        objectives: Cost names that are objectives beside `accuracy`.
        dense_outputs: The dense model's outputs on `samples`, flat, for the divergence; empty before
            they are known.
        slack: Fraction by which a predicted cost may exceed its budget before the candidate is
            screened: neighbours of the boundary still teach the sampler.
        hopeless: Divergence in nats from which on a candidate is not scored.
        held_to: The budgets that candidates are held to, where they are not those of the finalists.
        dense_scores: The dense model's value of the first metric on every sample, where it is a mean of such values
            and scoring may end early; else None.
    """

    entries: Entries
    costs: CostModel
    samples: Batches
    metrics: tuple[Metric, ...]
    limits: Limits
    objectives: tuple[str, ...]
    dense_outputs: tuple[Tensor, ...] = ()
    slack: float = 0.1
    hopeless: float = HOPELESS_DIVERGENCE
    held_to: Limits | None = None
    dense_scores: Array | None = None

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the constraints that every complete evaluation has."""
        return (self.held_to or self.limits).names

    def __call__(self, policy: Policy, rivals: Rivals = NO_RIVALS) -> Evaluation:
        """Evaluate one policy.

        Args:
            policy: What to evaluate.
            rivals: What others have reached: a policy that is clearly worse than one of them in everything is not
                scored on all samples. Its values are then those to be expected from the samples that it was scored on.
        """
        *_, (evaluation, _final) = self.stages(policy, rivals)
        return evaluation

    def stages(self, policy: Policy, rivals: Rivals = NO_RIVALS) -> Iterator[tuple[Evaluation, bool]]:
        """Evaluate one policy in at most two stages: the proxy, then the metric.

        Args:
            policy: What to evaluate.
            rivals: As above.

        Yields:
            What is known, and whether it is the evaluation itself. What comes before that holds the predicted costs
            and the `divergence` on the tuning samples, which says whether going on may be worth it.
        """
        program = self.entries.program
        planned = plan(program.structure, policy)
        costs = self.costs.predict(planned)
        if not runs_everywhere(costs):
            yield self._refused(planned, costs), True
            return
        values = {name: costs[name] for name in self.objectives}
        over = self.limits.check(costs, None)
        if screened := self._screened_by_cost(planned, costs, over):
            yield Evaluation(State.SCREENED, values, over, f"screened by cost: {screened}"), True
            return
        network, loss = self.build(policy)
        tuned = 0 if policy.is_dense else len(self.entries.calibration.inputs[0])
        if loss > self.hopeless:
            reason = f"screened by proxy: divergence {loss:.3g} nats"
            yield Evaluation(State.SCREENED, values, over, reason, images=tuned), True
            return
        yield Evaluation(State.SCREENED, {**values, "divergence": loss}, over, "not scored", images=tuned), False
        bars = [] if policy.is_dense else self._bars([values[name] for name in rivals.costs], rivals)
        yield self._scored(network, bars, values, costs, tuned), True

    def _screened_by_cost(self, planned: Plan, costs: Mapping[str, float], over: Mapping[str, float]) -> str:
        """Return why predicted costs rule a candidate out, `""` where they do not."""
        if no_room := self.costs.over_capacity(planned):
            return "; ".join(no_room.values())
        for label, name, limit in self.limits.costs:
            if costs[name] > limit * (1.0 + self.slack):
                return f"{label} exceeds its budget by {over[label]:g}"
        return ""

    def _bars(self, costs: Sequence[float], rivals: Rivals) -> list[Bar]:
        """What a candidate has to reach: every rival that costs no more, and twice the loss that a budget allows."""
        if self.dense_scores is None or rivals is NO_RIVALS:
            return []
        found = [Bar(value, divergence, "of a candidate that costs no more")
                 for value, divergence in rivals.no_dearer(costs)]
        limits = self.held_to or self.limits
        if limits.accuracy is not None:   # what misses a budget by little is the nearest where nothing meets it
            dense = float(self.dense_scores.mean())
            far = 2.0 * limits.accuracy - dense
            found.append(Bar(far, -math.inf, f"that is twice what {limits.drop_label} allows"))
        return found

    def _scored(
        self, network: Network, bars: Sequence[Bar], values: Mapping[str, float], costs: Mapping[str, float], tuned: int
    ) -> Evaluation:
        """Score a network on the samples, or on the first of them where these tell enough."""
        limits, collected = self.held_to or self.limits, []
        seen: list[Array] = []
        for batch in self.samples:
            collected.append(outputs_of(self.entries.program, network, batch))
            found = self._halted(collected, batch.targets, seen, bars) if bars else None
            if found is not None:
                reason, expected = found
                constraints = limits.check(costs, expected["accuracy"])
                images = tuned + sum(map(len, seen))
                return Evaluation(State.SCREENED, {**expected, **values}, constraints, reason, images=images).checked()
        outputs = concatenate_outputs(collected)
        scores = {**score(self.metrics, outputs, self.samples.targets),
                  "divergence": divergence(self.dense_outputs, flat_outputs(outputs))}
        constraints = limits.check(costs, scores["accuracy"])
        return Evaluation(
            State.COMPLETE, {**scores, **values}, constraints, images=tuned + self.samples.count
        ).checked()

    def _halted(
        self, collected: Sequence[Any], targets: Tensor | None, seen: list[Array], bars: Sequence[Bar]
    ) -> tuple[str, dict[str, float]] | None:
        """Why the samples so far are enough, and what is to be expected of all; None where they are not."""
        assert self.dense_scores is not None
        assert targets is not None
        metric, total = self.metrics[0], self.samples.count
        own = metric.sample_scores(collected[-1], targets)
        assert own is not None
        seen.append(own)
        so_far = np.concatenate(seen)
        if len(so_far) == total:
            return None
        dense = [tensor[: len(so_far)] for tensor in self.dense_outputs]
        loss = divergence(dense, flat_outputs(concatenate_outputs(collected)))
        if not math.isfinite(loss):
            return None
        sign = 1.0 if metric.direction == "max" else -1.0
        halted = halted_at(so_far, self.dense_scores, sign, bars, loss)
        if halted is None:
            return None
        bar, value = halted
        reason = (f"screened by subset: {metric.label or metric.name} about {value:.4g} on {len(so_far)} of {total} "
                  f"samples, worse than the {bar.value:.4g} {bar.reason}")
        return reason, {"accuracy": value, "divergence": loss}

    def _refused(self, planned: Plan, costs: Mapping[str, float]) -> Evaluation:
        """Screen what a target cannot execute: its time is unknown, so that no violation can be compared."""
        values = {name: costs[name] for name in self.objectives if math.isfinite(costs[name])}
        reason = "; ".join(self.costs.refusals(planned).values())
        return Evaluation(State.SCREENED, values, {}, f"screened by cost: {reason}")

    def ready(
        self, limits: Callable[[float], Limits], distilled: bool = False, *, subsets: bool = False
    ) -> CandidateEvaluator:
        """Return the evaluator with the dense outputs and the budgets that follow from the dense accuracy.

        Args:
            limits: The budgets, given the dense accuracy.
            distilled: Whether finalists are distilled: what diverges more than they may is worth scoring then.
            subsets: Whether scoring may end early; the samples must be in a random order then.
        """
        outputs, scores = self._run(self.entries.calibration.base)
        wanted = limits(scores["accuracy"])
        held_to = wanted.before_distillation(scores["accuracy"]) if distilled else None
        hopeless = HOPELESS_FOR_DISTILLATION if distilled else HOPELESS_DIVERGENCE
        return replace(self, limits=wanted, dense_outputs=flat_outputs(outputs), hopeless=hopeless, held_to=held_to,
                       dense_scores=self._sample_scores(outputs, scores["accuracy"]) if subsets else None)

    def _sample_scores(self, outputs: Any, value: float) -> Array | None:  # noqa: ANN401
        """The first metric's value on every sample, None where it has none. Raises `DataError` where they are wrong."""
        metric = self.metrics[0]
        found = metric.sample_scores(outputs, self.samples.targets)
        if found is not None and abs(float(found.mean()) - value) > SAME:
            raise DataError(f"metric {metric.label or metric.name!r}: the mean of its sample values is "
                            f"{float(found.mean()):.6g}, the metric itself {value:.6g} (allowed: both alike)")
        return found

    def build(self, policy: Policy) -> tuple[Network, float]:
        """Return the tuned network of a policy and its divergence on the tuning samples."""
        return stitched(self.entries, policy)

    def score(self, network: Network) -> dict[str, float]:
        """Return every metric of a network on the samples, and its `divergence` from the dense model there."""
        outputs, scores = self._run(network)
        return {**scores, "divergence": divergence(self.dense_outputs, flat_outputs(outputs))}

    def _run(self, network: Network) -> tuple[Any, dict[str, float]]:
        outputs = outputs_on(self.entries.program, network, self.samples)
        return outputs, score(self.metrics, outputs, self.samples.targets)
