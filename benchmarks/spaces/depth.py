"""Time of capture and analysis over the depth of a model, and for every model of the zoo in its published size.

    python benchmarks/spaces/depth.py [--out FOLDER] [--skip-published]

Writes `depth.json` and, where matplotlib is installed, `depth.png`. Capture is `torch.export`; analysis is everything
this project computes from the captured graph. Straight lines of slope 1 in the double-logarithmic plot are linear time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[2] / "tests"))

from zoo import branches, language, residual
from zoo.registry import ZOO, build

from paretopress.spaces.capture import capture
from paretopress.spaces.structure import analyse

IMAGE = (torch.randn(2, 3, 32, 32),)
WORDS = (torch.randint(4, 40, (2, 9)),)

FAMILIES: dict[str, tuple[Callable[[int], nn.Module], tuple[torch.Tensor, ...], tuple[int, ...]]] = {
    "CIFAR ResNet, blocks per stage": (lambda n: residual.CifarResNet(n, 8), IMAGE, (3, 6, 12, 24, 48, 96)),
    "DenseNet, layers per block": (lambda n: branches.DenseNet(4, (n, n), 8, 7), IMAGE, (4, 8, 16, 32)),
    "GPT-2, layers": (lambda n: language.gpt2(24, n, 3, 40, 16), WORDS, (2, 4, 8, 16, 32, 64)),
    "Llama, layers": (lambda n: language.llama(32, n, 4, 2, 44, 40), WORDS, (2, 4, 8, 16, 32, 64)),
}


def timed(model: nn.Module, args: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Seconds of both steps, and what was found."""
    model = model.eval().requires_grad_(False)
    begin = time.perf_counter()
    captured = capture(model, args)
    middle = time.perf_counter()
    structure = analyse(captured, model)
    units, branches_found = structure.units, structure.branches
    end = time.perf_counter()
    return {
        "nodes": len(captured.graph.nodes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": len(structure.coupling.groups),
        "units": len(units),
        "branches": len(branches_found),
        "capture": round(middle - begin, 3),
        "analysis": round(end - middle, 3),
    }


def slope(rows: list[dict[str, Any]], key: str) -> float:
    """Exponent of the growth of a time with the number of nodes, from the deeper half of the models."""
    first, last = rows[len(rows) // 2 - 1], rows[-1]
    return math.log(last[key] / first[key]) / math.log(last["nodes"] / first["nodes"])


def plot(families: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Both times over the number of nodes, one colour per family."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for index, (name, rows) in enumerate(families.items()):
        nodes = [row["nodes"] for row in rows]
        axes.loglog(nodes, [row["analysis"] for row in rows], "o-", color=f"C{index}", label=f"{name}: analysis")
        axes.loglog(nodes, [row["capture"] for row in rows], "s--", color=f"C{index}", alpha=0.5, label="torch.export")
    axes.axhline(5.0, color="black", linewidth=0.8)
    axes.set(xlabel="nodes of the captured graph", ylabel="seconds", title="Capture and analysis over model depth")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--skip-published", action="store_true", help="leave out the models in their published sizes")
    options = parser.parse_args()
    torch.set_num_threads(2)
    timed(residual.CifarResNet(1, 8), IMAGE)  # the first capture also imports what torch.export needs
    families: dict[str, list[dict[str, Any]]] = {}
    for name, (factory, args, depths) in FAMILIES.items():
        families[name] = [{"depth": depth, **timed(factory(depth), args)} for depth in depths]
        for row in families[name]:
            seconds = f"{row['capture']:>8.2f} s {row['analysis']:>8.2f} s"
            print(f"{name:<32} {row['depth']:>4} {row['nodes']:>6} nodes {seconds}")
        exponents = ", ".join(
            f"{key} grows with nodes^{slope(families[name], key):.2f}" for key in ("capture", "analysis")
        )
        print(f"    {exponents}", flush=True)
    published: list[dict[str, Any]] = []
    for name in () if options.skip_published else ZOO:
        example = build(name, full=True)
        published.append({"model": name, **timed(example.model, example.args)})
        row = published[-1]
        total = row["capture"] + row["analysis"]
        size = f"{row['parameters'] / 1e6:>7.1f} M {row['nodes']:>6} nodes {row['groups']:>4} groups"
        late = "" if total <= 5 or row["parameters"] > 1e8 else "  MORE THAN 5 s"
        print(f"{name:<20} {size} {row['capture']:>7.2f} + {row['analysis']:>6.2f} s{late}", flush=True)
    (options.out / "depth.json").write_text(json.dumps({"families": families, "published": published}, indent=1) + "\n")
    plot(families, options.out / "depth.png")


if __name__ == "__main__":
    main()
