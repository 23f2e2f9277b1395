"""Trials per second at one and two workers against bare evaluations, and what a trial costs beside them.

    python benchmarks/scale/throughput.py --output benchmarks/scale/throughput.json

The ceiling is independent processes that each evaluate a share of the same policies with nothing around them. They and
the executors take turns, a few policies at a time, each with workers that stay, because the rates of a virtual machine
drift by a tenth within minutes. Ray's own processes run all the while, and slow the ceiling as they slow the others;
what they use is said beside it. Overhead is the time of a trial whose evaluation does nothing.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import storage_writes
from contestants import BareCopies, Contestant, Searching, seconds_of_ray

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import Executor, SerialExecutor, from_payload, to_payload
from paretopress.search.process_executor import ProcessExecutor
from paretopress.spaces.policy import DENSE, Policy

TRIVIAL = {"serial": 2000, "processes": 1000, "ray": 400, "tune": 60}
RATIO = 0.9           # of the ceiling, what a search may not fall below
RAY_OVERHEAD = 20.0   # ms of a trivial trial
OWN = "cores that Ray's own processes use"


class Trivial:
    """An evaluation that does nothing."""

    def __call__(self, task: object) -> Evaluation:  # noqa: ARG002
        """Return at once."""
        return Evaluation(State.COMPLETE, {"accuracy": 0.5, "size": 1.0}, {"size": 0.0})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30, help="policies for each worker")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--join", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.join:
        first_answer(lambda: ProcessExecutor(material(1)[0], 1))
        return
    begin_load = os.getloadavg()
    evaluate, policies = material(2 * given.trials)
    found = joining(evaluate)
    with running_ray(2):
        compared = {f"{workers} workers": comparison(evaluate, policies[: workers * given.trials], workers, given.turns)
                    for workers in (1, 2)}
        overhead = overheads()
    result = {
        "trials": given.trials, "turns": given.turns, "compared": compared, "overhead_ms": overhead,
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


def comparison(evaluate: Any, policies: Sequence[Policy], workers: int, turns: int) -> dict[str, Any]:  # noqa: ANN401
    """Rates of so many bare copies and of executors with so many workers, and the executors' share of the former.

    The share is the median over the turns, which a disturbance of one of them does not change.
    """
    from paretopress.search.ray_executor import RayExecutor

    competing: dict[str, Contestant] = {
        "bare": BareCopies(evaluate, policies, workers),
        "processes": Searching(ProcessExecutor(evaluate, workers), policies),
        "ray": Searching(RayExecutor(evaluate, workers), policies),
    }
    if workers == 1:
        competing["serial"] = Searching(SerialExecutor(from_payload(to_payload(evaluate))), policies)
    names, seconds = list(competing), {name: list[float]() for name in competing}
    start, before = time.perf_counter(), seconds_of_ray()
    for turn in range(turns):
        first, end = (len(policies) * number // turns for number in (turn, turn + 1))
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(competing[name].seconds(first, end))
            print(f"{workers} workers, turn {turn + 1}, {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    ray = (seconds_of_ray() - before) / (time.perf_counter() - start)
    for one in competing.values():
        one.close()
    rates = {name: workers * len(policies) / sum(spans) for name, spans in seconds.items()}
    shares = {name: statistics.median(bare / own for bare, own in zip(seconds["bare"], seconds[name], strict=True))
              for name in names if name != "bare"}
    return {"rates": rates, "shares": shares, "seconds": seconds, OWN: ray}


def overheads() -> dict[str, float]:
    """Milliseconds of a trial that does nothing, one after the other as one worker's search makes them."""
    from paretopress.search.ray_executor import RayExecutor
    from paretopress.search.tune_executor import TuneExecutor

    made: dict[str, Callable[[], Executor]] = {
        "serial": lambda: SerialExecutor(Trivial()), "processes": lambda: ProcessExecutor(Trivial(), 1),
        "ray": lambda: RayExecutor(Trivial(), 1), "tune": lambda: TuneExecutor(Trivial(), 1),
    }
    found = {}
    for name, make in made.items():
        with make() as executor:
            spans = Searching(executor, [DENSE] * TRIVIAL[name])
            found[name] = 1000.0 * spans.seconds(0, TRIVIAL[name]) / TRIVIAL[name]
    return found


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
    lines = []
    for workers, found in result["compared"].items():
        for name, rate in found["rates"].items():
            share = f"{found['shares'][name]:.2f} of the ceiling (at least {RATIO})" if name != "bare" else "ceiling"
            lines.append(f"{workers}, {name:10} {rate:6.2f} trials/s   {share}")
        lines.append(f"{workers}, Ray's own processes use {found[OWN]:.2f} of a core meanwhile")
    allowed = {"ray": f" (at most {RAY_OVERHEAD:g})"}
    lines += [f"overhead of a trivial trial, {name}: {value:.2f} ms{allowed.get(name, '')}"
              for name, value in result["overhead_ms"].items()]
    lines += [f"joining worker, {name}: {value:.2f}" for name, value in result["joining"].items()]
    lines += storage_writes.lines(result["storage_ms"])
    machine = result["machine"]
    lines.append(f"{machine['cores']} cores, load {machine['load_before'][0]:.1f} to {machine['load_after'][0]:.1f}, "
                 f"{result['trials']} trials for each worker, {result['turns']} turns")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
