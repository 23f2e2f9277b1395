"""What a search costs with and without what another model's run learnt, in images forwarded.

    python search_cost.py CACHE OUTPUT.json --source resnet20 --target resnet32 --seeds 0 1 2 --trials 40

Cold: the whole table, the exact seeds, and the default sampler. Warm: the same with `--warm-start`. The source's run
(its table and as many trials) is not counted: it is there already. The hypervolume is that of the live display: an
accuracy no more than 10 points below the dense model, predicted time and bytes below the dense model's, on the search
samples. The final one is the larger of both searches' at their last trial. A warm search that has not reached 95% of it
by then goes on until it does or has forwarded 1.1 times as many images as the whole cold search. `--library` instead of
`--source` names recipe files; SEED in a name becomes the seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from problems import Case, case, measured

from paretopress.evaluators.evaluation import State
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.evaluators.sensitivity_prior import SensitivityPrior
from paretopress.search.correlation import kendall, spearman
from paretopress.search.exploration import explore
from paretopress.search.guidance import guide_of
from paretopress.search.ledger import Run
from paretopress.search.live import relative_hypervolume
from paretopress.search.observer import Silent
from paretopress.search.policy_library import searched_policies
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.samplers import ExplorationSettings
from paretopress.search.table import measure_table
from paretopress.search.warm_start import believed, carried, cold_seeds, features_of, promising, start
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import Recipe

REACHED = 0.95
ALLOWED = 1.1   # times the images of the whole cold search: what a warm one may take to reach as much
MORE = 8        # trials at a time


class Trace:
    """The hypervolume of a search over the images it forwarded."""

    def __init__(self, one: Case) -> None:
        self.case, self.points, self.rows = one, [], []
        self.dense: np.ndarray | None = None
        self.first = one.counted.images

    def add(self, record: TrialRecord) -> None:
        """Take note of a trial."""
        objectives = self.case.problem.objectives
        if record.state is TrialState.COMPLETE:
            row = [(-1.0 if direction == "max" else 1.0) * record.values[name]
                   for name, direction in objectives.items()]
            if record.policy.is_dense:
                self.dense = np.array(row)
            self.rows.append(row)
        volume = 0.0 if self.dense is None else relative_hypervolume(np.array(self.rows), self.dense) or 0.0
        self.points.append((self.case.counted.images - self.first, volume))

    def after(self, trials: int) -> float:
        """The hypervolume after so many trials."""
        return self.points[min(trials, len(self.points)) - 1][1]

    def reaching(self, volume: float) -> int | None:
        """Images until the hypervolume reaches a value."""
        return next((images for images, found in self.points if found >= volume - 1e-12), None)


def run_of(one: Case, folder: Path) -> Run:
    """A run directory of its own."""
    return Run.open(folder, {**one.problem.fingerprints(), "versions": ""}, {"seed": one.seed})


def explored(one: Case, run: Run, table: SensitivityTable, seeds: Sequence[Policy], trials: int, trace: Trace
             ) -> list[TrialRecord]:
    """Explore until there are so many trials."""
    problem = one.problem
    settings = ExplorationSettings(problem.settings.sampler, trials, None, one.seed)
    return explore(problem.space.options, problem.objectives, seeds, one.executor(), run, settings,
                   on_record=trace.add, inside=problem.units_inside_branches(), guide=guide_of(problem, table))


def cold(one: Case, trials: int, folder: Path, *, ordered: bool = False) -> tuple[Trace, SensitivityTable, list]:
    """A search without a library; `ordered`: its seeds in the order of a search with one."""
    trace = Trace(one)
    table, _ = measure_table(one.problem.space, one.executor())
    seeds = cold_seeds(one.problem, table)
    if ordered:
        seeds = promising(one.problem, table, seeds)
    dense = Policy.of({}, model=one.problem.program.structure.fingerprint, space=one.problem.space.fingerprint)
    with run_of(one, folder) as run:
        records = explored(one, run, table, (dense, *one.problem.comparisons().values(), *seeds), trials, trace)
    return trace, table, records


def warm(one: Case, library: Sequence[Recipe], trials: int, folder: Path, rival: Trace | None = None
         ) -> tuple[Trace, dict[str, Any]]:
    """A search that starts from a library; it goes on beyond its trials while a cold rival has found more."""
    trace, observer = Trace(one), Silent()
    with run_of(one, folder) as run:
        begun = start(one.problem, library, one.executor(), folder, {}, observer)

        def some(table: SensitivityTable, policies: Sequence[Policy], most: int) -> list[TrialRecord]:
            return explored(one, run, table, policies, min(most, trials), trace)

        table, seeds = believed(one.problem, begun, some, one.executor(), observer)
        explored(one, run, table, seeds, trials, trace)
        if rival is not None:
            wanted, most = REACHED * max(rival.after(trials), trace.after(trials)), trials
            while trace.reaching(wanted) is None and trace.points[-1][0] < ALLOWED * rival.points[-1][0]:
                most += MORE
                explored(one, run, table, seeds, most, trace)
    later = [] if begun.refinement is None else [asdict(found) for found in begun.refinement.rounds]
    rounds = [asdict(found) for found in begun.warm.rounds] + later
    return trace, {**begun.warm.to_plain(), "rounds": rounds, "carried": len(begun.transfers),
                   "coverage": [round(found.coverage, 3) for found in begun.transfers], "trials": len(trace.points)}


def predicted(one: Case, library: Sequence[Recipe], table: SensitivityTable) -> dict[str, Any]:
    """How a table predicted without any measurement, and its unit order per method, agree with the measured one."""
    prior = SensitivityPrior(library, features_of(one.problem), one.problem.space.options)
    if not prior.sources:
        return {}
    guessed = prior.table()
    pairs: dict[str, list[tuple[float, float]]] = {}
    for unit, option in prior.cells:
        pair = guessed.losses[unit][option], table.losses[unit][option]
        for key in ("all", unit.rpartition("/")[2]):
            pairs.setdefault(key, []).append(pair)
    return {key: {"choices": len(found), "spearman": spearman(*zip(*found, strict=True)),
                  "kendall": kendall(*zip(*found, strict=True))} for key, found in pairs.items()}


def applied_directly(one: Case, library: Sequence[Recipe], rows: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Carried policies, compensated and scored, without any search: how far above the searched front each loses.

    `gap`: the accuracy of the best point of the searched front that takes no more time and no more bytes, less its own.
    """
    problem, found = one.problem, []
    front = np.array(rows)
    for transfer in carried(problem, features_of(problem), library):
        evaluation = one.counted(transfer.policy)
        if evaluation.state is not State.COMPLETE:
            found.append({"coverage": transfer.coverage, "reason": evaluation.reason})
            continue
        row = np.array([(-1.0 if direction == "max" else 1.0) * evaluation.values[name]
                        for name, direction in problem.objectives.items()])
        no_dearer = front[(front[:, 1:] <= row[1:] * (1 + 1e-9)).all(axis=1)]
        gap = float(row[0] - no_dearer[:, 0].min()) if len(no_dearer) else None
        found.append({"coverage": transfer.coverage, "values": dict(evaluation.values), "gap": gap})
    return found


