"""A worker of a shared search: claim, evaluate in a child process, commit, tell; and so on.

The worker itself never evaluates: it renews its leases while its executor's processes do. What the storage cannot be
told now stays in the outbox and is told later; what a worker that died has committed is told by any other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import Executor, Outcome
from paretopress.search.fault_points import fault_point
from paretopress.search.outbox import Committed, Outbox
from paretopress.search.patience import Patience
from paretopress.search.process_identity import is_known_dead
from paretopress.search.storages.result_text import read_result, result_text
from paretopress.search.storages.trial_store import FAILURES_ALLOWED, Claim, TrialStore, Verdict
from paretopress.spaces.documents import parse_json
from paretopress.spaces.errors import ConfigError, PolicyError
from paretopress.spaces.policy import Policy

LEASE_SECONDS = 60.0
_RENEWALS = 4             # of a lease in its time
_IDLE_SECONDS = 0.05      # between two looks for work
_DIED = "worker died"     # how executors begin the reason of a child process's death


@dataclass
class _Job:
    """An evaluation under way."""

    claim: Claim
    lost: bool = False


class StorageWorker:
    """Evaluates trials of a shared search, `executor.capacity` at a time."""

    def __init__(
        self,
        store: TrialStore,
        outbox: Outbox,
        executor: Executor,
        name: str,
        patience: Patience,
        *,
        lease_seconds: float = LEASE_SECONDS,
        message: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Args are what it works with; `name` must be this process's alone (`process_name`)."""
        self.name = name
        self.evaluated = 0
        self._store, self._outbox, self._executor, self._patience = store, outbox, executor, patience
        self._lease, self._message = lease_seconds, message
        self._jobs: dict[int, _Job] = {}
        self._numbers = itertools.count()
        self._untold: list[Committed] = []
        self._renewed = self._swept = self._looked = float("-inf")

    @property
    def busy(self) -> bool:
        """Whether something is under way or untold."""
        return bool(self._jobs or self._untold)

    def step(self, timeout_seconds: float, *, claiming: bool = True) -> list[Outcome]:
        """Do what is due, and wait a little for an evaluation to end.

        Args:
            timeout_seconds: How long to wait at most.
            claiming: Whether to take new trials.

        Returns:
            What was told and accepted meanwhile.

        Raises:
            StorageError: The storage has been away for too long.
            DiskError: A result cannot be committed.
        """
        self._renew()
        self._sweep()
        told = self._tell()
        if claiming:
            self._claim()
        if self._jobs:
            outcome = self._executor.next_result(timeout_seconds)
            if outcome is not None:
                self._commit(outcome)
                told += self._tell()
        elif not told:
            time.sleep(min(timeout_seconds, _IDLE_SECONDS))
        return told

    def _renew(self) -> None:
        if time.monotonic() - self._renewed < self._lease / _RENEWALS:
            return
        fault_point("before renew" if self._jobs else "before announce")
        capacity = self._executor.capacity
        held = self._patience.attempt(lambda: self._store.announce(self.name, capacity, self._lease))
        if held is None:
            return
        fault_point("after renew" if self._jobs else "after announce")
        self._renewed = time.monotonic()
        for job in self._jobs.values():
            if not job.lost and (job.claim.number, job.claim.token) not in held:
                job.lost = True
                self._message(f"trial {job.claim.number}: the lease lapsed meanwhile; others may evaluate it too")

    def _sweep(self) -> None:
        """Tell what others have committed, then return trials whose leases have lapsed. Any worker may, at any time."""
        if time.monotonic() - self._swept < self._lease / _RENEWALS:
            return
        self._swept = time.monotonic()
        self.recover(self._lease / _RENEWALS)
        fault_point("before sweep")
        count = self._patience.attempt(partial(sweep, self._store))
        if count:
            self._message(f"{count} trials of workers that vanished go to others")
        fault_point("after sweep")

    def recover(self, older_than: float = 0.0) -> None:
        """Take over committed results of an age, in seconds, that nobody has told."""
        fault_point("before drain")
        known = {committed.folder for committed in self._untold}
        self._untold += [one for one in self._outbox.waiting(older_than) if one.folder not in known]
        fault_point("after drain")

    def _claim(self) -> None:
        while len(self._jobs) < self._executor.capacity:
            idle = time.monotonic() - self._looked < _IDLE_SECONDS
            if idle:
                return
            held = [(job.claim.number, job.claim.token) for job in self._jobs.values()]
            held += [(committed.result.number, committed.result.token) for committed in self._untold]
            fault_point("before claim")
            claim = self._patience.attempt(lambda: self._store.claim(self.name, self._lease, held))  # noqa: B023
            if claim is None:
                self._looked = time.monotonic()
                return
            fault_point("after claim")
            if self._has_result(claim):
                return   # told before anything else is claimed
            self._begin(claim)

    def _has_result(self, claim: Claim) -> bool:
        """Whether somebody evaluated the trial, committed it and was not heard of again: that result is as good."""
        earlier = next(self._outbox.of_trial(claim.number), None) if claim.token > 1 else None
        if earlier is None:
            return False
        self._patience.attempt(lambda: self._store.give_back(claim.number, claim.token))
        if earlier.folder not in {one.folder for one in self._untold}:
            self._untold.append(earlier)
        return True

    def _begin(self, claim: Claim) -> None:
        job = next(self._numbers)
        self._jobs[job] = _Job(claim)
        try:
            policy = read_policy(claim)
        except (ConfigError, PolicyError) as error:
            self._commit(Outcome(job, Evaluation(State.FAILED, reason=f"unreadable policy: {error}"), 0.0))
            return
        fault_point("before evaluate")
        self._executor.submit(job, policy)

    def _commit(self, outcome: Outcome) -> None:
        fault_point("after evaluate")
        claim = self._jobs.pop(outcome.number).claim
        self.evaluated += 1
        evaluation = outcome.evaluation
        failed = evaluation.state is State.FAILED and may_mend(evaluation)
        if failed and claim.failures >= FAILURES_ALLOWED:
            reason = f"quarantined after {claim.failures + 1} failures: {evaluation.reason}"
            evaluation = replace(evaluation, reason=reason[:500])
        text = result_text(evaluation, outcome.seconds)
        self._untold.append(self._outbox.commit(claim, text, failed=failed))

    def _tell(self) -> list[Outcome]:
        """Tell what is committed; what another worker holds by now waits until that one is done."""
        told: list[Outcome] = []
        while self._untold:
            committed = self._untold[0]
            fault_point("before tell")
            verdict = self._patience.attempt(lambda: self._store.tell(committed.result))  # noqa: B023
            if verdict is None:
                break
            fault_point("after tell")
            self._untold.pop(0)
            if verdict is Verdict.FENCED and not committed.result.failed:
                # It stays in the outbox: the next sweep looks at it again, when the other one may be done.
                self._message(f"trial {committed.result.number}: another worker holds it by now; its result counts")
                continue
            if verdict is Verdict.ACCEPTED or self._is_from(committed):
                self._outbox.file(committed)
            else:
                self._outbox.drop(committed)
            if verdict is Verdict.ACCEPTED and not committed.result.failed:
                evaluation, seconds = read_result(committed.result.text, str(committed.folder))
                told.append(Outcome(committed.result.number, evaluation, seconds))
        return told

    def _is_from(self, committed: Committed) -> bool:
        """Whether the storage has its result of a trial from this folder."""
        rows = self._patience.attempt(lambda: self._store.trials([committed.result.number]))
        return rows is None or any(row.token == committed.result.token for row in rows)

    def wind_down(self, seconds: float, *, close: bool = True) -> None:
        """Finish what is under way within some seconds, give back the rest, and leave.

        Args:
            seconds: How long to wait.
            close: Whether to close the executor, which ends what is still under way.
        """
        end = time.monotonic() + seconds
        while self._jobs and time.monotonic() < end:
            self.step(min(0.1, max(0.0, end - time.monotonic())), claiming=False)
        if close:
            self._executor.close()
        for job in self._jobs.values():
            self._patience.attempt(partial(self._store.give_back, job.claim.number, job.claim.token))
        self._jobs.clear()
        self._tell()
        self._patience.attempt(lambda: self._store.leave(self.name))


def read_policy(claim: Claim) -> Policy:
    """The policy of a claim. Raises `ConfigError` or `PolicyError` where what the storage has is none."""
    source = f"trial {claim.number}"
    policy = Policy.from_plain(parse_json(claim.policy, source), source)
    if policy.hash != claim.policy_hash:
        raise PolicyError(f"{source}: the policy does not match its hash {claim.policy_hash!r}")
    return policy


def may_mend(evaluation: Evaluation) -> bool:
    """Whether a failed evaluation is worth another try: an exception or a crash, not a timeout or too little memory."""
    return bool(evaluation.trace) or evaluation.reason.startswith(_DIED)


def sweep(store: TrialStore) -> int:
    """Return trials whose leases have lapsed, those of processes of this host that are known to be dead at once."""
    for worker in store.workers():
        if is_known_dead(worker):
            store.bury(worker)
    return store.sweep()
