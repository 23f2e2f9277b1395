"""The candidate evaluator: predicted costs first, then the label-free proxy, the true metric last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from paretopress.compressors.entries import Entries
from paretopress.compressors.network import Network
from paretopress.evaluators.batches import Batches
from paretopress.evaluators.construction import outputs_on, stitched
from paretopress.evaluators.costs import CostModel, runs_everywhere, violations
from paretopress.evaluators.divergence import divergence
from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.evaluators.metrics import Metric, score
from paretopress.spaces.plan import Plan, plan
from paretopress.spaces.policy import Policy

HOPELESS_DIVERGENCE = 1.0   # nats: such a model agrees with the dense one hardly better than chance
DROP = "max_drop"
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

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the constraints that every complete evaluation has."""
        return (self.held_to or self.limits).names

    def __call__(self, policy: Policy) -> Evaluation:
        """Evaluate one policy."""
        *_, (evaluation, _final) = self.stages(policy)
        return evaluation

    def stages(self, policy: Policy) -> Iterator[tuple[Evaluation, bool]]:
        """Evaluate one policy in at most two stages: the proxy, then the metric.

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
        if loss > self.hopeless:
            yield Evaluation(State.SCREENED, values, over, f"screened by proxy: divergence {loss:.3g} nats"), True
            return
        yield Evaluation(State.SCREENED, {**values, "divergence": loss}, over, "not scored"), False
        scores = self.score(network)
        constraints = (self.held_to or self.limits).check(costs, scores["accuracy"])
        yield Evaluation(State.COMPLETE, {**scores, **values}, constraints).checked(), True

    def _screened_by_cost(self, planned: Plan, costs: Mapping[str, float], over: Mapping[str, float]) -> str:
        """Return why predicted costs rule a candidate out, `""` where they do not."""
        if no_room := self.costs.over_capacity(planned):
            return "; ".join(no_room.values())
        for label, name, limit in self.limits.costs:
            if costs[name] > limit * (1.0 + self.slack):
                return f"{label} exceeds its budget by {over[label]:g}"
        return ""

    def _refused(self, planned: Plan, costs: Mapping[str, float]) -> Evaluation:
        """Screen what a target cannot execute: its time is unknown, so that no violation can be compared."""
        values = {name: costs[name] for name in self.objectives if math.isfinite(costs[name])}
        reason = "; ".join(self.costs.refusals(planned).values())
        return Evaluation(State.SCREENED, values, {}, f"screened by cost: {reason}")

    def ready(self, limits: Callable[[float], Limits], distilled: bool = False) -> CandidateEvaluator:
        """Return the evaluator with the dense outputs and the budgets that follow from the dense accuracy.

        Args:
            limits: The budgets, given the dense accuracy.
            distilled: Whether finalists are distilled: what diverges more than they may is worth scoring then.
        """
        outputs, scores = self._run(self.entries.calibration.base)
        wanted = limits(scores["accuracy"])
        held_to = wanted.before_distillation(scores["accuracy"]) if distilled else None
        hopeless = HOPELESS_FOR_DISTILLATION if distilled else HOPELESS_DIVERGENCE
        return replace(self, limits=wanted, dense_outputs=outputs, hopeless=hopeless, held_to=held_to)

    def build(self, policy: Policy) -> tuple[Network, float]:
        """Return the tuned network of a policy and its divergence on the tuning samples."""
        return stitched(self.entries, policy)

    def score(self, network: Network) -> dict[str, float]:
        """Return every metric of a network on the samples, and its `divergence` from the dense model there."""
        outputs, scores = self._run(network)
        return {**scores, "divergence": divergence(self.dense_outputs, outputs)}

    def _run(self, network: Network) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        outputs, flat = outputs_on(self.entries.program, network, self.samples)
        return flat, score(self.metrics, outputs, self.samples.targets)
