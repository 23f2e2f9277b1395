"""Joint search against sequential pipelines, at equal cost in images forwarded.

    python benchmarks/joint/joint.py [--model ds_cnn] [--device ID ...] [--images 60000] [--seeds 3] [--memory FOLDER]

Four ways to spend the same images, all with the same proposals (`--sampler`), evaluator and sensitivity table:

* joint: channels and weight formats are chosen together;
* prune -> quantise: half of the images search channels alone; the four points that are best spread over that front
  (dense left out) each get an eighth of the images to choose the formats of their layers;
* prune only, quantise only.

Images count the cells of the table that a way needs, what tunes a candidate, and what scores it. The table of formats
is measured on the dense network in all of them: a pipeline that measured it again on pruned networks would pay more.
What is compared is the hypervolume over (metric on the search set, predicted time, bytes) of everything that a way
evaluated, with the reference (dense fp32 costs, dense metric - 20 points), as a share of that of the union. Beside it
stands the least drop within half of the dense model's time and an eighth of its bytes, and within a quarter and a
sixteenth. Nothing is fine-tuned. With `--memory` evaluations and the table are kept, so that a run may be continued.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path += [str(Path(__file__).parents[2] / "examples" / name) for name in ("cifar", "kws")]

from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.search.executors import SerialExecutor, torch_threads
from paretopress.search.finalists import spread_fronts
from paretopress.search.measured_problem import MeasuredProblem
from paretopress.search.observer import Silent
from paretopress.search.pareto import hypervolume, non_dominated
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import Problem, SearchSettings, prepare_problem
from paretopress.search.proposals import Proposer
from paretopress.search.records import TrialRecord
from paretopress.search.samplers import ExplorationSettings
from paretopress.search.table import measure_table, read_table, write_table
from paretopress.search.workload import Workload
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace

DEVICES = ("x86-zen4-vnni-onnxruntime", "cortex-a76-tflite")
WORST_DROP = 0.2
PRUNED_POINTS = 4
BUDGETS = ((0.5, 0.125), (0.25, 0.0625))   # shares of the dense model's time and bytes
JOINT, SEQUENTIAL, PRUNE, QUANTISE = "joint", "prune -> quantise", "prune only", "quantise only"
WAYS = (JOINT, SEQUENTIAL, PRUNE, QUANTISE)


class Memory:
    """What candidates are worth by the hash of their policy: the metric and the divergence depend on no device."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: dict[str, dict[str, Any]] = {}
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                plain = json.loads(line)
                self._known[plain.pop("hash")] = plain

    def evaluate(self, subject: Subject, policy: Policy) -> Evaluation:
        """The evaluation of a policy, computed where it is not known yet."""
        problem = subject.problem
        costs = problem.costs.predict(problem.plan(policy))
        values = {name: costs[name] for name in problem.cost_objectives}
        if policy.hash not in self._known:
            found = subject.evaluator(policy)
            scores = {name: found.values[name] for name in ("accuracy", "divergence") if name in found.values}
            self._known[policy.hash] = {"state": found.state.value, "scores": scores, "images": found.images}
            if self._file is not None:
                with self._file.open("a") as stream:
                    stream.write(json.dumps({"hash": policy.hash, **self._known[policy.hash]}) + "\n")
        known = self._known[policy.hash]
        reason = "" if known["scores"] else "screened"
        return Evaluation(State(known["state"]), {**known["scores"], **values}, {}, reason, known["images"])


