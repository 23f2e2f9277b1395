"""Where the tensors of a layer are and how they are laid out, where that is not as in PyTorch's plain layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn import Module

from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.layers import Holder, Layer, LayerKind


@dataclass(frozen=True, slots=True)
class Held:
    """Names and layout of a layer's tensors.

    Attributes:
        path: Path of the module that holds them.
        kind: The layer's kind.
        flipped: Whether the weight of a linear layer is `(in, out)`.
        holder: Whose class the module is.
        weight: The weight's name in the module.
        bias: The bias's name in the module, `""` where there is none.
    """

    path: str
    kind: LayerKind
    flipped: bool
    holder: Holder
    weight: str
    bias: str


def held_elsewhere(layer: Layer) -> Held | None:
    """What an edit must say about a layer's tensors; None for plain convolution and linear modules."""
    plain = layer.kind not in (LayerKind.TRANSPOSED, LayerKind.EMBEDDING)
    if layer.holder is Holder.MODULE and plain and not layer.flipped:
        return None
    path, _, weight = layer.weight.rpartition(".")
    return Held(path, layer.kind, layer.flipped, layer.holder, weight, layer.bias.rpartition(".")[2])


def held_to_plain(held: Held) -> dict[str, object]:
    """Return it as plain data for JSON."""
    return {
        "path": held.path, "kind": held.kind.value, "flipped": held.flipped, "holder": held.holder.value,
        "weight": held.weight, "bias": held.bias,
    }


def held_from_plain(value: object, where: str) -> Held:
    """Read what `held_to_plain` wrote.

    Raises:
        ArtifactError: A key or value is not what it must be; the message starts with `where`.
    """
    names = ("path", "kind", "flipped", "holder", "weight", "bias")
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ArtifactError(f"{where}: held: expected a mapping of exactly {', '.join(names)}, got {value!r:.60}")
    texts = [value[name] for name in names if name != "flipped"]
    if not all(isinstance(text, str) for text in texts) or not isinstance(value["flipped"], bool):
        raise ArtifactError(f"{where}: held: expected texts and a truth value, got {value!r:.60}")
    leaves = [value["weight"], *([value["bias"]] if value["bias"] else [])]
    if unknown := [leaf for leaf in leaves if not leaf.isidentifier() or hasattr(Module, leaf)]:
        raise ArtifactError(f"{where}: tensor {unknown[0]!r} is not one that edits change")
    try:
        kind, holder = LayerKind(value["kind"]), Holder(value["holder"])
    except ValueError as error:
        raise ArtifactError(f"{where}: held: {error}") from None
    return Held(value["path"], kind, value["flipped"], holder, value["weight"], value["bias"])
