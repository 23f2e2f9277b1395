"""Discrete-event simulation of a search: one coordinator, workers, a storage, and how the memory of layers travels.

    python benchmarks/scale/simulation.py --measure --check 1 2 4 8 16 --plan --output benchmarks/scale/simulation.json

`--measure` takes the constants on this machine (what the coordinator spends on a trial, what a stored trial costs,
what a worker's round trip costs). `--check` runs the real exploration loop with so many worker processes and compares
trials per second with the simulation of the same set-up. `--plan` simulates 1 to 1,000 nodes.

What the check is worth on few cores: an evaluation there is a span of processor time that the scheduler divides among
the workers, and the simulation does the same (`cores` are shared fairly; how many of them other users of the machine
leave is measured before and after each run). So it checks the coordinator's queue, the
storage's writes and the sharing of processors at 1 to 16 workers; networks, and many machines, it cannot check.
"""

import argparse
import heapq
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.exploration import ExplorationSettings, explore
from paretopress.search.ledger import Run
from paretopress.search.process_executor import ProcessExecutor
from paretopress.search.records import TrialRecord
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.policy import DENSE, Policy

UNITS = 12


@dataclass(frozen=True)
class Constants:
    """What was measured, in seconds unless said otherwise.

    Attributes:
        propose: The coordinator's own time for proposing and learning one trial.
        record: Appending one trial durably; the coordinator waits for it.
        dispatch: Coordinator's time to send a policy and receive an evaluation.
        trip: Time on the way that nobody computes.
    """

    propose: float
    record: float
    dispatch: float
    trip: float


