"""What runs in the actors of a Tune experiment: the evaluation of one policy, one result per stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from ray import tune

from paretopress.evaluators.evaluation import Evaluation
from paretopress.search.executors import add_import_paths, evaluate_safely, failed, from_payload
from paretopress.search.tasks import Task
from paretopress.spaces.documents import canonical_json
from paretopress.spaces.errors import DiskError, StorageError
from paretopress.spaces.policy import DENSE, Policy

RUNG_METRIC = "objectives/divergence"   # known after the first of two stages


class StagedEvaluation(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """A trial in a reused actor: one policy, one result per stage."""

    def setup(self, config: dict[str, Any], payload: bytes, paths: list[str]) -> None:
        """Load the evaluator, once per actor."""
        self._unloadable = ""
        add_import_paths(paths)
        try:
            self._evaluate = from_payload(payload)   # Ray delivers our driver's bytes, as it delivered this class
        except Exception as error:  # noqa: BLE001 - reported by the driver in one line
            self._unloadable = f"{type(error).__name__}: {error}"
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next policy."""
        units = json.loads(new_config["policy"])
        plain = {"units": units, "model": new_config["model"], "space": new_config["space"]}
        self._seconds = 0.0
        self._stages = self._staged(Policy.from_plain(plain))
        return True

    def _staged(self, policy: Policy) -> Iterator[tuple[Evaluation, bool]]:
        stages = getattr(self._evaluate, "stages", None)
        if stages is None:
            yield self._evaluate(policy), True
        else:
            yield from stages(policy)

    def step(self) -> dict[str, Any]:
        """Compute one stage."""
        if self._unloadable:
            return self._report(failed(self._unloadable), final=True)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        final = True

        def stage(_task: Task) -> Evaluation:
            nonlocal final
            evaluation, final = next(self._stages)
            return evaluation

        try:
            evaluation, seconds = evaluate_safely(stage, DENSE)
        except (DiskError, StorageError) as error:
            return self._report(failed(str(error)), final=True, raised=f"{type(error).__name__}: {error}")
        self._seconds += seconds
        return self._report(evaluation, final=final)

    def _report(self, evaluation: Evaluation, *, final: bool, raised: str = "") -> dict[str, Any]:
        plain = {
            "state": evaluation.state.value, "values": dict(evaluation.values),
            "constraints": dict(evaluation.constraints), "reason": evaluation.reason,
            "trace": evaluation.trace, "images": evaluation.images,
        }
        return {
            "objectives": plain["values"], "violations": plain["constraints"], "state": plain["state"],
            "evaluation": canonical_json(plain), "final": final, "seconds": self._seconds, "raised": raised,
            "unloadable": self._unloadable, "done": final,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Store nothing: an evaluation that is cut short begins again."""

    def load_checkpoint(self, checkpoint: Any) -> None:  # noqa: ANN401
        """Load nothing."""