@dataclass(frozen=True)
class Subject:
    """A model on a device.

    Attributes:
        problem: With all choices.
        evaluator: Scores candidates.
        table: Losses of all choices.
        memory: Of evaluations.
        sampler: What proposes.
    """

    problem: Problem
    evaluator: CandidateEvaluator
    table: SensitivityTable
    memory: Memory
    sampler: str

    @property
    def tuned(self) -> int:
        """Samples that tune a candidate or measure a cell."""
        return len(self.evaluator.entries.calibration.inputs[0])

    def table_images(self, kinds: Sequence[str]) -> int:
        """Images of the table's cells of some kinds of units."""
        options = self.problem.space.options
        return self.tuned * sum(len(row) - 1 for unit, row in options.items() if unit.rpartition("/")[2] in kinds)

    def restricted(self, kinds: Sequence[str], fixed: Policy | None = None) -> MeasuredProblem:
        """The problem with choices for some kinds of units; the others stay dense, or as a policy has them."""
        space, table = self.problem.space, self.table
        chosen = {} if fixed is None else fixed.choices
        options, losses = {}, {}
        for unit, row in space.options.items():
            places = range(len(row)) if unit.rpartition("/")[2] in kinds else [row.index(chosen.get(unit))]
            options[unit] = tuple(row[place] for place in places)
            losses[unit] = tuple(table.losses[unit][place] for place in places)
        smaller = SearchSpace(options, space.dropped, space.model)
        return MeasuredProblem(replace(self.problem, space=smaller), self.evaluator, SensitivityTable(losses))

    def explored(self, measured: MeasuredProblem, images: int, seed: int) -> Iterator[tuple[Policy, Evaluation]]:
        """Candidates of an exploration until the images are used up."""
        space = measured.space
        seeds = [space.canonical(space.genome(policy)) for policy in measured.seeds
                 if all(policy.choices.get(unit) in row for unit, row in zip(space.units, space.options, strict=True))]
        settings = ExplorationSettings(self.sampler, trials=1_000_000, seed=seed)
        proposer = Proposer(space, measured.objectives, seeds, settings, measured.guide)
        spent, number = 0, 0
        while spent < images and (genome := proposer.propose(number)) is not None:
            policy = space.policy(genome)
            found = self.memory.evaluate(self, policy)
            proposer.learn(genome, TrialRecord.of(number, policy, found, 0.0))
            spent, number = spent + found.images, number + 1
            yield policy, found


KINDS = {JOINT: ("channels", "rank", "weights"), PRUNE: ("channels",), QUANTISE: ("weights",)}


