"""A run directory of any size, made by chance in the format that a search writes: for measuring the report.

Figures are drawn, not measured; what is real is the shape of the files: `run.yaml`, `trials.jsonl`, `sensitivity.json`,
`anatomy.json` and `front.json`, written with the code that a search uses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search import anatomy, ledger
from paretopress.search.records import TrialRecord
from paretopress.spaces.choices import Choice, Factorised, Keep, Weights, choice_to_plain, describe
from paretopress.spaces.documents import write_json, write_text, write_yaml
from paretopress.spaces.policy import DENSE, Policy

KEEPS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
RANKS = (48, 32, 16)
FORMATS = ((8, 8), (4, 8), (3, 8), (2, 8), (8, 32))
WIDTH, LATENCY, FINALISTS = 64, 40.0, 25
LAYER_BYTES = 4 * WIDTH * WIDTH * 9


def made_run(folder: Path, trials: int = 500, layers: int = 200, names: Sequence[str] = (), seed: int = 0) -> Path:
    """Write a finished run.

    Args:
        folder: The run directory; it is made.
        trials: How many trials it has.
        layers: How many layers its model has.
        names: Of the first layers; the others are numbered.
        seed: Of everything that is drawn.
    """
    draw = random.Random(seed)
    subjects = [*names, *(f"stages.{i // 20}.blocks.{i % 20}.conv" for i in range(len(names), layers))][:layers]
    options = {unit: choices for name in subjects for unit, choices in _options(name).items()}
    losses = {unit: sorted(10 ** draw.uniform(-5, -0.5) for _ in choices) for unit, choices in options.items()}
    policies = [DENSE, *(_policy(options, draw) for _ in range(trials - 1))]
    folder.mkdir(parents=True)
    write_yaml(folder / ledger.DOCUMENT, {
        "schema": ledger.SCHEMA, "seed": seed, "versions": {},
        "fingerprints": {"model": "m", "space": "s"},
        "config": {"model": "made:model", "data": "made:data",
                   "settings": {"budgets": [{"objective": "latency", "limit": "-20%"}]}},
    })
    records = [_record(number, policy, options, losses, draw) for number, policy in enumerate(policies)]
    write_text(folder / ledger.TRIALS, "".join(record.to_line() + "\n" for record in records))
    write_json(folder / "sensitivity.json", {"key": {}, "losses": {}, "estimated": [], "options": {
        unit: [{"choice": None, "loss": 0.0}] + [
            {"choice": choice_to_plain(one), "loss": loss} for one, loss in zip(choices, losses[unit], strict=True)
        ] for unit, choices in options.items()
    }})
    shown = policies[: min(FINALISTS + anatomy.MOST_TRIALS, trials)]
    write_json(folder / ledger.ANATOMY, _anatomy(subjects, options, losses, shown, draw))
    write_json(folder / "front.json", _front(folder, records[: min(FINALISTS, trials)], trials, draw))
    return folder


def _options(name: str) -> dict[str, list[Choice]]:
    return {
        f"{name}/channels": [Keep(ratio) for ratio in KEEPS],
        f"{name}/rank": [Factorised("svd", rank) for rank in RANKS],
        f"{name}/weights": [Weights(*pair) for pair in FORMATS],
    }


def _policy(options: dict[str, list[Choice]], draw: random.Random) -> Policy:
    return Policy.of({unit: draw.choice(choices) for unit, choices in options.items() if draw.random() < 0.5})


def _record(
    number: int, policy: Policy, options: dict[str, list[Choice]], losses: dict[str, list[float]], draw: random.Random
) -> TrialRecord:
    loss = sum(losses[unit][options[unit].index(choice)] for unit, choice in policy) / max(1, len(options))
    share = 1.0 - len(policy) / (1.2 * max(1, len(options)))
    if number and number % 17 == 0:
        return TrialRecord.of(number, policy, Evaluation(State.FAILED, reason="<b>not finite</b>"), 0.2)
    latency = LATENCY * share * draw.uniform(0.9, 1.1) if number else LATENCY
    values = {"accuracy": max(0.1, 0.98 - 4.0 * loss), "divergence": loss, "latency@local": latency,
              "size": LAYER_BYTES * len(options) / 3 * share}
    limits = {"latency@local -20%": latency - 0.8 * LATENCY}
    return TrialRecord.of(number, policy, Evaluation(State.COMPLETE, values, limits), draw.uniform(0.2, 0.6))


def _anatomy(
    subjects: Sequence[str], options: dict[str, list[Choice]], losses: dict[str, list[float]],
    policies: Sequence[Policy], draw: random.Random,
) -> dict[str, Any]:
    axes = {"channels": ("keep", "removed"), "rank": ("rank", "removed"), "weights": ("integers", "bits")}
    curves = [
        {"unit": unit, "family": axes[unit.rpartition("/")[2]][0], "axis": axes[unit.rpartition("/")[2]][1], "points": [
            {"text": describe(one), "choice": choice_to_plain(one), "amount": _amount(one), "loss": loss,
             "estimated": draw.random() < 0.2, "failed": False}
            for one, loss in zip(choices, losses[unit], strict=True)
        ]} for unit, choices in options.items()
    ]
    return {
        "schema": ledger.ANATOMY_SCHEMA, "metric": {"name": "accuracy", "direction": "max"},
        "objectives": {"accuracy": "max", "latency@local": "min", "size": "min"},
        "time": "latency@local", "loss": "nats",
        "layers": [{"name": name, "kind": "conv", "shape": [WIDTH, WIDTH, 3, 3], "macs": 10**6, "makes": name,
                    "reads": None, "end": None, "frozen": None} for name in subjects],
        "groups": [{"name": name, "channels": WIDTH, "frozen": None} for name in subjects],
        "dropped": [{"unit": f"{name}/rank", "choice": "rank 56", "reason": "predicted no faster than one layer"}
                    for name in subjects],
        "size_only": {}, "curves": curves,
        "policies": {policy.hash: {
            "layers": [_made(name, policy, 1.0 / len(subjects), draw) for name in subjects],
            "other_time": {"kernels": 0.02, "conversions": 0.05, "call": 0.03},
        } for policy in policies},
    }


def _amount(choice: Choice) -> float:
    if isinstance(choice, Keep):
        return 1.0 - choice.ratio
    return 1.0 - choice.rank / WIDTH if isinstance(choice, Factorised) else float(choice.bits)  # type: ignore[union-attr]


def _made(name: str, policy: Policy, share: float, draw: random.Random) -> list[Any]:
    kept, rank, form = (policy.choices.get(f"{name}/{kind}") for kind in ("channels", "rank", "weights"))
    out = round(WIDTH * kept.ratio) if isinstance(kept, Keep) else WIDTH
    return [out, WIDTH, rank.rank if isinstance(rank, Factorised) else None,
            "32-bit floats" if form is None else describe(form), None, LAYER_BYTES * out // WIDTH,
            round(0.9 * share * draw.uniform(0.5, 1.5), 4)]


def _front(folder: Path, records: Sequence[TrialRecord], trials: int, draw: random.Random) -> dict[str, Any]:
    scored = [record for record in records if record.values]
    points = [_point(number, record, scored[0], draw) for number, record in enumerate(scored)]
    return {
        "run": str(folder), "baseline": points[0], "points": points, "comparisons": points[1:3],
        "metric": {"name": "accuracy", "direction": "max"}, "seed": 0, "target": ["local"], "tiers": {"local": "T2"},
        "host": {"cpu": "drawn by chance", "runtime": "none", "threads": 1, "batch": 1}, "versions": {},
        "budgets": [{"objective": "latency", "limit": "-20%"}], "reachable": {}, "trials": {"total": trials},
        "latency_error": {"device": "local", "points": len(points), "spearman": 0.98, "median_abs_pct": 5.0},
        "proxies": {"kendall_search_holdout": 0.8, "measured": [
            {"name": "divergence", "candidates": 24, "kendall": 0.81, "spearman": 0.93, "used": True}]},
        "hypervolume": 0.7, "space_log10": 300.0, "size_only": {}, "dropped": [], "notes": [],
    }


def _point(number: int, record: TrialRecord, dense: TrialRecord, draw: random.Random) -> dict[str, Any]:
    latency = record.values["latency@local"]
    measured = latency * draw.uniform(0.93, 1.07)
    accuracy = record.values["accuracy"] - draw.uniform(-0.002, 0.004)
    drop = dense.values["accuracy"] - accuracy
    return {
        "id": number, "name": {0: "dense", 1: "uniform int8", 2: "uniform half width"}.get(number),
        "policy_hash": record.policy.hash, "policy": {unit: choice_to_plain(one) for unit, one in record.policy},
        "tier": "refit", "feasible": number % 5 != 4, "knee": number == 3,
        "why_not": "latency@local exceeds -20%" if number % 5 == 4 else "dominated by #3" if number % 3 == 2 else None,
        "predicted": {"latency@local": latency, "latency_lower@local": 0.9 * latency,
                      "latency_upper@local": 1.12 * latency, "size": record.values["size"], "macs": 1e8},
        "measured": {
            "accuracy": accuracy, "accuracy_baseline": dense.values["accuracy"], "accuracy_drop": drop,
            "accuracy_drop_interval": [drop - 0.004, drop + 0.004], "accuracy_search": record.values["accuracy"],
            "latency_ms": measured, "latency_ms_iqr": [0.98 * measured, 1.03 * measured], "device": "local",
            "latency_ms_baseline": LATENCY, "speedup": LATENCY / measured, "runs": 200, "macs": 10**8,
            "size_bytes": record.values["size"], "onnx_bytes": 1.1 * record.values["size"],
        },
    }
