"""Accuracy against stored bytes of every weight format, on a CIFAR ResNet without fine-tuning.

    python benchmarks/compressors/formats.py [--model resnet20] [--seeds 1] [--out FOLDER]

All layers get one format; the first and the last one keep at least 8 bits. Every layer is solved again on its own
compressed prefix. Bytes are those of the whole artefact's tensors. Times are not measured here: only integers with
8-bit activations and narrower networks run faster on a processor, all other formats save bytes alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from methods import Subject, refitted

from paretopress.spaces.choices import Binary, Choice, Clustered, Factorised, Half, Sparse, Weights, describe
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

EIGHT = Weights(8, 32)
FAMILIES: dict[str, list[dict[str, Choice]]] = {
    "16-bit floats": [{"weights": Half("fp16")}, {"weights": Half("bf16")}],
    "integers, a scale per output": [{"weights": Weights(bits, 32)} for bits in (8, 4, 3, 2)],
    "integers with zero points": [{"weights": Weights(bits, 32, "asymmetric")} for bits in (4, 3, 2)],
    "integers, one scale": [{"weights": Weights(bits, 32, "tensor")} for bits in (8, 4)],
    "integers, scales of 32 inputs": [{"weights": Weights(bits, 32, "symmetric", 32)} for bits in (4, 3, 2)],
    "shared values": [{"weights": Clustered(bits)} for bits in (5, 4, 3, 2)],
    "signs": [{"weights": Binary(bases)} for bases in (3, 2, 1)],
    "sparse floats": [{"sparsity": Sparse(density)} for density in (0.5, 0.25, 0.1)],
    "sparse 8-bit integers": [{"sparsity": Sparse(density), "weights": EIGHT} for density in (0.5, 0.25, 0.1)],
    "2:4 with integers": [{"sparsity": Sparse(0.5, "2:4"), "weights": Weights(bits, 32)} for bits in (8, 4, 3)],
    "sparse shared values": [{"sparsity": Sparse(density), "weights": Clustered(bits)}
                             for density, bits in ((0.5, 4), (0.5, 2), (0.25, 3))],
    "low rank (SVD) with 8-bit integers": [{"rank": Factorised("svd", rank), "weights": EIGHT} for rank in (16, 12, 8)],
}


def main() -> None:
    """Print the table, write it as JSON and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subject = Subject(arguments.model)
    whole = plan(subject.program.structure, Policy()).stored_bytes
    print(f"{arguments.model}: dense {100 * subject.dense:.2f}%, {whole} bytes", flush=True)
    rows = []
    for family, members in FAMILIES.items():
        print(f"\n{family}")
        for choices in members:
            label = ", ".join(describe(choice) for choice in choices.values())
            row = subject.measured(label, "", everywhere(subject, choices), refitted("obs"), arguments.seeds, None)
            rows.append({**row, "family": family, "smaller": whole / row["bytes"]})
            print(f"  {'':30s} {row['bytes']} bytes, {whole / row['bytes']:.1f}x smaller", flush=True)
    (arguments.out / "formats.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, subject.dense, Path(__file__).parents[2] / "docs" / "pictures" / "formats.png")


def everywhere(subject: Subject, choices: dict[str, Choice]) -> Policy:
    """The same for every layer; at the ends 8 bits where it is less than that, and for those that cannot have it."""
    structure, found = subject.program.structure, dict[str, Choice]()
    for layer in structure.layers:
        for kind, choice in choices.items():
            if layer.name in structure.ends and not isinstance(choice, Half):
                found[f"{layer.name}/weights"] = EIGHT
            elif kind != "rank" or choice.rank < min(layer.sides(layer.shape)):   # type: ignore[union-attr]
                found[f"{layer.name}/{kind}"] = choice
    return Policy.of(found)


def draw(rows: list[dict[str, Any]], dense: float, path: Path) -> None:
    """Accuracy lost against how many times smaller, one line per family."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5.5))
    markers, colours = "osD^v<>PXph*", plt.get_cmap("Paired").colors
    for index, family in enumerate(FAMILIES):
        members = sorted((row for row in rows if row["family"] == family), key=lambda row: row["smaller"])
        axes.plot([row["smaller"] for row in members], [100 * (dense - row["accuracy"]) for row in members],
                  marker=markers[index % len(markers)], color=colours[index % len(colours)], label=family,
                  linewidth=1.2, markersize=5)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_xticks([2, 4, 8, 16, 32], ["2x", "4x", "8x", "16x", "32x"])
    axes.set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50], ["0", "0.5", "1", "2", "5", "10", "20", "50"])
    axes.set_ylim(-0.3, 50)
    axes.minorticks_off()
    axes.set_xlabel("stored bytes: times smaller than 32-bit floats")
    axes.set_ylabel("points of accuracy lost")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