def spend(subject: Subject, way: str, images: int, seed: int) -> list[Evaluation]:
    """All candidates of one way to spend some images."""
    if way != SEQUENTIAL:
        left = images - subject.table_images(KINDS[way])
        return [found for _, found in subject.explored(subject.restricted(KINDS[way]), left, seed)]
    first = images // 2 - subject.table_images(KINDS[PRUNE])
    pruned = list(subject.explored(subject.restricted(KINDS[PRUNE]), first, seed))
    scored = [(policy, found) for policy, found in pruned if found.state is State.COMPLETE and not policy.is_dense]
    costs = costs_of(subject, [found for _, found in scored])
    rows = [scored[place] for place in spread_fronts(costs, PRUNED_POINTS)]
    all_found = [found for _, found in pruned]
    each = (images - images // 2 - subject.table_images(KINDS[QUANTISE])) // max(1, len(rows))
    for policy, _ in rows:
        all_found += [found for _, found in
                      subject.explored(subject.restricted(KINDS[QUANTISE], policy), each, seed)]
    return all_found


def costs_of(subject: Subject, evaluations: Sequence[Evaluation]) -> np.ndarray:
    """Drop in units of the worst one, and costs relative to dense, of what was scored."""
    dense = subject.memory.evaluate(subject, subject.problem.policy({}))
    names = subject.problem.cost_objectives
    rows = [[(dense.values["accuracy"] - one.values["accuracy"]) / WORST_DROP,
             *(one.values[name] / dense.values[name] for name in names)]
            for one in evaluations if one.state is State.COMPLETE]
    return np.array(rows).reshape(len(rows), 1 + len(names))


def volume(costs: np.ndarray) -> float:
    """Hypervolume of rows of `costs_of`."""
    inside = costs[non_dominated(costs)] if len(costs) else costs
    return hypervolume(inside, np.ones(costs.shape[1]))


def least_drop(costs: np.ndarray, time: float, size: float) -> float | None:
    """Least drop of the metric within shares of the dense model's time and bytes; None where nothing is."""
    within = costs[(costs[:, 1] <= time) & (costs[:, 2] <= size)]
    return float(WORST_DROP * within[:, 0].min()) if len(within) else None


def subject_of(arguments: argparse.Namespace, device: str) -> Subject:
    """Capture, calibrate and measure the table, or read it back."""
    import cifar
    import kws

    name, folder = arguments.model, arguments.memory
    model, data = (kws.model(), kws.data()) if name == "ds_cnn" else (getattr(cifar, name)(), cifar.data())
    problem = prepare_problem(model, data, SearchSettings((device,), trials=1, distil="off"))
    evaluator = prepare_evaluator(problem, Silent())
    if arguments.samples:
        shorter = replace(evaluator, samples=evaluator.samples.first(arguments.samples))
        evaluator = shorter.ready(problem.limits)
    key, stored = problem.fingerprints(), None if folder is None else folder / f"table_{name}_{device}.json"
    table = None if stored is None else read_table(stored, key, problem.space)
    if table is None:
        with SerialExecutor(Workload.of(problem, evaluator)) as executor:
            table, _ = measure_table(problem.space, executor)
        if stored is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_table(stored, key, table, problem.space)
    memory = Memory(None if folder is None else folder / f"evaluations_{name}_{evaluator.samples.count}.jsonl")
    return Subject(problem, evaluator, table, memory, arguments.sampler)


def measured_ways(subject: Subject, arguments: argparse.Namespace) -> dict[str, Any]:
    """All ways and seeds on one device."""
    found: dict[str, list[np.ndarray]] = {}
    for way in WAYS:
        runs = [spend(subject, way, arguments.images, seed) for seed in range(arguments.seeds)]
        found[way] = [costs_of(subject, run) for run in runs]
        print(f"{way}: {[len(run) for run in runs]} candidates", file=sys.stderr, flush=True)
    union = volume(np.concatenate([costs for some in found.values() for costs in some]))
    return {
        way: {
            "volumes": [volume(costs) / union for costs in some], "scored": [len(costs) for costs in some],
            "drops": [[least_drop(costs, *budget) for costs in some] for budget in BUDGETS],
        } for way, some in found.items()
    }


def middle(values: Sequence[float | None]) -> str:
    """Median drop over seeds, in points; how many seeds have one where some do not."""
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    missing = f" ({len(known)}/{len(values)})" if len(known) < len(values) else ""
    return f"{100 * statistics.median(known):.2f}pp{missing}"


def table_lines(device: str, ways: dict[str, Any]) -> list[str]:
    """The results of a device as text."""
    labels = [f"drop at time/{1 / time:.0f}, bytes/{1 / size:.0f}" for time, size in BUDGETS]
    lines = [device, f"  {'':20s}{'volume, median (min, max)':>30s}" + "".join(f"{label:>30s}" for label in labels)]
    for way, one in ways.items():
        volumes = one["volumes"]
        shown = f"{statistics.median(volumes):.4f} ({min(volumes):.4f}, {max(volumes):.4f})"
        lines.append(f"  {way:20s}{shown:>30s}" + "".join(f"{middle(drops):>30s}" for drops in one["drops"]))
    best = max((way for way in ways if way != JOINT), key=lambda way: statistics.median(ways[way]["volumes"]))
    pairs = list(zip(ways[JOINT]["volumes"], ways[best]["volumes"], strict=True))
    wins = sum(own > other for own, other in pairs)
    lines.append(f"  joint beats the best other way ({best}) in {wins} of {len(pairs)} seeds")
    return lines


def main() -> None:
    """Print the tables and write them as text and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ds_cnn", choices=("ds_cnn", "resnet20", "resnet32", "resnet56"))
    parser.add_argument("--device", nargs="*", default=list(DEVICES))
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--samples", type=int, help="score on the first of the search samples only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sampler", default="pareto")
    parser.add_argument("--memory", type=Path, help="folder for evaluations and tables, of one version of the code")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    lines, plain = [], {}
    with torch_threads(1):
        for device in arguments.device:
            subject = subject_of(arguments, device)
            if not lines:
                lines.append(
                    f"{arguments.model}: {arguments.images:,} images, {arguments.seeds} seeds, sampler "
                    f"{arguments.sampler}, {subject.evaluator.samples.count} samples to score on, "
                    f"torch {torch.__version__}"
                )
            ways = measured_ways(subject, arguments)
            tables = {way: subject.table_images(KINDS[way]) for way in KINDS}
            lines += [*table_lines(device, ways), f"  images of the table: {tables}"]
            plain[device] = {"ways": ways, "table_images": tables}
    print("\n".join(lines))
    stem = arguments.out / f"joint_{arguments.model}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    stem.with_suffix(".json").write_text(json.dumps({"images": arguments.images, "devices": plain}, indent=1) + "\n")


if __name__ == "__main__":
    main()
