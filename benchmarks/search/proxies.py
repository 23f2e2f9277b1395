"""What every proxy costs, and how well it orders candidates, against accuracy on the search set.

    python benchmarks/search/proxies.py kws|resnet20 [--seeds 5] [--candidates 32] [--out FOLDER]

Models and data are those of `examples/` (the folder of shared data is named by PARETOPRESS_SHARED); target
x86-zen4-vnni-onnxruntime, the default space. Candidates are drawn per seed so that no proxy's own front is favoured:
points of exact fronts of the divergence table, with every unit's losses multiplied by a lognormal factor of its own
(sigma 1), at losses spread evenly in the logarithm from 0.0003 to 1 nat, and up to a fifth of the units then changed
at random. What diverges by more than 1 nat on the tuning samples is left out, as a search screens it.

The truth is the accuracy of the tuned candidate on the search set: 2,500 images, or the 256 stimuli of the keyword
spotter. Two scores of the whole candidate stand beside the tables: its own divergence on the 256 tuning samples (the
forward pass that tunes it) and on the search set. One thread; seconds are of the process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

sys.path.extend(str(Path(__file__).parents[2] / "examples" / folder) for folder in ("cifar", "kws"))

from paretopress.evaluators.proxies import Interactions, ProxyTable, interactions, local_tables
from paretopress.evaluators.sensitivity import SensitivityTable, assemble, integer_choices, substitution_loss
from paretopress.search.exact import CostTerm, ExactProblem, solve_front
from paretopress.search.factor_graph import FactorGraph
from paretopress.search.observer import Silent
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import Problem, SearchSettings, prepare_problem
from paretopress.search.proxy_check import assess
from paretopress.search.seeds import policy_of
from paretopress.spaces.policy import Policy

TARGET = "x86-zen4-vnni-onnxruntime"
SAMPLES, HOPELESS, SPREAD, CHANGED = 2500, 1.0, 1.0, 0.2


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["kws", "resnet20"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    module = importlib.import_module("kws" if arguments.model == "kws" else "cifar")
    settings = SearchSettings(targets=(TARGET,), trials=1, distil="off")
    problem = prepare_problem(module.model(), module.data(), settings)
    bench = Bench(problem)
    rows = [bench.run(seed, arguments.candidates) for seed in range(arguments.seeds)]
    found = {
        "model": arguments.model, "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
        "units": len(problem.space.options), "choices": len(bench.pairs.place), "samples": bench.samples.count,
        "dense": bench.dense, "seconds": bench.seconds, "seeds": rows,
    }
    (arguments.out / f"proxies_{arguments.model}.json").write_text(json.dumps(found, indent=1) + "\n")
    _print(found)


class Bench:
    """Tables of one model, and candidates with all their scores."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.space = problem, problem.space
        self.evaluator = prepare_evaluator(problem, Silent())
        self.entries = self.evaluator.entries
        self.samples = problem.data.scored.first(SAMPLES)
        self.evaluator = type(self.evaluator)(
            self.entries, problem.costs, self.samples, problem.data.metrics, self.evaluator.limits, (),
        ).ready(problem.limits)
        self.dense = self.evaluator.score(self.entries.calibration.base)["accuracy"]
        self.seconds: dict[str, float] = {}
        begin = time.process_time()
        self.pairs: Interactions = interactions(self.entries, self.space)
        self.seconds["interactions"] = time.process_time() - begin
        together = None
        if integer_choices(self.space):
            together = substitution_loss(self.entries, Policy.of(integer_choices(self.space)))
        self.table = assemble(self.space, self.pairs.divergences, together)
        self.seconds["divergence"] = time.process_time() - begin
        self.seconds["divergence, not repaired"] = self.seconds["divergence"]
        begin = time.process_time()
        self.local: dict[str, ProxyTable] = local_tables(self.entries, self.space)
        sweep = time.process_time() - begin
        self.seconds |= {name: table.seconds for name, table in self.local.items()}
        print(f"{len(self.pairs.place)} choices: substitution {self.seconds['divergence']:.1f} s, all that look at "
              f"layers alone {sweep:.1f} s", flush=True)
        self.terms = FactorGraph(problem.program.structure, self.space, problem.costs).terms()

    def candidates(self, seed: int, count: int) -> list[Policy]:
        """Policies all along fronts of tables that are weighted at random."""
        rng = np.random.default_rng(seed)
        structure, options = self.problem.program.structure, {u: len(o) for u, o in self.space.options.items()}
        found: dict[Policy, None] = {}
        targets = np.geomspace(3e-4, 1.0, 2 * count)
        for number in rng.permutation(2 * count):
            factors = {unit: float(rng.lognormal(0.0, SPREAD)) for unit in options}
            losses = {unit: factors[unit] * np.array(row) for unit, row in self.table.losses.items()}
            terms = self.terms[int(rng.integers(2))]
            costs = tuple(CostTerm(units, values) for units, values in terms)
            points = solve_front(ExactProblem(options, losses, costs), buckets=512, tolerance=0.02).points
            point = min(points, key=lambda one: abs(np.log(max(self._loss(one.assignment), 1e-9) / targets[number])))
            assignment = dict(point.assignment)
            for unit in rng.permutation(list(options))[: int(rng.integers(1 + round(CHANGED * len(options))))]:
                assignment[unit] = int(rng.integers(options[unit]))
            found.setdefault(policy_of(self.space, assignment, structure.fingerprint))
        return list(found)

    def _loss(self, assignment: dict[str, int]) -> float:
        return sum(self.table.losses[unit][option] for unit, option in assignment.items())

    def run(self, seed: int, count: int) -> dict[str, object]:
        """Score the candidates of one seed, and compare."""
        policies, drops, tuned, scored, spent = [], [], [], [], [0.0, 0.0]
        for policy in self.candidates(seed, count):
            begin = time.process_time()
            network, loss = self.evaluator.build(policy)
            spent[0] += time.process_time() - begin
            if loss > HOPELESS:
                continue
            begin = time.process_time()
            scores = self.evaluator.score(network)
            spent[1] += time.process_time() - begin
            policies.append(policy)
            drops.append(self.dense - scores["accuracy"])
            tuned.append(loss)
            scored.append(scores["divergence"])
            if len(policies) == count:
                break
        raw = {unit: tuple(self.pairs.divergences.get((unit, index), 0.0) for index in range(len(row)))
               for unit, row in self.table.losses.items()}
        tables = {
            "divergence": ProxyTable("divergence", self.table, 0.0),
            "divergence, not repaired": ProxyTable("", SensitivityTable(raw), 0.0), **self.local,
        }
        predicted = {name: table.scores(self.space, policies) for name, table in tables.items()}
        predicted["interactions"] = self.pairs.scores(self.space, policies)
        predicted["candidate on tuning samples"] = tuned
        predicted["candidate on search set"] = scored
        self.seconds["candidate on tuning samples"] = spent[0] / max(1, len(policies))
        self.seconds["candidate on search set"] = sum(spent) / max(1, len(policies))
        reports = {name: assess(name, values, drops).to_plain() for name, values in predicted.items()}
        print(f"seed {seed}: {len(policies)} candidates, accuracy {self.dense - max(drops):.3f} to "
              f"{self.dense - min(drops):.3f}: " + ", ".join(f"{name} {report['kendall']:.2f}"
                                                             for name, report in reports.items()), flush=True)
        return {"seed": seed, "drops": drops, "predicted": predicted, "reports": reports}


def _print(found: dict[str, object]) -> None:
    rows = found["seeds"]
    columns = ("tau", "[min, max]", "rho", "tau within 3pp", "[min, max]")
    print(f"{'proxy':30} {'seconds':>8}" + "".join(f"{name:>15}" for name in columns))
    for name in rows[0]["reports"]:
        taus, rhos, near = ([row["reports"][name][key] for row in rows if row["reports"][name][key] is not None]
                            for key in ("kendall", "spearman", "kendall_close"))
        if not taus or not near:
            continue
        print(f"{name:30} {found['seconds'][name]:8.1f} {median(taus):15.3f}   "
              f"[{min(taus):.2f}, {max(taus):.2f}] {median(rhos):14.3f} {median(near):14.3f}   "
              f"[{min(near):.2f}, {max(near):.2f}]")
    counts = [row["reports"]["divergence"] for row in rows]
    print(f"{sum(one['candidates'] for one in counts)} candidates in {len(rows)} sets, "
          f"{sum(one['close'] for one in counts)} of them within 3pp; seconds of a candidate are each")


if __name__ == "__main__":
    main()
