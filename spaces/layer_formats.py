"""What formats of weights ask of layers: which layer can have which, and what it does to its own input."""

from __future__ import annotations

from paretopress.spaces.choices import Binary, Choice, Weights, activation_bits
from paretopress.spaces.layers import NO_INTEGER_KERNEL, Layer, LayerKind


def why_no_format(layer: Layer, form: Choice | None) -> str:
    """Why a layer cannot have a format, `""` where it can."""
    if isinstance(form, Binary) and layer.why_no_signs:
        return layer.why_no_signs
    return why_not_such_activations(layer, form)


def why_not_such_activations(layer: Layer, form: Choice | None) -> str:
    """Why a layer whose weights can be stored so cannot compute on the activations of a format, `""` where it can.

    With 32-bit activations it can have the format.
    """
    dynamic = isinstance(form, Weights) and form.is_dynamic
    if (dynamic or activation_bits(form) == 8) and not layer.runs_in_integers:
        return NO_INTEGER_KERNEL.format(kind=layer.kind)
    if isinstance(form, Weights) and form.grid_bits and layer.kind is LayerKind.EMBEDDING:
        return "what an embedding reads are places in its table, no activations that could be rounded"
    return ""


def in_floats(form: Weights | Binary) -> Weights | Binary:
    """The same weights, computed with in floats on an input that is read as it is."""
    if isinstance(form, Binary):
        return Binary(form.bases, 32)
    return Weights(form.bits, 32, form.scheme, form.group)


def own_input(choice: Choice | None) -> str:
    """What a layer of this format does to its own input before it computes, `""` where it reads it as it is."""
    match choice:
        case Binary(_, 1):
            return "turns its input into signs"
        case Weights() if choice.is_dynamic:
            return "rounds its input to 8 bits, by its range of the moment"
        case Weights() if choice.grid_bits:
            return f"rounds its input to {choice.grid_bits} bits"
    return ""


def why_not_searched(choice: Choice | None) -> str:
    """Why no search offers a format that policies may have, `""` where one may."""
    match choice:
        case Weights() if choice.is_dynamic:
            return "what it costs to find ranges at run time is in no device profile"
        case Weights() if choice.grid_bits:
            return "no device computes in so many bits: with 32-bit activations it is as small and as fast, and nearer"
    return ""
