"""A storm: workers, coordinators and servers are killed, stopped and crashed in one search."""

import contextlib
import math
import os
import random
import secrets
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import priced_demo
import shared_driver as driver
from history import summary, verify_history

from paretopress.search.storages.optuna_mirror import optuna_storage
from paretopress.search.storages.storage_url import StorageUrl

LEASE = 1.0
SAMPLER = "evolution"


@dataclass
class Storm:
    """A search in processes of this one, and what is done to them.

    Attributes:
        url: Address of the storage.
        run: The run directory.
        trials: How many trials the search makes.
        workers: How many workers there are at any time.
        server: A PostgreSQL server to crash, None without one.
        seed: Of what is struck when.
        mirrored: Whether an Optuna study mirrors the search.
        every: Of how many kills one is the coordinator's.
        counts: What has been done so far.
    """

    url: str
    run: Path
    trials: int
    workers: int = 4
    server: object = None
    seed: int = 0
    mirrored: bool = True
    every: int = 16
    counts: dict = field(default_factory=dict)
    _coordinator: int | None = None
    _workers: list = field(default_factory=list)
    _stopped: list = field(default_factory=list)
    _turn: int = 0

    def start(self):
        """Start what runs besides the storm."""
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / "history").touch()
        priced_demo.problem()
        self._revive()

    def _revive(self):
        """Start again whatever has ended, as a process supervisor does."""
        if not self._coordinator or _gone(self._coordinator):
            self._coordinator = driver.forked(
                driver.coordinate, self.url, self.run, self.trials, SAMPLER, local=False, mirrored=self.mirrored,
                lease=LEASE, options=priced_demo.options(), objectives=priced_demo.OBJECTIVES,
            )
        self._workers = [pid for pid in self._workers if not _gone(pid)]
        self._stopped = [(moment, pid) for moment, pid in self._stopped if pid in self._workers]   # numbers come again
        while len(self._workers) < self.workers:
            self._turn += 1
            # Of every second worker nobody on this host knows whether it lives, as if it were on another one.
            name = f"elsewhere-{self._turn}-{secrets.token_hex(4)}" if self._turn % 2 else None
            evaluator = priced_demo.Pricing(priced_demo.history_of(self.run))
            self._workers.append(driver.forked(
                driver.work, self.url, self.run, evaluator, idle=1e9, lease=LEASE, name=name
            ))

    @property
    def finished(self):
        """How many evaluations have been finished."""
        return (self.run / "history").read_bytes().count(b"finished ")

    @property
    def complete(self):
        """Whether a coordinator has ended the search."""
        return b"complete\n" in (self.run / "history").read_bytes()

    def rage(self, kills, crashes=0, deadline=600.0, first=0, until=math.inf):
        """Kill `kills` times, spread evenly over the search, and crash the server `crashes` times.

        Args:
            kills: How many there are in all.
            crashes: The server's, among them.
            deadline: Seconds that all this may take.
            first: Number of the first kill, where others were dealt before.
            until: When to pause, by the monotonic clock.

        Returns:
            The number of the next kill, `kills` after the last one.

        Raises:
            TimeoutError: The search does not go on.
        """
        chance, end = random.Random(self.seed + first), time.monotonic() + deadline
        crash_at = {round((index + 1) * kills / (crashes + 1)) for index in range(crashes)}
        for number in range(first, kills):
            while self.finished < 0.85 * number * self.trials / kills and not self.complete:
                self._live(end)
            if time.monotonic() >= until:
                return number
            time.sleep(chance.uniform(0.0, 0.05))
            if number in crash_at:
                self._count("server crashes")
                self.server.crash()
                time.sleep(chance.uniform(0.1, 1.0))
                self.server.start()
            self._strike(number, chance)
            self._live(end)
        return kills

    def _strike(self, number, chance):
        if number % self.every == 5 % self.every:
            self._kill(self._coordinator, "coordinators killed")
            return
        victim = chance.choice(self._workers)
        if number % 10 == 3:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGSTOP)
                self._stopped.append((time.monotonic() + chance.uniform(0.5, 1.5) * LEASE, victim))
                self._count("workers stopped and continued")
        self._kill(chance.choice(self._workers), "workers killed")

    def _kill(self, pid, what):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._count(what)

    def _count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    def _live(self, end):
        """Let some time pass."""
        time.sleep(0.01)
        for moment, pid in list(self._stopped):
            if time.monotonic() >= moment:
                self._stopped.remove((moment, pid))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        if not self.complete:
            self._revive()
        if time.monotonic() > end:
            raise TimeoutError(f"{self.finished} evaluations, {self.counts}")

    def calm(self, deadline=120.0):
        """Let the search end, and what remains be cleared up by one more worker."""
        end = time.monotonic() + deadline
        while not self.complete:
            self._live(end)
        self.stop()
        evaluator = priced_demo.Pricing(priced_demo.history_of(self.run))
        driver.ended(driver.forked(driver.work, self.url, self.run, evaluator, idle=1.5 * LEASE, lease=LEASE))

    def stop(self):
        """End what still runs."""
        for pid in filter(None, [*self._workers, self._coordinator]):   # never 0, which is this process's own group
            for number in (signal.SIGCONT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._workers, self._coordinator, self._stopped = [], None, []

    def verdict(self):
        """What is broken, and figures."""
        store = driver.store_of(self.url, self.run)
        mirror = None
        if self.mirrored:
            import optuna

            storage = optuna_storage(StorageUrl.parse(self.url, self.run))
            mirror = optuna.load_study(study_name="toy", storage=storage).get_trials(deepcopy=False)
        broken = verify_history(self.run, store, priced_demo.OBJECTIVES, self.trials, mirror)
        figures = {**self.counts, **summary(self.run, store)}
        store.close()
        return broken, figures


def _gone(pid):
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