@dataclass(frozen=True)
class Setup:
    """A cluster and its work.

    Attributes:
        workers: Evaluations at the same time.
        cores: Processors that the workers share, also a part of one; at least `workers` where every worker has its own.
        seconds: Processor time of one evaluation, its mean.
        spread: Its coefficient of variation (log-normal).
        trials: Trials to finish.
        shares_coordinator: Whether the coordinator computes on the workers' processors.
    """

    workers: int
    cores: float
    seconds: float
    spread: float
    trials: int
    shares_coordinator: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a simulation found.

    Attributes:
        rate: Trials per second from the first proposal to the last result; the storage writes as often.
        steady: The same while all workers are at work: between a quarter and three quarters of the trials.
        coordinator: Share of the time that the coordinator is busy.
        efficiency: The steady rate by that of workers that never wait.
    """

    rate: float
    steady: float
    coordinator: float
    efficiency: float


def simulate(constants: Constants, setup: Setup, seed: int = 0) -> Outcome:
    """Simulate until the trials are done.

    The coordinator serves one event at a time: it takes an evaluation, records it durably, proposes the next trial and
    sends it. Workers share the processors fairly: with more running than processors each advances by their quotient
    (processor sharing in virtual time, so that an event costs the logarithm of the number of workers).
    """
    source = random.Random(seed)
    sigma = math.log1p(setup.spread**2) ** 0.5
    mean = setup.seconds

    def work() -> float:
        return mean * source.lognormvariate(-sigma**2 / 2.0, sigma) if sigma else mean

    serve = constants.propose + constants.record + constants.dispatch
    running: list[tuple[float, int]] = []      # (virtual time of its end, worker)
    travelling: list[tuple[float, int, bool]] = []   # (time, worker, to the coordinator)
    waiting: deque[int] = deque()               # evaluations that the coordinator has not taken yet
    now = virtual = busy = 0.0
    serving: tuple[float, int] | None = None
    started = finished = 0
    quarters = {setup.trials // 4: 0.0, 3 * setup.trials // 4: 0.0}
    for worker in range(min(setup.workers, setup.trials)):
        waiting.append(-1 - worker)             # the first proposals
    while finished < setup.trials:
        if serving is None and waiting:
            serving = now + serve, waiting.popleft()
            busy += serve
        active = len(running) + (1 if setup.shares_coordinator and serving is not None else 0)
        speed = min(1.0, setup.cores / active) if active else 1.0
        ends = [serving[0]] if serving else []
        if running:
            ends.append(now + (running[0][0] - virtual) / speed)
        if travelling:
            ends.append(travelling[0][0])
        if not ends:
            break
        at = min(ends)
        virtual += (at - now) * speed
        now = at
        if serving is not None and serving[0] <= now:
            worker, serving = serving[1], None
            finished += worker >= 0
            if worker >= 0 and finished in quarters:
                quarters[finished] = now
            if started < setup.trials:
                started += 1
                heapq.heappush(travelling, (now + constants.trip / 2.0, worker if worker >= 0 else -1 - worker, False))
        elif travelling and travelling[0][0] <= now:
            _, worker, back = heapq.heappop(travelling)
            if back:
                waiting.append(worker)
            else:
                heapq.heappush(running, (virtual + work(), worker))
        elif running:
            _, worker = heapq.heappop(running)
            heapq.heappush(travelling, (now + constants.trip / 2.0, worker, True))
    first, last = sorted(quarters)
    steady = (last - first) / (quarters[last] - quarters[first])
    ideal = min(setup.workers, setup.cores) / setup.seconds
    return Outcome(finished / now, steady, busy / now, steady / ideal)


class Busy:
    """An evaluation that takes a span of processor time, a function of the policy, as real ones do."""

    def __init__(self, seconds: float, spread: float) -> None:
        self.seconds, self.spread = seconds, spread

    def __call__(self, policy: Policy) -> Evaluation:
        """Count until the processor time is used up: waiting would not show that cores are shared."""
        source = random.Random(policy.hash)
        sigma = math.log1p(self.spread**2) ** 0.5
        end = time.process_time() + self.seconds * source.lognormvariate(-sigma**2 / 2.0, sigma)
        while time.process_time() < end:
            pass
        kept = sum(1 for _ in policy)
        return Evaluation(State.COMPLETE, {"accuracy": source.random() - kept, "size": 100.0 - kept}, {"size": 0.0})


def options() -> dict[str, tuple[object, ...]]:
    units: dict[str, tuple[object, ...]] = {}
    for index in range(UNITS):
        units[f"layer{index}/channels"] = (None, Keep(0.75), Keep(0.5), Keep(0.25))
        units[f"layer{index}/weights"] = (None, Weights(8), Weights(4), Weights(2))
    return units


def real_rate(workers: int, seconds: float, spread: float, trials: int) -> float:
    """Trials per second of the real loop with so many worker processes, starting left out."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    stamps: list[float] = []
    settings = ExplorationSettings("nsga2", trials + 2 * workers, seed=1)
    with tempfile.TemporaryDirectory() as temporary:
        prints = {"seed": "1", "model": "m", "space": "s"}
        with Run.open(Path(temporary) / "run", prints, {}) as run, \
                ProcessExecutor(Busy(seconds, spread), workers) as executor:
            for number in range(workers):   # all of them are there before the clock runs
                executor.submit(number, DENSE)
            while executor.pending:
                executor.next_result()
            begin = time.perf_counter()
            explore(options(), {"accuracy": "max", "size": "min"}, [DENSE], executor, run, settings,
                    constraints=["size"], on_record=lambda _: stamps.append(time.perf_counter()))
    return len(stamps) / (stamps[-1] - begin)


def measured_constants(trials: int = 300) -> Constants:
    """Constants of this machine, from the real loop with evaluations that do nothing, and from the ledger alone."""
    with tempfile.TemporaryDirectory() as temporary:
        with Run.open(Path(temporary) / "run", {"seed": "1", "model": "m", "space": "s"}, {}) as run:
            source = random.Random(2)
            spans = []
            for number in range(trials):
                policy = Policy.of({unit: source.choice(choices[1:]) for unit, choices in options().items()})
                values = {"accuracy": source.random(), "size": 1.0}
                record = TrialRecord.of(number, policy, Evaluation(State.COMPLETE, values, {"size": 0.0}), 0.1)
                start = time.perf_counter()
                run.append(record)
                spans.append(time.perf_counter() - start)
        append = statistics.median(spans)
    with ProcessExecutor(Busy(0.0, 0.0), 1) as executor:
        trips, own = [], []
        for number in range(trials):
            start, used = time.perf_counter(), time.process_time()
            executor.submit(number, DENSE)
            executor.next_result()
            trips.append(time.perf_counter() - start)
            own.append(time.process_time() - used)
    dispatch = statistics.median(own)
    whole = 1.0 / real_rate(1, 0.0, 0.0, trials)
    trip = max(0.0, statistics.median(trips) - dispatch)
    return Constants(max(0.0, whole - append - dispatch - trip), append, dispatch, trip)