def source_recipe(name: str, seed: int, cache: Path, trials: int) -> Recipe:
    """What a run of the source learnt."""
    one = case(name, seed, cache)
    recipe = measured(one)
    with tempfile.TemporaryDirectory() as folder:
        _, _, records = cold(one, trials, Path(folder))
    return replace(recipe, policies=searched_policies(records))


def compared(source: Sequence[Recipe], target: str, seed: int, cache: Path, trials: int) -> dict[str, Any]:
    """Both searches of one seed."""
    one = case(target, seed, cache)
    with tempfile.TemporaryDirectory() as folder:
        first, table, _ = cold(one, trials, Path(folder) / "cold")
        order, _, _ = cold(one, trials, Path(folder) / "ordered", ordered=True)
        second, told = warm(one, source, trials, Path(folder) / "warm", first)
    direct = applied_directly(one, source, first.rows)
    last = {"cold": first.after(trials), "warm": second.after(trials), "cold_ordered": order.after(trials)}
    final = max(last["cold"], last["warm"])
    reached = {name: trace.reaching(REACHED * final)
               for name, trace in (("cold", first), ("warm", second), ("cold_ordered", order))}
    return {
        "seed": seed, "final": last, "images_to_95": reached,
        "images_to_first_candidate": {"cold": first.points[0][0], "warm": second.points[0][0]},
        "ratio": None if None in (reached["cold"], reached["warm"]) else reached["cold"] / reached["warm"],
        "direct": direct, "table": told, "predicted": predicted(one, source, table),
        "traces": {name: [[images, round(volume, 5)] for images, volume in trace.points]
                   for name, trace in (("cold", first), ("warm", second))},
    }


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Median, least and most of the values that are known."""
    known = sorted(value for value in values if value is not None)
    return {"n": len(known), "median": statistics.median(known) if known else None,
            "least": known[0] if known else None, "most": known[-1] if known else None,
            "not reached": len(values) - len(known)}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spread over seeds."""
    return {
        "ratio": spread([row["ratio"] for row in rows]),
        **{f"images {name}": spread([row["images_to_95"][name] for row in rows])
           for name in ("cold", "cold_ordered", "warm")},
        "images before the first candidate, cold over warm": spread(
            [row["images_to_first_candidate"]["cold"] / max(1, row["images_to_first_candidate"]["warm"])
             for row in rows]),
        "final warm over cold": spread([row["final"]["warm"] / row["final"]["cold"] for row in rows]),
        "accuracy lost by direct application": spread(
            [found.get("gap") for row in rows for found in row["direct"]]),
        "spearman without a measurement": spread([row["predicted"].get("all", {}).get("spearman") for row in rows]),
    }


def compact(plain: dict[str, Any]) -> str:
    """Plain data as JSON, with a line for each seed."""
    head = json.dumps({key: value for key, value in plain.items() if key != "seeds"}, indent=1)
    lines = ",\n  ".join(json.dumps(row) for row in plain["seeds"])
    return f'{head[:-2]},\n "seeds": [\n  {lines}\n ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--source")
    parser.add_argument("--library", type=Path, nargs="*", default=())
    parser.add_argument("--target", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--source-trials", type=int, help="of the source's run, whose policies are carried")
    given = parser.parse_args()
    rows, source_trials = [], given.source_trials or given.trials
    for seed in given.seeds:
        library = [Recipe.load(Path(str(path).replace("SEED", str(seed)))) for path in given.library]
        if given.source:
            library.append(source_recipe(given.source, seed, given.cache, source_trials))
        rows.append(compared(library, given.target, seed, given.cache, given.trials))
        plain = {"source": given.source or [path.name for path in given.library], "target": given.target,
                 "trials": given.trials, "trials of the source": source_trials, "summary": summary(rows), "seeds": rows}
        given.output.write_text(compact(plain))
        shown = {key: rows[-1][key] for key in ("seed", "final", "images_to_95", "ratio", "table")}
        print(json.dumps(shown), flush=True)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
