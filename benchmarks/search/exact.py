"""Whole fronts of 56 layers with 40 choices each: time, gap and points, beside HiGHS and NSGA-II.

    python benchmarks/search/exact.py [--out FOLDER]

The layers are the 56 of `examples/cifar`'s ResNet-56 with trained weights (the folder of shared data is named by
PARETOPRESS_SHARED). A choice is a share of the input channels that stay, those of largest norm, and a width of
weights that are rounded to the nearest. Its loss is the squared error of the weights as a share of the layer's
squared weights. The costs are stored bytes, which are integers, and bit operations (multiply-accumulates times bits
times 8) as a share of the dense model's, which are not. A third table is drawn at random. One thread; times are of
the process, medians of 15 runs with quartiles, all in one process. A front is arrays of costs, losses and choices; what
it takes to make an object of every point besides is stated apart. Costs that are multiples of one unit but for rounding
errors, such as the shares of bit operations, count as such: their ties are ties.

HiGHS solves the same tables for 5 budgets, one binary per option, to a gap of 0.01%; NSGA-II (Optuna) gets 3,000
evaluations. Hypervolumes are of the two objectives between the cheapest and the least lossy assignment, as a share
of the solver's finest front.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
import scipy
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag

sys.path.append(str(Path(__file__).parents[2] / "examples" / "cifar"))

from paretopress.search.exact import CostTerm, ExactProblem, solve_front
from paretopress.search.pareto import hypervolume

KEEP = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
BITS = (8, 6, 4, 3, 2)
RUNS, BUDGETS, EVALUATIONS = 15, (0.1, 0.25, 0.4, 0.6, 0.8), 3000
RESOLUTIONS = ((1024, 1.0), (4096, 1.0), (8192, 1.0), (4096, 0.0))   # buckets, tolerance


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = {"machine": _machine()}
    for name, problem in (*resnet56_problems().items(), ("random", random_problem())):
        found[name] = _measure(name, problem)
    (arguments.out / "exact.json").write_text(json.dumps(found, indent=1) + "\n")


def _machine() -> dict[str, str]:
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")]
    return {"processor": models[0] if models else platform.processor(), "python": platform.python_version(),
            "numpy": np.__version__, "scipy": scipy.__version__, "optuna": optuna.__version__}


def resnet56_problems() -> dict[str, ExactProblem]:
    """The two problems of the trained network: bytes and bit operations."""
    import cifar

    network, positions = cifar.resnet56(), {}
    layers = {name: module for name, module in network.named_modules()
              if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)}
    for name, module in layers.items():
        module.register_forward_hook(
            lambda _, __, y, name=name: positions.update({name: y[0, 0].numel() if y.ndim == 4 else 1}))
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    losses, stored, operations = {}, [], []
    for name, module in layers.items():
        rows = [_choice(module.weight.detach(), share, bits) for share in KEEP for bits in BITS]
        losses[name] = np.array([loss for loss, _, _ in rows])
        stored.append(CostTerm((name,), np.array([float(size) for _, size, _ in rows])))
        operations.append(CostTerm((name,), np.array([8.0 * work * positions[name] for _, _, work in rows])))
    options = {name: len(KEEP) * len(BITS) for name in layers}
    dense = sum(float(term.table.max()) for term in operations)
    shares = tuple(CostTerm(term.units, term.table / dense) for term in operations)
    return {"bytes": ExactProblem(options, losses, tuple(stored)),
            "bit operations": ExactProblem(options, losses, shares)}


def _choice(weight: torch.Tensor, share: float, bits: int) -> tuple[float, int, int]:
    """Relative squared error, stored bytes (packed, a float scale per row) and weight bits of a choice."""
    kept = max(1, round(share * weight.shape[1]))
    norms = weight.pow(2).flatten(2).sum(dim=(0, 2)) if weight.ndim > 2 else weight.pow(2).sum(dim=0)
    left = torch.zeros_like(weight)
    index = norms.topk(kept).indices
    left[:, index] = weight[:, index]
    flat = left.flatten(1)
    scale = flat.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    rounded = (flat / scale).round() * scale
    loss = float((rounded - weight.flatten(1)).square().sum() / weight.square().sum())
    count = left[:, index].numel()
    return loss, -(-count * bits // 8) + 4 * len(weight), count * bits


def random_problem(seed: int = 0, layers: int = 56, choices: int = 40) -> ExactProblem:
    """Losses that grow as costs fall, of very different sizes, with noise."""
    rng = np.random.default_rng(seed)
    options, losses, costs = {}, {}, []
    for number in range(layers):
        unit, left = f"layer{number}", np.sort(rng.uniform(0.03, 1.0, choices))[::-1]
        options[unit] = choices
        losses[unit] = 0.01 * rng.lognormal(0, 1.5) * (1 - left) ** 2 * rng.lognormal(0, 0.5, choices)
        costs.append(CostTerm((unit,), left * rng.lognormal(0, 0.7) * rng.uniform(0.9, 1.1, choices)))
    return ExactProblem(options, losses, tuple(costs))


def _measure(name: str, problem: ExactProblem) -> dict[str, object]:
    rows, fronts = [], []
    for buckets, tolerance in RESOLUTIONS:
        times = []
        for _ in range(RUNS):
            begin, begin_wall = time.process_time(), time.perf_counter()
            front = solve_front(problem, buckets=buckets, tolerance=tolerance)
            times.append((1e3 * (time.process_time() - begin), 1e3 * (time.perf_counter() - begin_wall)))
        made = []
        for _ in range(RUNS):
            begin = time.process_time()
            list(front.points)
            made.append(1e3 * (time.process_time() - begin))
        low, middle, high = np.percentile([cpu for cpu, _ in times], [25, 50, 75]).tolist()
        fronts.append(np.array([(point.cost, point.loss) for point in front.points]))
        rows.append({"buckets": buckets, "tolerance": tolerance, "points": len(front.points), "gap": front.gap,
                     "ms_objects": median(made), "ms_median": middle, "ms_quartiles": [low, high],
                     "wall_ms_median": median(wall for _, wall in times)})
    reference = fronts[-1].max(axis=0)
    best = _volume(fronts[-1], fronts[-1])
    for row, points in zip(rows, fronts, strict=True):
        row["hypervolume"] = _volume(points, fronts[-1]) / best
        low, high = row["ms_quartiles"]
        print(f"{name}: {row['buckets']} buckets, tolerance {row['tolerance']:g}: {row['points']} points, certified "
              f"gap {row['gap']:.4%}, {row['ms_median']:.1f} ms [{low:.1f}, {high:.1f}], "
              f"objects {row['ms_objects']:.1f} ms, hypervolume {row['hypervolume']:.5f}", flush=True)
    highs = [_highs(name, problem, fronts[1], fronts[-1], share) for share in BUDGETS]
    return {"fronts": rows, "highs": highs, "nsga2": _nsga2(name, problem, fronts[-1], best),
            "reference": reference.tolist()}


def _volume(points: np.ndarray, whole: np.ndarray) -> float:
    low, high = whole.min(axis=0), whole.max(axis=0)
    inside = (points - low) / np.where(high > low, high - low, 1.0)
    return hypervolume(inside, np.ones(2))


def _highs(name: str, problem: ExactProblem, quick: np.ndarray, fine: np.ndarray, share: float) -> dict[str, float]:
    """One budget by HiGHS, and what the quick and the fine front hold within it."""
    budget = float(fine[0, 0] + share * (fine[-1, 0] - fine[0, 0]))
    cost = np.concatenate([term.table for term in problem.costs])
    loss = np.concatenate([problem.losses[unit] for unit in problem.options])
    one_each = block_diag([np.ones((1, count)) for count in problem.options.values()])
    begin = time.process_time()
    found = milp(loss, integrality=np.ones(len(loss)), bounds=Bounds(0, 1), constraints=[
        LinearConstraint(one_each, 1, 1), LinearConstraint(cost[None], -np.inf, budget),
    ], options={"mip_rel_gap": 1e-4, "time_limit": 30.0})
    milliseconds = 1e3 * (time.process_time() - begin)
    within = [float(points[points[:, 0] <= budget, 1].min()) for points in (quick, fine)]
    row = {"budget": budget, "ms": milliseconds, "loss": float(found.fun), "bound": float(found.mip_dual_bound),
           "quick_over_highs": within[0] / found.fun - 1.0, "fine_over_highs": within[1] / found.fun - 1.0}
    print(f"{name}: budget {share:.0%}: HiGHS {milliseconds:.0f} ms for one point; loss of the quick front "
          f"{row['quick_over_highs']:+.3%}, of the fine one {row['fine_over_highs']:+.3%}", flush=True)
    return row


def _nsga2(name: str, problem: ExactProblem, whole: np.ndarray, best: float) -> dict[str, float]:
    """NSGA-II on the same table, one categorical parameter per layer."""
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=optuna.samplers.NSGAIISampler(seed=0))
    tables = {term.units[0]: term.table for term in problem.costs}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        row = {unit: trial.suggest_int(unit, 0, count - 1) for unit, count in problem.options.items()}
        return (sum(float(tables[unit][option]) for unit, option in row.items()),
                sum(float(problem.losses[unit][option]) for unit, option in row.items()))

    begin = time.process_time()
    study.optimize(objective, n_trials=EVALUATIONS)
    seconds = time.process_time() - begin
    share = _volume(np.array([trial.values for trial in study.best_trials]), whole) / best
    print(f"{name}: NSGA-II, {EVALUATIONS} evaluations: {seconds:.1f} s, hypervolume {share:.4f}", flush=True)
    return {"evaluations": EVALUATIONS, "seconds": seconds, "hypervolume": share}


if __name__ == "__main__":
    main()
