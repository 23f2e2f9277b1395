"""Structure: everything about a dense model that decisions need, computed once from its capture."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

from paretopress.spaces.branches import Branch, find_branches, without_branches
from paretopress.spaces.choices import Choice, WeightFormat
from paretopress.spaces.coupling import Axis, ChannelGroup, Coupling, analyse_coupling
from paretopress.spaces.documents import fingerprint
from paretopress.spaces.ends import end_layers
from paretopress.spaces.errors import PolicyError, UnsupportedModelError, unknown_name
from paretopress.spaces.fusion import Fusion, fuse
from paretopress.spaces.graph import Graph, Node
from paretopress.spaces.layer_formats import why_no_format
from paretopress.spaces.layers import Holder, Layer, LayerKind, find_layers
from paretopress.spaces.shortcuts import Subsampling, find_subsamplings
from paretopress.spaces.time_limit import OutOfTime, time_limit
from paretopress.spaces.weight_layout import weight_axes

if TYPE_CHECKING:
    import torch

    from paretopress.spaces.capture import Capture

TIME_LIMIT = 60.0   # seconds that the analysis may take; it takes a hundredth of this
MAX_REMAINS = 256   # remembered combinations of dropped branches


@dataclass(frozen=True)
class Structure:
    """Graph, layers, channel groups and fusion of a dense model.

    Attributes:
        graph: The captured forward pass.
        layers: Layers in execution order.
        coupling: Channel groups and the axes of every value and parameter.
        fusion: Kernels and foldable batch normalisations.
        state: Shape and element width in bytes of every tensor in the model's state.
        aliases: State name to the first name of the same tensor.
        sizes: For every module path the attributes of the user's module that are sizes, such as `num_heads`.
        dropped: Branches that are gone from the graph: this is what is left of a dense model.
        replaced: For every residual sum and activation that went with them the node read instead.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    coupling: Coupling
    fusion: Fusion
    state: Mapping[str, tuple[tuple[int, ...], int]]
    aliases: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    dropped: tuple[Branch, ...] = ()
    replaced: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def units(self) -> dict[str, str]:
        """Every unit's name with the reason it is frozen, `""` where it is free."""
        units: dict[str, str] = {}
        for group in self.coupling.groups:
            units[f"{group.name}/channels"] = group.frozen
        for layer in self.layers:
            units[f"{layer.name}/weights"] = layer.frozen
            units[f"{layer.name}/rank"] = layer.frozen or layer.why_no_rank
            units[f"{layer.name}/sparsity"] = layer.frozen
        return units

    def weight_axes(self, layer: Layer) -> tuple[Axis, ...]:
        """The axes of a layer's weight with its outputs as rows."""
        return weight_axes(self.coupling, layer)

    def takers(self, choice: WeightFormat) -> dict[str, Choice]:
        """The format for every layer that can have it."""
        layers = (layer for layer in self.layers if not layer.frozen)
        return {f"{layer.name}/weights": choice for layer in layers if not why_no_format(layer, choice)}

    @cached_property
    def weight_views(self) -> frozenset[str]:
        """Nodes that only transpose the weight of a layer that may change: the layer's tensor replaces them."""
        return frozenset(name for layer in self.layers if not layer.frozen for name in layer.views)

    @cached_property
    def subsamplings(self) -> tuple[Subsampling, ...]:
        """Chains of data-moving operators that an integer runtime runs as one convolution."""
        return find_subsamplings(self.graph)

    @cached_property
    def ends(self) -> dict[str, str]:
        """The first and the last layers: name to `first`, `last` or `first and last`."""
        return end_layers(self.graph, self.layers)

    @cached_property
    def branches(self) -> dict[str, Branch]:
        """Residual branches that can be dropped, by the name of the group inside."""
        found = find_branches(self.graph, self.layers, self.coupling, self.fusion, self.state, self.aliases)
        return {name: branch for name, branch in found.items() if not self.units[f"{name}/channels"]}

    def without(self, groups: Collection[str]) -> Structure:
        """What is left of a dense model without the branches that these groups are the inside of."""
        if not groups:
            return self
        key = frozenset(groups)
        if key not in self._remains:
            if len(self._remains) >= MAX_REMAINS:
                self._remains.clear()
            self._remains[key] = _remains(self, tuple(self.branches[name] for name in sorted(key)))
        return self._remains[key]

    @cached_property
    def _remains(self) -> dict[frozenset[str], Structure]:
        return {}

    def __getstate__(self) -> dict[str, object]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @cached_property
    def folded_layers(self) -> frozenset[str]:
        """Names of the layers that a batch normalisation folds into."""
        return frozenset(layer.name for layer in self.fusion.folds.values())

    @cached_property
    def folded_state(self) -> frozenset[str]:
        """State names that disappear when batch normalisation is folded."""
        prefixes = set()
        for name in self.fusion.folds:
            statistics = self.graph.parameter(self.graph.by_name[name], "running_mean")
            if statistics is not None:
                prefixes.add(statistics.target.rpartition(".")[0])
        return frozenset(name for name in self.state if name.rpartition(".")[0] in prefixes)

    def layer(self, name: str) -> Layer:
        """The layer of that name. Raises `PolicyError` with the nearest names."""
        if name not in self._layers_by_name:
            raise PolicyError(unknown_name("layer", name, self._layers_by_name))
        return self._layers_by_name[name]

    @cached_property
    def _layers_by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    def group(self, name: str) -> ChannelGroup:
        """The channel group of that name."""
        return self.coupling.group(name)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the structure alone: operators, shapes and names, not the weights."""
        nodes = _lasting(self.graph)
        return fingerprint([[n.name, n.op, list(n.inputs), list(n.shape[1:]), n.target] for n in nodes])


def _lasting(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op != "constant"]


def analyse(captured: Capture, model: torch.nn.Module, *, seconds: float = TIME_LIMIT) -> Structure:
    """Compute the structure of a captured model.

    Args:
        captured: The capture.
        model: The model that was captured.
        seconds: The longest it may take.

    Raises:
        UnsupportedModelError: It took longer; the message names the operator that it was at.
    """
    try:
        with time_limit(seconds):
            return _analyse(captured, model)
    except OutOfTime as late:
        frames = [frame.f_locals for frame, _ in traceback.walk_tb(late.__traceback__)]
        nodes = [frame["node"] for frame in frames if isinstance(frame.get("node"), Node)]
        where = f"; it was at {nodes[0].name} in {nodes[0].module_path or 'the root module'}" if nodes else ""
        size = f"{len(captured.graph.nodes)} operators"
        reason = f"finding its channel groups takes longer than {seconds:g} s ({size}{where})"
    raise UnsupportedModelError(f"the model cannot be analysed: {reason}")


def _analyse(captured: Capture, model: torch.nn.Module) -> Structure:
    graph = captured.graph
    layers = find_layers(graph, dict(captured.aliases), weight_holders(model))
    tensors = model.state_dict().items()
    state = {name: (tuple(tensor.shape), tensor.element_size()) for name, tensor in tensors}
    fusion = fuse(graph, layers)
    coupling = analyse_coupling(graph, {name for name, _ in model.named_buffers() if name not in state})
    sizes = module_sizes(model)
    structure = Structure(graph, _unique(layers), coupling, fusion, state, captured.aliases, sizes)
    structure.branches  # noqa: B018 - found now, so that the limit holds for them
    return structure


def weight_holders(model: torch.nn.Module) -> dict[str, Holder]:
    """What the modules are that hold nothing but a weight and a bias, by path."""
    from torch import nn

    known = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Embedding)
    found = {}
    for path, module in model.named_modules():
        names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        if isinstance(module, known):
            found[path] = Holder.MODULE
        elif "weight" in names and names <= {"weight", "bias"} and not list(module.children()):
            found[path] = Holder.OWN
    return found


def module_sizes(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """Attributes of a model's modules that are whole numbers from 2, or a tuple of one, by the module's path."""
    return {
        path: {
            name: value if isinstance(value, int) else value[0]
            for name, value in sorted(vars(module).items())
            if not name.startswith("_") and (is_size(value) or (isinstance(value, tuple) and len(value) == 1
                                                                and is_size(value[0])))
        }
        for path, module in model.named_modules()
    }


def is_size(value: object) -> bool:
    """Whether a value could be the size of a dimension that is pruned."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _remains(structure: Structure, branches: tuple[Branch, ...]) -> Structure:
    graph, replaced = without_branches(structure.graph, branches)
    applied = (kernel.layer for kernel in structure.fusion.kernels if kernel.layer is not None)
    applied_layers = tuple(layer for layer in applied if layer.node in graph.by_name)
    gone = {name for branch in branches for name in branch.state}
    return replace(
        structure,
        graph=graph,
        layers=tuple(layer for layer in structure.layers if layer.node in graph.by_name),
        fusion=fuse(graph, applied_layers, structure.fusion.folds.keys()),
        state={name: entry for name, entry in structure.state.items() if name not in gone},
        dropped=branches,
        replaced=replaced,
    )


def _unique(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Drop the second and later uses of a shared layer: the first is frozen and speaks for all.

    Of a table that is a linear layer's weight too, as a tied head's is, the linear layer speaks.
    """
    first: dict[str, Layer] = {}
    for layer in layers:
        if first.setdefault(layer.name, layer).kind is LayerKind.EMBEDDING:
            first[layer.name] = layer
    return tuple(first.values())
