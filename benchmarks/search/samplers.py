"""Hypervolume per image forwarded: our proposals against NSGA-II, multivariate TPE and a Gaussian process.

    python benchmarks/search/samplers.py [--model ds_cnn] [--seeds 3] [--trials 200] [--only NAME ...] [--out FOLDER]
                                         [--memory FILE]

Everybody searches the same space for the same device (`x86-zen4-vnni-onnxruntime`) and objectives (metric, predicted
time, bytes), without budgets. `ours` proposes with `--sampler pareto`, the default, `nsga2 with moves` with `--sampler
nsga2`; the others are Optuna's samplers in plain studies with one categorical parameter per unit, once with our seeds
enqueued, once without. Costs count in images forwarded: every candidate is one pass over the samples that tune it and,
unless its divergence screens it out, one over the search set. The seeds need the sensitivity table, whose images are
stated; it is given to all seeded ones.

The hypervolume has the reference (dense fp32 costs, dense metric - 20 points) and is divided by that of the union of
all runs. `closed` is the share of the gap between the seeds and that union which a run closed. The evaluations are the
true ones; each distinct policy is computed once and counted in every run that asks for it. With `--memory` they are
kept in a file, so that a run that was stopped, or one with more seeds, computes only what is new.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path += [str(Path(__file__).parents[2] / "examples" / name) for name in ("cifar", "kws")]

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import torch_threads
from paretopress.search.measured_problem import MeasuredProblem, measured_problem
from paretopress.search.pareto import hypervolume
from paretopress.search.problem import SearchSettings
from paretopress.search.proposals import Proposer
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.samplers import ExplorationSettings
from paretopress.spaces.policy import Policy

DEVICE = "x86-zen4-vnni-onnxruntime"
WORST_DROP = 0.2
STATES = {TrialState.COMPLETE: State.COMPLETE, TrialState.PRUNED: State.SCREENED, TrialState.FAIL: State.FAILED}
OURS = {"ours": "pareto", "nsga2 with moves": "nsga2"}
PLAIN = ("nsga2", "tpe", "gp")
NAMES = (*OURS, *(f"{name}, seeded" for name in PLAIN), *(f"{name}, unseeded" for name in PLAIN))


class Subject:
    """A problem whose evaluations are remembered."""

    def __init__(self, name: str, memory: Path | None = None) -> None:
        import cifar
        import kws

        model, data = (kws.model(), kws.data()) if name == "ds_cnn" else (getattr(cifar, name)(), cifar.data())
        self.problem: MeasuredProblem = measured_problem(model, data, SearchSettings((DEVICE,), trials=1, distil="off"))
        self.space = self.problem.space
        self.seeds = [*dict.fromkeys(self.space.canonical(self.space.genome(one)) for one in self.problem.seeds)]
        self.known: dict[Policy, Evaluation] = {}
        evaluator = self.problem.evaluator
        self.tuned, self.scored = len(evaluator.entries.calibration.inputs[0]), evaluator.samples.count
        cells = sum(len(options) - 1 for options in self.problem.problem.space.options.values())
        self.table_images = cells * self.tuned
        self.memory = memory
        if memory is not None and memory.exists():
            prints = self.problem.problem.fingerprints()
            for line in memory.read_text().splitlines():
                record = TrialRecord.from_line(line, str(memory), model=prints["model"], space=prints["space"])
                self.known[record.policy] = Evaluation(
                    STATES[record.state], record.values, record.constraints, record.reason or ""
                )
        self.dense = self.evaluate(self.space.dense)

    def evaluate(self, genome: tuple[int, ...]) -> Evaluation:
        """The evaluation of a genome."""
        policy = self.space.policy(genome)
        if policy not in self.known:
            self.known[policy] = self.problem.evaluate(policy)
            if self.memory is not None:
                record = TrialRecord.of(len(self.known), policy, self.known[policy], 0.0)
                with self.memory.open("a") as stream:
                    stream.write(record.to_line() + "\n")
        return self.known[policy]

    def images(self, evaluation: Evaluation) -> int:
        """Images that an evaluation forwards."""
        return self.tuned + (self.scored if evaluation.state is State.COMPLETE else 0)

    def costs(self, evaluations: Sequence[Evaluation]) -> np.ndarray:
        """Drop in units of the worst one, and costs relative to dense, of what was scored."""
        names = self.problem.problem.cost_objectives
        rows = [[(self.dense.values["accuracy"] - one.values["accuracy"]) / WORST_DROP,
                 *(one.values[name] / self.dense.values[name] for name in names)]
                for one in evaluations if one.state is State.COMPLETE]
        return np.array(rows).reshape(len(rows), 1 + len(names))

    def volume(self, evaluations: Sequence[Evaluation]) -> float:
        """Hypervolume of what was scored."""
        return hypervolume(self.costs(evaluations), np.ones(1 + len(self.problem.problem.cost_objectives)))


def ours(subject: Subject, sampler: str, trials: int, seed: int) -> list[Evaluation]:
    """What `search.exploration` does, without a ledger."""
    guide, space = subject.problem.guide, subject.space
    settings = ExplorationSettings(sampler, trials, seed=seed)
    proposer = Proposer(space, subject.problem.objectives, subject.seeds, settings, guide)
    found = []
    for number in range(trials):
        genome = proposer.propose(number)
        if genome is None:
            break
        found.append(subject.evaluate(genome))
        proposer.learn(genome, TrialRecord.of(number, space.policy(genome), found[-1], 0.0))
    return found


def plain(subject: Subject, name: str, trials: int, seed: int, *, seeded: bool) -> list[Evaluation]:
    """An Optuna study as anyone would write it; what is screened is told as pruned."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    objectives, labels = subject.problem.objectives, subject.space.labels
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "nsga2": lambda: optuna.samplers.NSGAIISampler(population_size=min(50, trials // 4), seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(multivariate=True, seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
    }
    directions = ["maximize" if one == "max" else "minimize" for one in objectives.values()]
    study = optuna.create_study(directions=directions, sampler=samplers[name]())
    for genome in subject.seeds if seeded else []:
        study.enqueue_trial({unit: labels[unit][place] for unit, place in
                             zip(subject.space.units, genome, strict=True)})
    found: list[Evaluation] = []

    def objective(trial: optuna.Trial) -> list[float]:
        chosen = {unit: trial.suggest_categorical(unit, choices) for unit, choices in labels.items()}
        found.append(subject.evaluate(subject.space.canonical(subject.space.genome_of_labels(chosen))))
        if found[-1].state is not State.COMPLETE:
            raise optuna.TrialPruned
        return [found[-1].values[name] for name in objectives]

    study.optimize(objective, n_trials=trials)
    return found


def main() -> None:
    """Print the table and write it as text and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ds_cnn", choices=("ds_cnn", "resnet20", "resnet32", "resnet56"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gp-seeds", type=int, default=1, help="a Gaussian process takes seconds per proposal")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--memory", type=Path, help="where evaluations are kept; of one model and one version")
    arguments = parser.parse_args()
    with torch_threads(1):
        subject = Subject(arguments.model, arguments.memory)
        seeds = [subject.evaluate(genome) for genome in subject.seeds]
        runs: dict[str, list[list[Evaluation]]] = {}
        for name in arguments.only:
            kind, _, start = name.partition(", ")
            runs[name] = [
                ours(subject, OURS[name], arguments.trials, seed) if name in OURS
                else plain(subject, kind, arguments.trials, seed, seeded=start == "seeded")
                for seed in range(arguments.gp_seeds if kind == "gp" else arguments.seeds)
            ]
            print(f"{name}: done, {len(subject.known)} policies so far", file=sys.stderr, flush=True)
            report(subject, seeds, runs, arguments)   # what is there stays if the rest is interrupted


def report(
    subject: Subject, seeds: list[Evaluation], runs: dict[str, list[list[Evaluation]]], arguments: argparse.Namespace
) -> None:
    """Print and write medians over the seeds."""
    union = subject.volume([one for some in runs.values() for run in some for one in run])
    start = subject.volume(seeds) / union
    marks = [arguments.trials // 2, arguments.trials]
    machine = f"torch {torch.__version__}, {platform.machine()}"
    lines = [
        f"{arguments.model}, {arguments.seeds} seeds (gp {arguments.gp_seeds}), {machine}",
        f"{len(subject.seeds)} seed policies: {start:.4f} of the union's hypervolume",
        f"images forwarded: {subject.table_images:,} for the table, {subject.tuned + subject.scored:,} per scored one",
        f"{'':18s}" + "".join(f"{f'at {mark}: volume (min, max)':>32s}{'closed':>9s}{'images':>11s}" for mark in marks),
    ]
    plain: dict[str, Any] = {"seeds": start, "union": union, "runs": {}}
    for name, some in runs.items():
        cells = ""
        plain["runs"][name] = {}
        for mark in marks:
            reached = [subject.volume(run[:mark]) / union for run in some]
            images = statistics.median(sum(map(subject.images, run[:mark])) for run in some)
            middle = statistics.median(reached)
            closed = (middle - start) / (1.0 - start)
            cells += f"{f'{middle:.4f} ({min(reached):.4f}, {max(reached):.4f})':>32s}{closed:>9.0%}{images:>11,.0f}"
            plain["runs"][name][mark] = {"volumes": reached, "images": images}
        lines.append(f"{name:18s}{cells}")
    print("\n".join(lines))
    stem = arguments.out / f"samplers_{arguments.model}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(plain, indent=1) + "\n")
    stem.with_suffix(".txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
