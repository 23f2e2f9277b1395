"""Share of convolution and linear weights that can be pruned: this project against Torch-Pruning.

    python benchmarks/spaces/coverage.py [MODEL ...] [--oracle PYTHON] [--timeout 120] [--out FOLDER]

PYTHON is an interpreter of an environment with torch-pruning 1.6, torch and transformers. Each model runs there in a
process of its own with a time limit, because Torch-Pruning does not end on some. Its answers are written to
`torch_pruning.json`; `tests/zoo/torch_pruning.json` is a copy, which a test compares with, and which is read where no
PYTHON is given.

Columns: the share of the bytes of weights with at least one dimension in a group that can be pruned, and the share that
is left when every group keeps half. "claims" are all groups Torch-Pruning lists, "runs" those after which the model
still runs with outputs of the same shapes. Layers whose outputs are the model's own are ignored by both. What cannot be
pruned follows below its model, with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[2] / "tests"))

from zoo import parity
from zoo.registry import ZOO

RECORDED = Path(__file__).parents[2] / "tests" / "zoo" / "torch_pruning.json"
OUTPUT = "it reaches the model's output"


def measure(name: str, oracle: str | None, timeout: float) -> dict[str, Any]:
    """One row."""
    begin = time.monotonic()
    item = parity.subject(name)
    row: dict[str, Any] = {
        "model": name,
        "share": parity.prunable_share(item.model, item.program),
        "left at half": parity.share_at_half(item.model, item.program),
        "fixed": parity.fixed_weights(item.model, item.program),
        "seconds": round(time.monotonic() - begin, 2),
    }
    if oracle is None:
        row["oracle"] = json.loads(RECORDED.read_text())[name]
    else:
        row["oracle"] = judge(item, ask_oracle(name, outputs_of(item), oracle, timeout))
    return row


def outputs_of(item: parity.Subject) -> list[str]:
    """Modules whose channels are the model's outputs."""
    structure = item.program.structure
    modules = dict(item.model.named_modules())
    made = {
        p for g in structure.coupling.groups if OUTPUT in structure.units[f"{g.name}/channels"] for p in g.producers
    }
    return sorted(made & modules.keys())


def ask_oracle(name: str, ignored: list[str], oracle: str, timeout: float) -> dict[str, Any]:
    """What Torch-Pruning says, or how it failed."""
    script = Path(__file__).parent / "torch_pruning_groups.py"
    try:
        done = subprocess.run(
            [oracle, script, name, *ignored], check=False, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {"error": f"does not end within {timeout:g} s"}
    if done.returncode:
        return {"error": next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")[:160]}
    return json.loads(done.stdout.splitlines()[-1])


def judge(item: parity.Subject, answer: dict[str, Any]) -> dict[str, Any]:
    """Shares of the weights in the oracle's groups."""
    if "error" in answer:
        return answer
    sizes = parity.weights_of(item.model)
    total = sum(sizes.values())
    result: dict[str, Any] = {"left at half": answer["left at half"], "groups": len(answer["groups"])}
    for key, groups in (("claims", answer["groups"]), ("runs", [one for one in answer["groups"] if one[1]])):
        members = {f"{path}.weight" for paths, _ in groups for path in paths}
        result[key] = sum(size for name, size in sizes.items() if name in members) / total
    return result


def show(row: dict[str, Any]) -> str:
    """One line, and one more for every weight that cannot be pruned."""
    text = f"{row['model']:<20} {row['share']:>7.1%} {row['left at half']:>7.1%}"
    oracle = row["oracle"]
    if "error" in oracle:
        text += f"   {oracle['error']}"
    else:
        half = oracle["left at half"]
        left = "fails" if half is None else f"{half:.1%}"
        worse = "  LESS" if row["share"] < oracle["runs"] - 1e-9 else ""
        text += f" {oracle['claims']:>8.1%} {oracle['runs']:>8.1%} {left:>8}{worse}"
    return "\n".join([text, *(f"    fixed {name}: {reason}" for name, reason in row["fixed"].items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(ZOO))
    parser.add_argument("--oracle", help="interpreter with torch-pruning")
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = f"{'':<20} {'this project':>15} {'Torch-Pruning':>26}\n"
    head += f"{'model':<20} {'share':>7} {'at 1/2':>7} {'claims':>8} {'runs':>8} {'at 1/2':>8}"
    text, rows = [head], []
    print(head)
    for name in options.models:
        rows.append(measure(name, options.oracle, options.timeout))
        parity.subject.cache_clear()
        text.append(show(rows[-1]))
        print(text[-1], flush=True)
    (options.out / "coverage.txt").write_text("\n".join(text) + "\n")
    (options.out / "coverage.json").write_text(json.dumps(rows, indent=1) + "\n")
    if options.oracle is None:
        return
    recorded = {row["model"]: row["oracle"] for row in rows}
    (options.out / "torch_pruning.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
