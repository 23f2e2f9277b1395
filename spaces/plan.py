"""`plan(model, policy)`: what a policy makes of a model, before any weight is touched.

Pure: final shapes, factors, formats and bits of every layer, which tensors are quantised, what is
stored. The only source for cost, memory, realisation, ONNX and the report; tests assert that the
plan equals the realised module and its ONNX file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from paretopress.spaces.arithmetic import Arithmetic, choose_arithmetic
from paretopress.spaces.choices import (
    Binary,
    Clustered,
    Factorised,
    Half,
    Keep,
    Sparse,
    WeightFormat,
    Weights,
    activation_bits,
    conflict,
)
from paretopress.spaces.coupling import Axis, ChannelGroup, Segment
from paretopress.spaces.errors import PolicyError, unknown_name
from paretopress.spaces.factor_forms import fitted, part_shapes, why_not_factorised, why_too_large
from paretopress.spaces.kernels import product
from paretopress.spaces.layer_formats import why_no_format, why_not_such_activations
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.policy import Policy
from paretopress.spaces.shortcuts import Subsampling
from paretopress.spaces.stored_weights import input_forms, stored_size
from paretopress.spaces.structure import Structure
from paretopress.spaces.weights_applied import source_of


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        layer: The dense layer.
        shape: Shape of its weight after pruning (before factorisation).
        groups: Convolution groups after pruning.
        factors: The smaller layers in its place, None where it stays one; ranks fit the shape.
        form: Format of its weights, None for 32-bit floats.
        sparse: Which of them are stored, None for all.
        has_bias: Whether a bias is stored.
        touched: Whether anything but batch-norm folding changes it.
    """

    layer: Layer
    shape: tuple[int, ...]
    groups: int
    factors: Factorised | None
    form: WeightFormat | None
    sparse: Sparse | None
    has_bias: bool
    touched: bool

    @property
    def rank(self) -> int | None:
        """Rank of its factors, None where it stays one layer."""
        return None if self.factors is None else self.factors.rank

    @property
    def activation_bits(self) -> int:
        """8 where it computes in 8-bit integers, else 32."""
        return activation_bits(self.form)

    @property
    def grid_bits(self) -> int:
        """Bits of the grids that its real layers round their own inputs to, 0 where they do not."""
        return self.form.grid_bits if isinstance(self.form, Weights) else 0

    @property
    def weight_bits(self) -> int:
        """Width of its weights as a device sees it: what stands for floats is 32 there."""
        if isinstance(self.form, Weights):
            return self.form.bits
        return 8 if self.activation_bits == 8 else 32

    @property
    def is_stored_otherwise(self) -> bool:
        """Whether something else than its float weights is stored."""
        return self.form is not None or self.sparse is not None

    @property
    def runs_in_blocks(self) -> bool:
        """Whether runtimes have a product for it that reads 4-bit weights with scales of groups of inputs."""
        form = self.form
        in_groups = isinstance(form, Weights) and form.bits == 4 and form.group > 0
        return in_groups and self.sparse is None and self.layer.kind is LayerKind.LINEAR

    @property
    def loaded_bits(self) -> int:
        """Bits of a weight in the file that a runtime loads: integers of any width are 8 there, sparse ones dense."""
        match self.form:
            case Weights() | Binary(1) if not isinstance(self.form, Weights) or self.form.is_plain:
                return 8
            case Half("fp16") if self.sparse is None:
                return 16
            case Clustered() if self.sparse is None:
                return 8
            case Weights(_, _, _, group) if self.sparse is None:
                return 4 if self.runs_in_blocks else 32 if group else 8
            case _:
                return 32

    @property
    def parts(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """`(name, weight shape)` of each real layer: one, or `NAME.0`, `NAME.1`, ... when factorised."""
        name = self.layer.name
        if self.factors is None:
            return ((name, self.shape),)
        shapes = part_shapes(self.factors, self.shape, transposed=self.layer.kind is LayerKind.TRANSPOSED)
        return tuple((f"{name}.{index}", shape) for index, shape in enumerate(shapes))

    @property
    def stored_bytes(self) -> int:
        """Bytes of its weights, scales and bias as stored."""
        total = 4 * self.shape[0] if self.has_bias else 0
        total += sum(stored_size(self.form, self.sparse, shape) for _, shape in self.parts)
        inputs = (input_forms(self.form, shape[1] * self.groups) for _, shape in self.parts)
        return total + sum(one.size_bytes for forms in inputs for one in forms.values())


@dataclass(frozen=True)
class Plan:
    """The whole model under a policy.

    Attributes:
        structure: The dense model's structure, without the residual branches that are dropped.
        policy: The policy.
        kept: Channels kept of every group, 0 for the inside of a dropped branch.
        layers: Plans of all layers that are left, in execution order.
        arithmetic: Which kernels compute in integers and which tensors are quantised.
    """

    structure: Structure
    policy: Policy
    kept: Mapping[str, int]
    layers: tuple[LayerPlan, ...]
    arithmetic: Arithmetic

    @cached_property
    def by_node(self) -> dict[str, LayerPlan]:
        """Layer plans by the graph node that applies the layer; a shared layer has several."""
        plans = {plan.layer.name: plan for plan in self.layers}
        uses = ((k.main, k.layer.name) for k in self.structure.fusion.kernels if k.layer is not None)
        return {main: plans[name] for main, name in uses if name in plans}

    @cached_property
    def subsamplings(self) -> dict[str, Subsampling]:
        """Chains that are one integer convolution under this plan, by each of their nodes."""
        chains = self.structure.subsamplings if self.arithmetic.integer_kernels else ()
        integer = (chain for chain in chains if self.arithmetic.integer_kernels.issuperset(chain.nodes))
        return {name: chain for chain in integer for name in chain.nodes}

    @property
    def folds_normalisation(self) -> bool:
        """Whether batch normalisation is folded: always, unless nothing at all is changed."""
        return not self.policy.is_dense

    def size(self, axis: Axis, original: int) -> int:
        """Length of a dimension under this plan."""
        return original if axis is None else axis_size(axis, self.kept)

    def offset(self, axis: Axis, place: int) -> int:
        """Where the dense place `place` of a dimension is under this plan; a border between segments, or unpruned."""
        start = kept = 0
        for segment in axis or ():
            if start + segment.length > place:
                break
            start, kept = start + segment.length, kept + self.kept[segment.group] * segment.inner
        return kept + place - start

    def shape(self, node: str) -> tuple[int, ...]:
        """Shape of a node's value for one sample, the batch dimension (1, or what is merged with it) included."""
        sizes = self.structure.graph.by_name[node].shape
        axes = self.structure.coupling.values.get(node) or (None,) * len(sizes)
        if not sizes:
            return (1,)
        batch = self.structure.graph.batch   # what is merged with it, as in (n * tokens, features), is of every sample
        rows = sizes[0] // batch if sizes[0] % batch == 0 else 1
        return (max(1, rows), *(self.size(axis, size) for axis, size in zip(axes[1:], sizes[1:], strict=True)))

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of the artefact's tensors: weights, scales, zero points, biases, buffers."""
        total = sum(plan.stored_bytes for plan in self.layers) + 5 * len(self.arithmetic.ranges)
        owned = {name for plan in self.layers for name in (plan.layer.weight, plan.layer.bias) if name}
        folded = self.structure.folded_state if self.folds_normalisation else frozenset()
        for name, (shape, width) in self.structure.state.items():
            if name in owned or name in folded or self.structure.aliases.get(name, name) != name:
                continue
            axes = self.structure.coupling.parameters.get(name) or (None,) * len(shape)
            sizes = tuple(self.size(axis, size) for axis, size in zip(axes, shape, strict=True))
            total += product(sizes) * width
        return total


def axis_size(axis: tuple[Segment, ...], kept: Mapping[str, int]) -> int:
    """Length of a dimension whose groups keep that many channels."""
    return sum(kept[segment.group] * segment.inner * segment.outer for segment in axis)


def kept_channels(group: ChannelGroup, ratio: float) -> int:
    """Number of channels a keep ratio leaves: a multiple of the group's step; none only where it is 0."""
    if ratio == 0.0:
        return 0
    return max(1, round(ratio * group.size / group.step)) * group.step


def plan(structure: Structure, policy: Policy) -> Plan:
    """Work out what `policy` makes of a model.

    Raises:
        PolicyError: The policy names a unit the model lacks (with the nearest names), a frozen unit
            (with the reason), or a rank that is not below the layer's own.
    """
    check_units(structure, policy)
    kept = {group.name: group.size for group in structure.coupling.groups}
    for group in structure.coupling.groups:
        choice = policy.choices.get(f"{group.name}/channels")
        if isinstance(choice, Keep):
            kept[group.name] = kept_channels(group, choice.ratio)
    structure = structure.without([name for name, count in kept.items() if count == 0])
    layers = tuple(plan_layer(structure, policy, kept, layer) for layer in structure.layers)
    integer = frozenset(p.layer.node for p in layers if p.activation_bits == 8)
    inner = {p.layer.node: len(p.parts) - 1 for p in layers if p.factors is not None}
    return Plan(structure, policy, kept, layers, choose_arithmetic(structure, integer, inner))


def plan_layer(structure: Structure, policy: Policy, kept: Mapping[str, int], layer: Layer) -> LayerPlan:
    """What becomes of one layer when the groups keep `kept` channels."""
    axes = structure.weight_axes(layer)
    shape = tuple(
        size if axis is None else axis_size(axis, kept) for axis, size in zip(axes, layer.shape, strict=True)
    )
    groups = layer.groups
    if groups > 1:   # fewer groups, or fewer channels in each
        source = source_of(structure.graph.by_name[layer.node])
        inputs = structure.coupling.values[source][1]
        groups = (groups * layer.shape[1] if inputs is None else axis_size(inputs, kept)) // shape[1]
    choice = policy.choices.get(f"{layer.name}/rank")
    factors = fitted(choice, layer, shape) if isinstance(choice, Factorised) else None
    form, sparse = (policy.choices.get(f"{layer.name}/{kind}") for kind in ("weights", "sparsity"))
    assert form is None or isinstance(form, WeightFormat)
    assert sparse is None or isinstance(sparse, Sparse)
    touched = factors is not None or form is not None or sparse is not None or shape[1:] != layer.shape[1:]
    touched |= layer.groups > 1 and shape != layer.shape
    # Tuning corrects the mean output of every free layer behind a change, so each of them has a bias if it can.
    has_bias = bool(layer.bias) or (not policy.is_dense and not layer.frozen and layer.takes_bias)
    return LayerPlan(layer, shape, groups, factors, form, sparse, has_bias, touched)


def check_units(structure: Structure, policy: Policy) -> None:
    """Check that every unit of a policy exists in the model and is free. Raises `PolicyError`."""
    for name, choice in policy:
        if name not in structure.units:
            raise PolicyError(unknown_name("unit", name, structure.units))
        if structure.units[name]:
            raise PolicyError(f"unit {name!r} is frozen: {structure.units[name]}")
        if isinstance(choice, Keep) and choice.ratio == 0.0 and name.rpartition("/")[0] not in structure.branches:
            reason = "it is not the inside of a residual branch that nothing else needs"
            raise PolicyError(f"unit {name!r} cannot keep no channel: {reason}")
        if isinstance(choice, Factorised):
            layer = structure.layer(name.rpartition("/")[0])
            if reason := why_not_factorised(layer, choice.kind) or why_too_large(choice, layer):
                raise PolicyError(f"unit {name!r}: {reason}")
        if name.endswith(("/weights", "/sparsity")):
            layer = structure.layer(name.rpartition("/")[0])
            if reason := why_no_format(layer, choice):
                allowed = " (activations: 32)" if reason == why_not_such_activations(layer, choice) else ""
                raise PolicyError(f"unit {name!r}: {reason}{allowed}")
            others = (policy.choices.get(f"{layer.name}/{kind}") for kind in ("rank", "sparsity", "weights"))
            if reason := conflict(*others):
                raise PolicyError(f"unit {name!r}: {reason}")
