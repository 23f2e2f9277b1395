"""Families of choices: those that do more or less of one thing, and how much of a layer each leaves."""

from __future__ import annotations

from paretopress.spaces.choices import (
    UNSTRUCTURED,
    Binary,
    Choice,
    Clustered,
    Factorised,
    Half,
    Keep,
    Sparse,
    Weights,
)

Family = tuple[str, ...]


def kind_of(choice: Choice) -> Family:
    """The family of a choice: within one the loss follows a power law of the strength."""
    match choice:
        case Keep(ratio):
            return ("keep",) if ratio > 0.0 else ("drop",)
        case Factorised():
            return ("factorised", choice.kind)
        case Sparse(_, pattern):
            return ("sparse", pattern if pattern == UNSTRUCTURED else "n:m" if ":" in pattern else "blocks")
        case Weights():
            return ("weights", str(choice.activations), choice.scheme, str(choice.group))
        case Half(kind):
            return ("half", kind)
        case Clustered():
            return ("clustered",)
        case Binary():
            return ("binary", str(choice.activations))


def left(choice: Choice, full_rank: int) -> float:
    """How much a choice leaves, comparable between layers of any size: a share, or bits of a weight.

    Args:
        choice: The choice.
        full_rank: The smaller side of its layer's matrix.
    """
    match choice:
        case Keep(ratio):
            return ratio
        case Factorised(_, rank):
            return rank / max(1, full_rank)
        case Sparse(density):
            return density
        case Weights(bits) | Clustered(bits):
            return float(bits)
        case Half():
            return 16.0
        case Binary(bases):
            return float(bases)
