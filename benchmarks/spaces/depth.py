"""Time of capture and analysis over the depth of a model, and for every model of the zoo in its published size.

    python benchmarks/spaces/depth.py [--out FOLDER] [--skip-published]

Writes `depth.json` and, where matplotlib is installed, `depth.png`. Capture is `torch.export`; analysis is everything
this project computes from the captured graph. Times are of the processor on one thread, so that other programs do not
count. Straight lines of slope 1 in the double-logarithmic plot are linear time.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
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
    begin = time.process_time()
    captured = capture(model, args)
    gc.collect()   # what torch.export leaves behind belongs to its time
    middle = time.process_time()
    structure = analyse(captured, model)
    units, branches_found = structure.units, structure.branches
    end = time.process_time()
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
    from matplotlib import pyplot, ticker
    from matplotlib.lines import Line2D

    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for index, (name, rows) in enumerate(families.items()):
        nodes, colour = [row["nodes"] for row in rows], f"C{index}"
        axes.loglog(nodes, [row["capture"] for row in rows], "s--", color=colour, alpha=0.5)
        axes.loglog(nodes, [row["analysis"] for row in rows], "o-", color=colour, label=name.partition(",")[0])
    least, most = (choose(row["nodes"] for rows in families.values() for row in rows) for choose in (min, max))
    axes.loglog([least, most], [4e-3, 4e-3 * most / least], ":", color="black", linewidth=1)
    axes.axhline(5.0, color="black", linewidth=0.8)
    axes.text(least, 5.4, "5 s", fontsize=8)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set(
        xlabel="nodes of the captured graph", ylabel="seconds of one processor", title="Time over the depth of a model"
    )
    axes.grid(alpha=0.3, which="both")
    styles = [("s--", "capture: torch.export"), ("o-", "analysis: this project"), (":", "linear")]
    marks = [Line2D([], [], color="grey", marker=s[0] if s[0] in "so" else "", ls=s.lstrip("so")) for s, _ in styles]
    steps = axes.legend(marks, [text for _, text in styles], fontsize=8, loc="center left", bbox_to_anchor=(0.0, 0.52))
    axes.legend(fontsize=8, loc="lower right")
    axes.add_artist(steps)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--skip-published", action="store_true", help="leave out the models in their published sizes")
    options = parser.parse_args()
    torch.set_num_threads(1)
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
    if importlib.util.find_spec("matplotlib") is None:
        print("depth.png is not drawn: matplotlib is not installed")
    else:
        plot(families, options.out / "depth.png")


if __name__ == "__main__":
    main()
