"""Model cards: the README.md of an artefact, in the form that Hugging Face reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from paretopress.spaces.choices import describe
from paretopress.spaces.policy import Policy

if TYPE_CHECKING:
    from paretopress.compressors.compressed_model import CompressedModel

CARD = "README.md"
VERSIONS = ("paretopress", "torch", "onnx", "onnxruntime")
TAGS = ("model-compression", "pruning", "quantization")
MOST_UNITS = 200   # rows of the table of choices


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        name: The model's name.
        policy: What was decided per unit.
        summary: One sentence.
        values: Rows of a table: name, dense, compressed, change.
        facts: Rows of a table: name and value.
        commands: Lines of shell that check or export it again.
        metrics: Metrics by name, for the front matter.
        versions: Package versions.
    """

    name: str
    policy: Policy
    summary: str
    values: Sequence[tuple[str, str, str, str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return the card as Markdown with a YAML front matter."""
        parts = [_front_matter(self), f"# {_plain(self.name)}, compressed", "", _plain(self.summary), ""]
        if self.values:
            parts += ["## Measured", "", *_table(("", "dense", "compressed", "change"), self.values), ""]
        if self.facts:
            parts += ["## How and where", "", *_table(("", ""), self.facts), ""]
        parts += ["## Use", "", *_usage(), ""]
        if self.commands:
            parts += ["```", *(line.replace("```", "") for line in self.commands), "```", ""]
        parts += ["## What was decided", "", *_decisions(self.policy)]
        return "\n".join(parts).rstrip() + "\n"


def card_of(compressed: CompressedModel) -> str:
    """Return the card of a compressed model that was not searched for: sizes are known, nothing was measured."""
    plan = compressed.plan
    dense = sum(width * _product(shape) for shape, width in plan.structure.state.values())
    size = compressed.size_bytes
    name = type(compressed.network).__name__
    return Card(
        name, compressed.policy, f"{name} made smaller by one policy. Nothing was measured on data.",
        values=[("stored tensors", f"{dense:,} bytes", f"{size:,} bytes", f"{dense / max(1, size):.2f} x smaller")],
        facts=[("build", compressed.tier or "loaded"), ("policy", compressed.policy.hash)],
        commands=["paretopress verify FOLDER --model PKG.MOD:FUNCTION --data PKG.MOD:FUNCTION"],
        versions=installed_versions(),
    ).text()


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that an artefact depends on, as far as they are installed."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _front_matter(card: Card) -> str:
    """The metadata, as JSON values, which are YAML too: names of models are text that nobody has checked."""
    results = [{
        "task": {"type": "other"}, "dataset": {"type": "holdout", "name": "holdout set"},
        "metrics": [{"type": name, "value": value} for name, value in card.metrics.items()],
    }]
    plain: dict[str, Any] = {"library_name": "paretopress", "tags": list(TAGS)}
    if card.metrics:
        plain["model-index"] = [{"name": card.name, "results": results}]
    plain["paretopress"] = {"policy_hash": card.policy.hash, "versions": dict(card.versions)}
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in plain.items()), "---", ""])


def _usage() -> list[str]:
    return [
        "```python", "import paretopress", "",
        'model = paretopress.load("FOLDER", build_the_dense_model)   # your class again, with smaller tensors', "```",
        "", "`manifest.json` has the SHA-256 of every file; a folder that was altered is refused.",
    ]


def _decisions(policy: Policy) -> list[str]:
    rows = [(unit, describe(choice)) for unit, choice in policy]
    if not rows:
        return ["Nothing: this is the dense model."]
    kinds = Counter(unit.rpartition("/")[2] for unit, _ in rows)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    more = len(rows) - MOST_UNITS
    lines = [f"{len(rows)} units ({counted}); everything else is dense.", ""]
    lines += _table(("unit", "choice"), [(unit, text) for unit, text in rows[:MOST_UNITS]])
    return lines + (["", f"{more} more are in `policy.yaml`."] if more > 0 else [])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return lines + ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows]


def _plain(text: object) -> str:
    """Text on one line that Markdown and HTML cannot mistake for their own."""
    shown = "".join(character if character.isprintable() else " " for character in str(text))
    for character in "\\`*_[]<>|":
        shown = shown.replace(character, f"\\{character}" if character not in "<>" else f"&{'lg'[character == '>']}t;")
    return shown