def available_cores(processes: int, seconds: float = 4.0) -> float:
    """Processors that so many independent processes get together: all of them, or what others on the machine leave."""
    code = f"import time\nend = time.perf_counter() + {seconds}\nwhile time.perf_counter() < end: pass\n"
    code += "print(time.process_time())"
    command = [sys.executable, "-S", "-c", code]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(float(child.communicate()[0]) for child in children) / seconds


def check(constants: Constants, counts: Sequence[int], seconds: float, spread: float) -> list[dict[str, float]]:
    """Real runs beside their simulations."""
    cores = len(os.sched_getaffinity(0))
    rows = []
    for workers in counts:
        trials = max(60, 12 * workers)
        before = available_cores(workers)
        real = real_rate(workers, seconds, spread, trials)
        # Children do not start at the same moment: together they may claim a little more than there is.
        available = min(cores, (before + available_cores(workers)) / 2.0)
        setup = Setup(workers, available, seconds, spread, trials, shares_coordinator=True)
        simulated = statistics.median(simulate(constants, setup, seed).rate for seed in range(5))
        rows.append({"workers": workers, "cores": cores, "available": available, "real": real, "simulated": simulated,
                     "error_pct": 100.0 * (simulated / real - 1.0), "load": os.getloadavg()[0]})
        print(f"{workers:3} workers on {cores} cores, {available:.2f} of them free: real {real:6.2f} trials/s, "
              f"simulated {simulated:6.2f} "
              f"({rows[-1]['error_pct']:+.0f} %), load {rows[-1]['load']:.1f}", flush=True)
    return rows


def plan(constants: Constants, payload_mb: float) -> list[dict[str, float | str]]:
    """From two cores to a thousand nodes of 16 workers, for evaluations of 0.3, 3 and 30 s.

    Beside the simulation: how long the payload takes to reach all nodes, one copy for each, at 1 Gbit/s from one place
    (a shared disk read by content hash) and from node to node (as an object store does it, doubling every round).
    """
    rows: list[dict[str, float | str]] = []
    for nodes, per_node in ((1, 2), (1, 16), (10, 16), (100, 16), (1000, 16)):
        workers = nodes * per_node
        for storage, record in (("folder", constants.record), ("PostgreSQL, 5 ms", 0.005)):
            for seconds in (0.3, 3.0, 30.0):
                setup = Setup(workers, workers, seconds, 0.5, max(2000, 8 * workers))
                found = simulate(replace(constants, record=record, trip=0.002), setup)
                copies = payload_mb / 125.0
                rows.append({
                    "nodes": nodes, "workers": workers, "storage": storage, "seconds": seconds, **asdict(found),
                    "payload_from_one_place_s": copies * nodes,
                    "payload_node_to_node_s": copies * (nodes.bit_length()),
                })
                print(f"{nodes:5} nodes, {workers:6} workers, {storage:16}, {seconds:4.1f} s each: "
                      f"{found.steady:8.1f} trials/s, efficiency {found.efficiency:4.2f}, "
                      f"coordinator {found.coordinator:4.2f}", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--constants", type=float, nargs=4, metavar=("PROPOSE", "RECORD", "DISPATCH", "TRIP"))
    parser.add_argument("--check", type=int, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=0.1, help="processor time of the check's evaluations")
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--payload", type=float, default=140.0, help="MB of the evaluator that every node fetches once")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    if not given.measure and given.constants is None:
        parser.error("give --measure or --constants")
    constants = Constants(*given.constants) if given.constants else measured_constants()
    print(", ".join(f"{name} {1000 * value:.2f} ms" for name, value in asdict(constants).items()), flush=True)
    result = {
        "constants": asdict(constants),
        "check": check(constants, given.check, given.seconds, given.spread),
        "plan": plan(constants, given.payload) if given.plan else [],
        "load": os.getloadavg(),
    }
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
