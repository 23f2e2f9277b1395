"""Ray Tune's `OptunaSearch` without what it loses, for experiments that are Tune's own.

`--executor tune` needs none of this: there the driver proposes. Whoever writes a `Tuner` of their own around
`ParetoSampler`, or any sampler of Optuna, gets here what Ray 2.60 leaves out: constraints reach the sampler, a value
that is not finite ends the trial as failed instead of leaving it running for ever, and a trial that a scheduler stopped
early is pruned instead of entering the front with what it had by then.
"""

from __future__ import annotations

import math
from typing import Any

from optuna.trial import TrialState
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search.optuna import OptunaSearch

CONSTRAINTS = "constraints/"   # Tune takes mappings apart: {"constraints": {"size": -1.0}} arrives as constraints/size


class CompleteOptunaSearch(OptunaSearch):  # type: ignore[misc]  # Ray has no types
    """`OptunaSearch` that tells Optuna how trials really ended.

    A trial's result may hold `constraints`, a mapping of names to violations, at most 0 where they are met.
    """

    def __init__(self, *arguments: Any, iterations: int = 1, **options: Any) -> None:  # noqa: ANN401 - Ray's own
        """Make the searcher.

        Args:
            arguments: Of `OptunaSearch`.
            iterations: Results of a trial that was not stopped early.
            options: Of `OptunaSearch`.
        """
        super().__init__(*arguments, **options)
        self._iterations = iterations

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended, once."""
        if trial_id in self._completed_trials:
            return
        trial = self._ot_trials[trial_id]
        plain = result or {}
        names = self._metric if isinstance(self._metric, list) else [self._metric]
        values = [plain.get(name) for name in names]
        violations = {name.removeprefix(CONSTRAINTS): plain[name] for name in plain if name.startswith(CONSTRAINTS)}
        for name, value in violations.items():
            if _finite(value):
                trial.set_constraint(name, float(value))
        if error or not all(map(_finite, [*values, *violations.values()])):
            self._ot_study.tell(trial, state=TrialState.FAIL)
        elif plain.get(TRAINING_ITERATION, self._iterations) < self._iterations:
            self._ot_study.tell(trial, state=TrialState.PRUNED)
        else:
            self._ot_study.tell(trial, [float(value) for value in values if value is not None])
        self._completed_trials.add(trial_id)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
