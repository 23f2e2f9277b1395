"""Trials per second at one and two workers against bare evaluations, and what a trial costs beside them.

    python benchmarks/scale/throughput.py --output benchmarks/scale/throughput.json

The ceiling is measured in the same run, in turn with the executors: independent processes that each evaluate a share of
the same policies with nothing around them; their rates, each over its own time, are added. All of them start with an
empty memory of compressed layers, as the workers of a search do. Overhead is the time of a trial whose evaluation does
nothing. Load average and rounds are recorded; on a machine that others use the median of the ratios is what counts.
"""

import argparse
import contextlib
import json
import os
import pickle
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import storage_writes

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import Executor, SerialExecutor, from_payload, to_payload
from paretopress.search.process_executor import ProcessExecutor
from paretopress.spaces.policy import DENSE, Policy

TRIVIAL = {"serial": 2000, "processes": 1000, "ray": 400, "tune": 60}
RATIO = 0.9           # of the ceiling, what a search may not fall below
RAY_OVERHEAD = 20.0   # ms of a trivial trial


class Trivial:
    """An evaluation that does nothing."""

    def __call__(self, task: object) -> Evaluation:  # noqa: ARG002
        """Return at once."""
        return Evaluation(State.COMPLETE, {"accuracy": 0.5, "size": 1.0}, {"size": 0.0})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=48, help="policies of a measurement at two workers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--bare", nargs=3, metavar=("PAYLOAD", "SHARE", "OF"), help=argparse.SUPPRESS)
    parser.add_argument("--join", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.join:
        first_answer(lambda: ProcessExecutor(material(1)[0], 1))
        return
    if given.bare:
        bare(Path(given.bare[0]), int(given.bare[1]), int(given.bare[2]))
        return
    begin_load = os.getloadavg()
    evaluate, policies = material(given.trials)
    found = joining(evaluate)
    with running_ray(2):
        rounds = [measured_round(evaluate, policies, number) for number in range(given.rounds)]
        overhead = overheads()
    result = {
        "trials": given.trials, "rounds": rounds, "ratios": ratios(rounds), "overhead_ms": overhead,
        "joining": found, "storage_ms": storage_writes.storage_writes(150, given.trials),
        "machine": {
            "cpu": processor(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
            "versions": {name: metadata.version(name) for name in ("torch", "ray", "optuna", "psycopg")},
            "load_before": begin_load, "load_after": os.getloadavg(),
        },
    }
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(text(result))


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


@contextlib.contextmanager
def running_ray(workers: int) -> Iterator[None]:
    """A local instance that all measurements inside the block share: starting it is measured apart."""
    from paretopress.search.ray_connection import connect

    connection = connect(None, {"CPU": float(workers)})
    try:
        yield
    finally:
        connection.close()


def material(count: int) -> tuple[Any, list[Policy]]:
    """The digits model's evaluator, and random policies that are neither screened nor alike."""
    from paretopress.compressors.entries import Entries
    from paretopress.demo import factories
    from paretopress.search.observer import Silent
    from paretopress.search.preparation import prepare_evaluator
    from paretopress.search.problem import SearchSettings, prepare_problem

    settings = SearchSettings(targets=("x86-zen4-vnni-onnxruntime",), trials=1)
    problem = prepare_problem(factories.model(), factories.data(), settings)
    source = random.Random(5)
    policies: dict[str, Policy] = {}
    while len(policies) < count:   # a third of the units, so that most candidates are scored
        chosen = {unit: source.choice(options[1:]) for unit, options in problem.space.options.items()
                  if len(options) > 1 and source.random() < 0.33}
        policy = problem.policy(chosen)
        policies.setdefault(policy.hash, policy)
    evaluator = prepare_evaluator(problem, Silent())
    entries = Entries(evaluator.entries.program, evaluator.entries.calibration, evaluator.entries.importance)
    return replace(evaluator, entries=entries), list(policies.values())


def measured_round(evaluate: Any, policies: Sequence[Policy], number: int) -> dict[str, float]:  # noqa: ANN401
    """Trials per second of the ceilings and of every executor, in turn, the other way round in odd rounds."""
    from paretopress.search.ray_executor import RayExecutor

    copy = from_payload(to_payload(evaluate))
    measurements: dict[str, Callable[[], float]] = {
        "serial x1": lambda: rate(lambda: SerialExecutor(copy), policies[: len(policies) // 2]),
    }
    for workers in (1, 2):
        own = policies[: workers * len(policies) // 2]   # as many for each worker
        measurements |= {
            f"bare x{workers}": lambda n=workers, own=own: bare_rate(evaluate, own, n),
            f"processes x{workers}": lambda n=workers, own=own: rate(lambda: ProcessExecutor(evaluate, n), own),
            f"ray x{workers}": lambda n=workers, own=own: rate(lambda: RayExecutor(evaluate, n), own),
        }
    rates = dict.fromkeys(measurements, 0.0)
    for name in reversed(measurements) if number % 2 else measurements:
        rates[name] = measurements[name]()
        print(f"round {number + 1}, {name}: {rates[name]:.2f} trials/s", file=sys.stderr, flush=True)
    return rates


def rate(make: Callable[[], Executor], policies: Sequence[Policy]) -> float:
    """Trials per second while there is work for every worker: starting and the last ones' ends are left out."""
    with make() as executor:
        warm_up(executor)
        start = time.perf_counter()
        waiting, finished = list(enumerate(policies))[::-1], 0
        while True:
            while waiting and executor.pending < executor.capacity:
                executor.submit(*waiting.pop())
            if not waiting:
                seconds = time.perf_counter() - start
                break
            finished += executor.next_result() is not None
        while executor.pending:
            executor.next_result()
        return finished / seconds


def warm_up(executor: Executor) -> None:
    """Wait until all workers are there, and let each of them evaluate the dense model once."""
    while True:
        ready = are_ready(executor)
        for number in range(executor.capacity):
            executor.submit(number, Policy())
        while executor.pending:
            executor.next_result()
        if ready:
            return


def are_ready(executor: Executor) -> bool:
    """Whether all workers have loaded the evaluator, so that none of them does it while the clock runs."""
    if isinstance(executor, ProcessExecutor):
        return all(worker.ready for worker in executor._workers)
    return all(slot.starting is None for slot in getattr(executor, "_slots", ()))


def bare_rate(evaluate: Any, policies: Sequence[Policy], copies: int) -> float:  # noqa: ANN401
    """Evaluations per second of independent processes with nothing around them, each over its own time, added."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "payload"
        path.write_bytes(pickle.dumps((to_payload(evaluate), list(policies))))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "--bare", str(path), str(share), str(copies)], text=True, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for share in range(copies)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        rates = []
        for child in children:
            assert child.stdout is not None
            rates.append(float(child.stdout.readline()))
            child.wait()
        return sum(rates)


def bare(path: Path, share: int, of: int) -> None:
    """A child of `bare_rate`: evaluate every `of`-th policy, and say at which rate."""
    import torch

    torch.set_num_threads(1)
    payload, policies = pickle.loads(path.read_bytes())  # our own parent's
    evaluate = from_payload(payload)
    evaluate(Policy())
    print("ready", flush=True)
    sys.stdin.readline()
    mine = policies[share::of]
    start = time.perf_counter()
    for policy in mine:
        evaluate(policy)
    print(len(mine) / (time.perf_counter() - start), flush=True)
    os._exit(0)


def ratios(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median over the rounds of each executor's rate by that of as many bare copies."""
    names = [name for name in rounds[0] if not name.startswith("bare")]
    return {
        name: statistics.median(one[name] / one[f"bare x{name[-1]}"] for one in rounds) for name in names
    }


def overheads() -> dict[str, float]:
    """Milliseconds of a trial that does nothing, one after the other as one worker's search makes them."""
    from paretopress.search.ray_executor import RayExecutor
    from paretopress.search.tune_executor import TuneExecutor

    made: dict[str, Callable[[], Executor]] = {
        "serial": lambda: SerialExecutor(Trivial()), "processes": lambda: ProcessExecutor(Trivial(), 1),
        "ray": lambda: RayExecutor(Trivial(), 1), "tune": lambda: TuneExecutor(Trivial(), 1),
    }
    return {name: 1000.0 / rate(make, [DENSE] * TRIVIAL[name]) for name, make in made.items()}


def joining(evaluate: Any) -> dict[str, float]:  # noqa: ANN401
    """Seconds until a worker that joins has answered its first request, the dense model's evaluation."""
    from paretopress.search.ray_executor import RayExecutor

    start = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--join"], check=True)
    found = {
        "host of a shared search (captures, calibrates), s": time.perf_counter() - start,
        "process, s": first_answer(lambda: ProcessExecutor(evaluate, 1)),
        "Ray actor and a local instance started for it, s": first_answer(lambda: RayExecutor(evaluate, 1)),
    }
    with running_ray(1):
        found["Ray actor on a running cluster, s"] = first_answer(lambda: RayExecutor(evaluate, 1))
    found["evaluator that it gets, MB"] = len(to_payload(evaluate)) / 1e6
    return found


def first_answer(make: Callable[[], Executor]) -> float:
    """Seconds until an executor's first worker has answered."""
    start = time.perf_counter()
    with make() as executor:
        executor.submit(0, Policy())
        executor.next_result()
        return time.perf_counter() - start


def text(result: dict[str, Any]) -> str:
    lines = [f"{name:14} {statistics.median(one[name] for one in result['rounds']):8.2f} trials/s"
             + (f"   {result['ratios'][name]:.2f} of the ceiling (at least {RATIO})" if name in result["ratios"]
                else "   ceiling")
             for name in result["rounds"][0]]
    allowed = {"ray": f" (at most {RAY_OVERHEAD:g})"}
    lines += [f"overhead of a trivial trial, {name}: {value:.2f} ms{allowed.get(name, '')}"
              for name, value in result["overhead_ms"].items()]
    lines += [f"joining worker, {name}: {value:.2f}" for name, value in result["joining"].items()]
    lines += storage_writes.lines(result["storage_ms"])
    machine = result["machine"]
    lines.append(f"{machine['cores']} cores, load {machine['load_before'][0]:.1f} to {machine['load_after'][0]:.1f}, "
                 f"{result['trials']} trials, {len(result['rounds'])} rounds")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
