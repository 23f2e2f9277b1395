"""The delta: what becomes of the user's own modules, as plain data that is stored beside the tensors.

An artefact is rebuilt on the user's class: its factory makes the dense model, the edits make the
modules smaller, and the stored tensors fill them. Nothing here touches a module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.nn import Module

from paretopress.compressors.held import Held, held_elsewhere, held_from_plain, held_to_plain
from paretopress.compressors.resized_modules import resized_modules
from paretopress.spaces.choices import (
    Choice,
    Factorised,
    Sparse,
    WeightFormat,
    choice_from_plain,
    choice_to_plain,
    conflict,
)
from paretopress.spaces.errors import ArtifactError, PolicyError
from paretopress.spaces.factor_forms import part_shapes
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import LayerKind
from paretopress.spaces.plan import LayerPlan, Plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.stored_weights import TensorForm, input_forms, stored_forms

SCHEMA = "paretopress-delta/2"
LARGEST_INPUT = 1 << 28   # elements: such a batch is made to capture the dense model again


@dataclass(frozen=True, slots=True)
class LayerEdit:
    """A convolution or linear layer gets other tensors.

    Attributes:
        path: Path of its module.
        shape: Shape of its weight after pruning, before factorisation.
        groups: Convolution groups, 1 for linear.
        factors: The smaller layers that it becomes, None where it stays one; ranks fit the shape.
        form: Format of its weights, None for 32-bit floats.
        sparse: Which of them are stored, None for all.
        bias: Whether it has a bias.
        held: Where its tensors are and how they are laid out, None for the module of a convolution or linear layer.
    """

    path: str
    shape: tuple[int, ...]
    groups: int
    factors: Factorised | None
    form: WeightFormat | None
    sparse: Sparse | None
    bias: bool
    held: Held | None = None

    def stored(self, shape: tuple[int, ...]) -> dict[str, TensorForm]:
        """Tensors that stand in place of the float weight of a part, by suffix; nothing where it is stored itself."""
        forms = stored_forms(self.form, self.sparse, shape[0], product(shape[1:]))
        return {**forms, **input_forms(self.form, shape[1] * self.groups)}

    @property
    def parts(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """`(path, weight shape by outputs)` of each real layer: one, or `PATH.0`, `PATH.1`, ... when factorised."""
        if self.factors is None:
            return ((self.path, self.shape),)
        transposed = self.held is not None and self.held.kind is LayerKind.TRANSPOSED
        shapes = part_shapes(self.factors, self.shape, transposed=transposed)
        return tuple((f"{self.path}.{index}", shape) for index, shape in enumerate(shapes))


@dataclass(frozen=True, slots=True)
class FoldEdit:
    """A batch normalisation does nothing any more: it is folded into the layer before it.

    Attributes:
        path: Path of its module.
        channels: Channels that pass through it.
    """

    path: str
    channels: int


@dataclass(frozen=True, slots=True)
class ResizeEdit:
    """Another module loses channels: a normalisation, an embedding, an attention, a shared layer.

    Attributes:
        path: Path of the module.
        attributes: Attribute of the module to its new size, set where the module has it.
        tensors: Parameter or buffer by its name in the model's state to its new shape.
    """

    path: str
    attributes: Mapping[str, int]
    tensors: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class DropEdit:
    """A module of a dropped residual branch loses its tensors.

    Attributes:
        path: Path of its module.
        channels: Channels of the zeros that a layer's place-holder returns; 0 for a normalisation, which
            passes its input on.
    """

    path: str
    channels: int


Edit = LayerEdit | FoldEdit | ResizeEdit | DropEdit


def module_edits(plan: Plan) -> tuple[Edit, ...]:
    """Return what a plan changes about the modules of a model; nothing for the dense policy."""
    if plan.policy.is_dense:
        return ()
    return (*_layer_edits(plan), *_fold_edits(plan), *_resize_edits(plan), *_drop_edits(plan))


def _layer_edits(plan: Plan) -> Iterator[LayerEdit]:
    for layer_plan in plan.layers:
        if not layer_plan.layer.frozen and _changes(layer_plan):
            held = held_elsewhere(layer_plan.layer)
            yield LayerEdit(
                layer_plan.layer.name if held is None else held.path, layer_plan.shape, layer_plan.groups,
                layer_plan.factors, layer_plan.form, layer_plan.sparse, layer_plan.has_bias, held,
            )


def _changes(layer_plan: LayerPlan) -> bool:
    layer = layer_plan.layer
    # A new bias is a change, and so is one that was shared with another layer.
    own_bias = layer.part_tensors(1)[0][1] if layer_plan.has_bias else ""
    return (
        layer_plan.shape != layer.shape or layer_plan.factors is not None or layer_plan.is_stored_otherwise
        or layer.bias != own_bias
    )


def _fold_edits(plan: Plan) -> Iterator[FoldEdit]:
    graph = plan.structure.graph
    kept = {layer_plan.layer.name: layer_plan.shape[0] for layer_plan in plan.layers}
    for name, layer in plan.structure.fusion.folds.items():
        statistics = graph.parameter(graph.by_name[name], "running_mean")
        assert statistics is not None
        yield FoldEdit(statistics.target.rpartition(".")[0], kept[layer.name])


def _resize_edits(plan: Plan) -> Iterator[ResizeEdit]:
    for path, (attributes, tensors) in resized_modules(plan).items():
        yield ResizeEdit(path, attributes, tensors)


def _drop_edits(plan: Plan) -> Iterator[DropEdit]:
    """The branch's output must have the size of what it is added to; inside, sizes stay those of the user's code."""
    seen: set[str] = set()
    for branch in plan.structure.dropped:
        for name, shape in branch.layers.items():
            axis = (plan.structure.coupling.parameters.get(f"{name}.weight") or (None,))[0]   # plain layers only
            stays = any(plan.kept[segment.group] == 0 for segment in axis or ())
            channels = shape[0] if stays else plan.size(axis, shape[0])
            if name not in seen:
                yield DropEdit(name, channels)
        for path in branch.norms:
            if path not in seen:
                yield DropEdit(path, 0)
        seen.update((*branch.layers, *branch.norms))


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the captured model.

    Attributes:
        shape: Shape at the captured batch size.
        dtype: Such as `"float32"`.
        keyword: Name it is passed by, `""` where it is positional.
    """

    shape: tuple[int, ...]
    dtype: str
    keyword: str


