"""Ray Tune's side of a search that the driver owns: the searcher, and what ends an experiment."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import Outcome, failed
from paretopress.spaces.choices import choice_to_plain
from paretopress.spaces.documents import canonical_json
from paretopress.spaces.errors import ConfigError, DiskError, ParetopressError, StorageError
from paretopress.spaces.policy import Policy

STOPPED = "stopped early by Tune's scheduler"
_POLL_SECONDS = 0.05
_RAISED = {"DiskError": DiskError, "StorageError": StorageError}


class DriverSearch(Searcher):  # type: ignore[misc]  # Ray has no types
    """The searcher that hands Tune what a driver submits, and the driver what became of it.

    Tune calls it in its own thread. Nothing of it is stored in Tune's folder: a search is continued from its ledger.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Policy]] = deque()
        self._running: dict[str, tuple[int, float]] = {}
        self._done: queue.SimpleQueue[Outcome | ParetopressError] = queue.SimpleQueue()
        self._returned = self._submitted = 0
        self.finished = False

    @property
    def pending(self) -> int:
        """Submitted policies whose outcome was not taken."""
        return self._submitted - self._returned

    def submit(self, number: int, policy: Policy) -> None:
        """Queue a policy."""
        with self._changed:
            self._submitted += 1
            self._waiting.append((number, policy))
            self._changed.notify()

    def take(self, timeout: float) -> Outcome:
        """Return the next outcome.

        Raises:
            queue.Empty: There is none yet.
            ParetopressError: The surroundings failed, not a candidate.
        """
        found = self._done.get(timeout=timeout)
        self._returned += 1
        if isinstance(found, ParetopressError):
            raise found
        return found

    def finish(self) -> None:
        """Let Tune end: no further trials, and those that run are stopped."""
        with self._changed:
            self.finished = True
            self._changed.notify()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's configuration; waits for one where nothing runs that Tune must look after."""
        with self._changed:
            while not (self._waiting or self.finished or self._running):
                self._changed.wait()
            if self.finished:
                return str(Searcher.FINISHED)
            if not self._waiting:
                return None
            number, policy = self._waiting.popleft()
            self._running[trial_id] = number, time.monotonic()
        units = {name: choice_to_plain(choice) for name, choice in policy}
        # Text, because Tune takes mappings apart at every slash.
        return {"number": number, "policy": canonical_json(units), "model": policy.model, "space": policy.space}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Turn what Tune knows of a finished trial into the outcome."""
        with self._changed:
            number, started = self._running.pop(trial_id)
            self._changed.notify()
        seconds = time.monotonic() - started
        self._done.put(outcome_of(number, None if error else result, seconds))
        deadline = time.monotonic() + _POLL_SECONDS
        with self._changed:   # the driver answers at once: the actor finds its next trial and needs no new start
            while not self._waiting and not self.finished and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: Tune asks for one."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: the ledger continues a search, Tune's folder cannot."""
        raise ConfigError(f"{checkpoint_path}: the same command continues the search, from its run directory")

    def __getstate__(self) -> dict[str, Any]:
        return {}


def outcome_of(number: int, result: dict[str, Any] | None, seconds: float) -> Outcome | ParetopressError:
    """Return what a trial's last result means.

    Args:
        number: Of the trial.
        result: As `StagedEvaluation` reports it; None where the trial ended with an error, twice.
        seconds: Since the trial was handed to Tune.
    """
    if result is None or "evaluation" not in result:
        return Outcome(number, failed("worker died (Ray Tune trial)"), seconds)
    if result["unloadable"]:
        return ConfigError(f"a worker cannot load the evaluator: {result['unloadable']}")
    if result["raised"]:
        kind, _, message = str(result["raised"]).partition(": ")
        return _RAISED[kind](message)
    plain = json.loads(result["evaluation"])
    evaluation = Evaluation(State(plain["state"]), plain["values"], plain["constraints"], plain["reason"],
                            plain["trace"], plain["images"])
    if not result["final"]:
        evaluation = replace(evaluation, state=State.SCREENED, reason=STOPPED)
    return Outcome(number, evaluation, float(result["seconds"]))


class StopWhenFinished(Stopper):  # type: ignore[misc]  # Ray has no types
    """Ends the experiment once its search is finished."""

    def __init__(self, search: DriverSearch) -> None:
        self._search: DriverSearch | None = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        """Never stop a single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether the search is finished."""
        return self._search is not None and self._search.finished

    def __getstate__(self) -> dict[str, Any]:
        return {"_search": None}
