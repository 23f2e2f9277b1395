"""What the driver costs per trial, with the evaluation removed: a made-up one that takes no time.

    python benchmarks/search/overhead.py [--trials 10000] [--samplers pareto ...] [--out FOLDER]

60 units of 8 options (channels, sparsity and bits of 20 layers in 4 stages), an additive loss with interactions of
neighbours, two priced costs (time and bytes). Measured are proposing and learning, in milliseconds of the CPU time of
the one thread per trial (so that other work on the machine counts little), over windows of 100 trials that end at 100
to 10,000 trials, and the peak memory of a process of its own. Beside them plain Optuna: TPE (multivariate) with one
categorical parameter per unit, in memory. A sampler that becomes too slow is stopped after `--seconds`. Results of
samplers that are not named stay as they were.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.spaces.policy import Policy

UNITS, OPTIONS, STAGES = 60, 8, 4
MARKS = (100, 300, 1000, 3000, 10_000)
WINDOW = 100
SAMPLERS = ("pareto", "ParetoSampler in a study", "nsga2", "random", "evolution", "optuna tpe", "optuna nsga2")


class Toy:
    """A made-up problem of 60 units."""

    def __init__(self) -> None:
        from paretopress.search.factors import CostTerm
        from paretopress.search.option_space import OptionSpace
        from paretopress.search.surrogate import Guide
        from paretopress.spaces.choices import Keep, Sparse, Weights

        rng = np.random.default_rng(0)
        families = {
            "channels": [Keep(1.0 - 0.1 * step) for step in range(1, OPTIONS)],
            "sparsity": [Sparse.of(round(1.0 - 0.1 * step, 1)) for step in range(1, OPTIONS)],
            "weights": [Weights(bits, activations, scheme) for bits, activations, scheme in (
                (8, 32, "symmetric"), (8, 32, "asymmetric"), (8, 8, "symmetric"), (4, 32, "symmetric"),
                (4, 8, "symmetric"), (3, 8, "symmetric"), (2, 8, "symmetric"))],
        }
        options = {f"layer{layer:02d}/{kind}": (None, *choices)
                   for layer in range(UNITS // 3) for kind, choices in families.items()}
        self.space = OptionSpace.of(options)
        self.losses = {unit: np.append(0.0, np.cumsum(rng.gamma(0.3, 0.01, OPTIONS - 1))) for unit in self.space.units}
        saved = {unit: 0.6 * np.arange(OPTIONS) / OPTIONS for unit in self.space.units}
        weight = rng.random(UNITS) / UNITS
        costs = {
            name: tuple(CostTerm((unit,), share * (1.0 - saved[unit])) for unit, share in
                        zip(self.space.units, rng.permutation(weight), strict=True))
            for name in ("time", "size")
        }
        self.terms = costs
        stages = {unit: int(unit[5:7]) * STAGES // (UNITS // 3) for unit in self.space.units}
        losses = {unit: row.tolist() for unit, row in self.losses.items()}
        self.guide = Guide(self.price, losses=losses, terms=costs, stages=stages)
        self._table = np.stack([self.losses[unit] for unit in self.space.units])
        self._costs = {name: np.stack([term.table for term in terms]) for name, terms in costs.items()}

    def price(self, policy: Policy) -> dict[str, float]:
        """Both costs of a policy."""
        return self.values(self.space.genome(policy), priced=True)

    def values(self, genome: tuple[int, ...], *, priced: bool = False) -> dict[str, float]:
        """Objectives and divergence of a genome."""
        rows = np.arange(UNITS)
        found = {name: float(table[rows, genome].sum()) for name, table in self._costs.items()}
        if priced:
            return found
        root = np.sqrt(self._table[rows, genome])
        divergence = float((root**2).sum() + 0.5 * (root[1:] * root[:-1]).sum())
        return {"accuracy": 0.9 - min(0.8, 0.3 * divergence), "divergence": divergence, **found}


OBJECTIVES = {"accuracy": "max", "time": "min", "size": "min"}


def driver(sampler: str, trials: int, seconds: float) -> dict[str, Any]:
    """Propose and learn as `search.exploration` does, without a ledger and an executor."""
    from paretopress.search.proposals import Proposer
    from paretopress.search.records import TrialRecord, TrialState
    from paretopress.search.samplers import ExplorationSettings

    toy = Toy()
    proposer = Proposer(toy.space, OBJECTIVES, [toy.space.dense], ExplorationSettings(sampler, trials), toy.guide)

    def step(number: int) -> float:
        start = time.thread_time()
        genome = proposer.propose(number)
        proposed = time.thread_time() - start
        assert genome is not None
        record = TrialRecord(number, TrialState.COMPLETE, toy.space.policy(genome), toy.values(genome))
        start = time.thread_time()
        proposer.learn(genome, record)
        return proposed + time.thread_time() - start

    return measured(step, trials, seconds)


def study(sampler: str, trials: int, seconds: float) -> dict[str, Any]:
    """Ask, suggest and tell in an Optuna study in memory."""
    import optuna

    from paretopress.search.pareto_sampler import ParetoSampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    toy = Toy()
    ours = ParetoSampler.over(toy.space, OBJECTIVES, guide=toy.guide)
    made = {"optuna tpe": lambda: optuna.samplers.TPESampler(multivariate=True, seed=0),
            "optuna nsga2": lambda: optuna.samplers.NSGAIISampler(seed=0)}.get(sampler, lambda: ours)()
    found = optuna.create_study(directions=ours.directions, sampler=made)

    def step(_number: int) -> float:
        start = time.thread_time()
        trial = found.ask()
        policy = ours.suggest(trial)
        asked = time.thread_time() - start
        values = toy.values(toy.space.genome(policy))
        if made is ours:
            trial.set_user_attr("divergence", values["divergence"])
        start = time.thread_time()
        found.tell(trial, [values[name] for name in OBJECTIVES])
        return asked + time.thread_time() - start

    return measured(step, trials, seconds)


def measured(step: Callable[[int], float], trials: int, seconds: float) -> dict[str, Any]:
    """Medians and means over the windows that end at the marks."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times: list[float] = []
    rows, total = [], 0.0
    for number in range(trials):
        times.append(step(number))
        total += times[-1]
        if number + 1 in MARKS:
            window = np.array(times[-WINDOW:]) * 1e3
            rows.append({
                "trials": number + 1, "median_ms": float(np.median(window)), "mean_ms": float(window.mean()),
                "p95_ms": float(np.percentile(window, 95)),
                "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            })
        if total > seconds:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"started_with_mib": before, "peak_mib": peak, "stopped_after": len(times), "total_s": total, "rows": rows}


def main() -> None:
    """Print the table and write it as text and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run = study if arguments.one.startswith("optuna") or "study" in arguments.one else driver
        print(json.dumps(run(arguments.one, arguments.trials, arguments.seconds)))
        return
    stored = arguments.out / "overhead.json"
    found = json.loads(stored.read_text()) if stored.exists() else {}   # of other samplers, measured before
    for sampler in arguments.samplers:
        command = [sys.executable, __file__, "--one", sampler, "--trials", str(arguments.trials),
                   "--seconds", str(arguments.seconds)]
        found[sampler] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(line(sampler, found[sampler]), flush=True)
        stored.write_text(json.dumps(found, indent=1) + "\n")
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    lines = [f"{machine}; {UNITS} units; CPU ms per trial without evaluation: median of 100 (mean, 95th percentile)"]
    lines += [line(sampler, found[sampler]) for sampler in SAMPLERS if sampler in found]
    (arguments.out / "overhead.txt").write_text("\n".join(lines) + "\n")


def line(sampler: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    cells = "  ".join(f"{row['trials']}: {row['median_ms']:.2f} ({row['mean_ms']:.2f}, {row['p95_ms']:.2f})"
                      for row in result["rows"])
    memory = f"{result['peak_mib']:.0f} MiB, {result['started_with_mib']:.0f} before the first trial"
    return f"{sampler:26s} {cells}  peak {memory}; {result['stopped_after']} trials in {result['total_s']:.0f} s"


if __name__ == "__main__":
    main()