@dataclass(frozen=True)
class Delta:
    """All of an artefact that is not tensors.

    Attributes:
        edits: What becomes of the modules.
        policy: The policy that was realised.
        inputs: Inputs of the captured model, in the order of the capture.
        structure: Fingerprint of the dense model's structure.
        state: Shape of every tensor of the dense model's state.
        ranges: Quantised tensors, in the order of the stored scales and zero points.
        kept: Channels kept of every pruned group.
        versions: Versions of the packages that wrote it.
        graph: Why it runs the captured graph and not the user's own code, `""` where it runs that.
        coded: Huffman-coded tensors of the file: bits of a value, and bytes when they are decoded.
        equalised: Pairs of layers that were equalised first; written where there are any.
    """

    edits: tuple[Edit, ...]
    policy: Policy
    inputs: tuple[Input, ...]
    structure: str
    state: Mapping[str, tuple[int, ...]]
    ranges: tuple[str, ...]
    kept: Mapping[str, tuple[int, ...]]
    versions: Mapping[str, str]
    graph: str = ""
    coded: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    equalised: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Return plain data; `from_plain` reads it back unchanged."""
        return {
            "schema": SCHEMA,
            "edits": [edit_to_plain(edit) for edit in self.edits],
            "policy": self.policy.to_plain(),
            "inputs": [{"shape": list(i.shape), "dtype": i.dtype, "keyword": i.keyword} for i in self.inputs],
            "structure": self.structure,
            "state": {name: list(shape) for name, shape in self.state.items()},
            "ranges": list(self.ranges),
            "kept": {name: list(channels) for name, channels in self.kept.items()},
            "versions": dict(self.versions),
            "graph": self.graph,
            "coded": {name: list(sizes) for name, sizes in self.coded.items()},
            **({"equalised": self.equalised} if self.equalised else {}),
        }

    @classmethod
    def from_plain(cls, value: object, where: str) -> Delta:
        """Read plain data written by `to_plain`.

        Raises:
            ArtifactError: A key or value is not what it must be; the message starts with `where`.
        """
        names = ("schema", "edits", "policy", "inputs", "structure", "state", "ranges", "kept", "versions")
        optional = ("equalised",) if isinstance(value, Mapping) and "equalised" in value else ()
        plain = _mapping(value, (*names, "graph", "coded", *optional), where)
        if plain["schema"] != SCHEMA:
            raise ArtifactError(f"{where}: schema {plain['schema']!r} is not supported (allowed: {SCHEMA})")
        try:
            policy = Policy.from_plain(plain["policy"], f"{where}: policy")
        except PolicyError as error:
            raise ArtifactError(str(error)) from None
        return cls(
            tuple(edit_from_plain(edit, where) for edit in _list(plain["edits"], f"{where}: edits")),
            policy,
            tuple(_input(entry, f"{where}: inputs") for entry in _list(plain["inputs"], f"{where}: inputs")),
            _text(plain["structure"], f"{where}: structure"),
            _shapes(plain["state"], f"{where}: state"),
            tuple(_text(name, f"{where}: ranges") for name in _list(plain["ranges"], f"{where}: ranges")),
            _shapes(plain["kept"], f"{where}: kept"),
            {name: _text(text, where) for name, text in _named(plain["versions"], where).items()},
            _text(plain["graph"], f"{where}: graph"),
            _coded(plain["coded"], f"{where}: coded"),
            _size(plain["equalised"], f"{where}: equalised") if optional else 0,
        )


def _coded(value: object, where: str) -> dict[str, tuple[int, int]]:
    found = {}
    for name, sizes in _shapes(value, where).items():
        if len(sizes) != 2 or not 1 <= sizes[0] <= 8:
            raise ArtifactError(f"{where}.{name}: expected the bits of a value (1 to 8) and bytes, got {list(sizes)}")
        found[name] = (sizes[0], sizes[1])
    return found


def edit_to_plain(edit: Edit) -> dict[str, Any]:
    """Return an edit as plain data for JSON."""
    match edit:
        case LayerEdit(path, shape, groups, factors, form, sparse, bias, held):
            stored = {name: None if choice is None else choice_to_plain(choice)
                      for name, choice in (("format", form), ("sparsity", sparse))}
            plain = {"shape": list(shape), "groups": groups, "rank": _factors_to_plain(factors), **stored, "bias": bias}
            return {"layer": path, **plain, **({} if held is None else {"held": held_to_plain(held)})}
        case FoldEdit(path, channels):
            return {"fold": path, "channels": channels}
        case ResizeEdit(path, attributes, tensors):
            shapes = {name: list(shape) for name, shape in tensors.items()}
            return {"resize": path, "attributes": dict(attributes), "tensors": shapes}
        case DropEdit(path, channels):
            return {"drop": path, "channels": channels}


def edit_from_plain(value: object, where: str) -> Edit:
    """Read an edit written by `edit_to_plain`.

    Raises:
        ArtifactError: A key or value is not what it must be; the message starts with `where`.
    """
    if isinstance(value, Mapping) and "fold" in value:
        plain = _mapping(value, ("fold", "channels"), where)
        return FoldEdit(_text(plain["fold"], where), _size(plain["channels"], where))
    if isinstance(value, Mapping) and "drop" in value:
        plain = _mapping(value, ("drop", "channels"), where)
        return DropEdit(_text(plain["drop"], where), _size(plain["channels"], where, lowest=0))
    if isinstance(value, Mapping) and "resize" in value:
        plain = _mapping(value, ("resize", "attributes", "tensors"), where)
        attributes = {name: _size(size, where) for name, size in _named(plain["attributes"], where).items()}
        if unknown := {name for name in attributes if not name.isidentifier() or hasattr(Module, name)}:
            raise ArtifactError(f"{where}: attribute {min(unknown)!r} is not one that edits set")
        return ResizeEdit(_text(plain["resize"], where), attributes, _shapes(plain["tensors"], where))
    held = None
    if isinstance(value, Mapping) and "held" in value:
        held = held_from_plain(value["held"], f"{where}: {value.get('layer')!r}")
        value = {name: entry for name, entry in value.items() if name != "held"}
    plain = _mapping(value, ("layer", "shape", "groups", "rank", "format", "sparsity", "bias"), where)
    form, sparse = (_choice(plain[name], f"{where}: {plain['layer']!r}: {name}") for name in ("format", "sparsity"))
    fits = isinstance(form, WeightFormat | None) and isinstance(sparse, Sparse | None) and not conflict(form, sparse)
    if not fits or not isinstance(plain["bias"], bool):
        shown = f"format {plain['format']!r}, sparsity {plain['sparsity']!r}, bias {plain['bias']!r}"
        raise ArtifactError(f"{where}: {plain['layer']!r}: {shown}")
    assert isinstance(form, WeightFormat | None)
    assert isinstance(sparse, Sparse | None)
    shape, groups = _shape(plain["shape"], where, lowest=1), _size(plain["groups"], where)
    factors = _factors(plain["rank"], shape, held, f"{where}: {plain['layer']!r}: rank")
    return LayerEdit(_text(plain["layer"], where), shape, groups, factors, form, sparse, plain["bias"], held)


def _factors_to_plain(factors: Factorised | None) -> object:
    """A number for singular values, as earlier artefacts have it; the choice itself for other kinds."""
    if factors is None:
        return None
    return factors.rank if factors.kind == "svd" else choice_to_plain(factors)


def _factors(value: object, shape: tuple[int, ...], held: Held | None, where: str) -> Factorised | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return Factorised("svd", _size(value, where))
    choice = _choice(value, where)
    if not isinstance(choice, Factorised) or not _is_possible(choice, shape, held):
        raise ArtifactError(f"{where}: {value!r:.60} of a weight of {shape}")
    return choice


def _is_possible(factors: Factorised, shape: tuple[int, ...], held: Held | None) -> bool:
    """Whether a layer can have factors of a kind that is written as a choice, all of its ranks given."""
    if factors.kind == "nmf":
        return held is None or held.kind in (LayerKind.CONV, LayerKind.LINEAR)
    plain = len(shape) == 4 and held is None
    return plain and (factors.kind == "spatial" or (factors.kind == "tucker" and factors.inner > 0))


def _choice(value: object, where: str) -> Choice | None:
    try:
        return None if value is None else choice_from_plain(value, where)
    except PolicyError as error:
        raise ArtifactError(str(error)) from None


def _input(value: object, where: str) -> Input:
    plain = _mapping(value, ("shape", "dtype", "keyword"), where)
    shape = _shape(plain["shape"], where, lowest=0)
    if math.prod(shape) > LARGEST_INPUT:
        raise ArtifactError(f"{where}: {shape} has more than {LARGEST_INPUT} elements")
    return Input(shape, _text(plain["dtype"], where), _text(plain["keyword"], where))


def _named(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{where}: expected a mapping, got {value!r:.60}")
    return value


def _mapping(value: object, keys: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or set(value) != set(keys):
        raise ArtifactError(f"{where}: expected a mapping of exactly {', '.join(keys)}, got {value!r:.60}")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArtifactError(f"{where}: expected a list, got {value!r:.60}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ArtifactError(f"{where}: expected text, got {value!r:.60}")
    return value


def _size(value: object, where: str, lowest: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value < 1 << 31:
        raise ArtifactError(f"{where}: expected a whole number from {lowest}, got {value!r:.60}")
    return value


def _shape(value: object, where: str, lowest: int) -> tuple[int, ...]:
    return tuple(_size(size, where, lowest) for size in _list(value, where))


def _shapes(value: object, where: str) -> dict[str, tuple[int, ...]]:
    return {name: _shape(shape, f"{where}.{name}", lowest=0) for name, shape in _named(value, where).items()}
