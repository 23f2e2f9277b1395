"""Running a captured graph with any tensors: dense, candidate or finished, whole or from a prefix.

One interpreter serves calibration, candidates and the finished model, so that what the search scores
is what is stored. The graph is never changed; a run supplies the tensors and may replace how layers
are applied and how tensors are quantised.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from paretopress.spaces.capture import Capture, capture, differing_types
from paretopress.spaces.errors import UnsupportedModelError
from paretopress.spaces.graph import Graph, Node, Ref
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.structure import Structure, analyse
from paretopress.spaces.weight_layout import as_stored

Values = dict[str, Any]
Evaluate = Callable[[Node, Values], Any]


@dataclass(frozen=True)
class Program:
    """A captured model ready to run.

    Attributes:
        capture: The capture.
        structure: Its structure.
        state: The dense model's tensors by name (parameters, buffers and constants).
    """

    capture: Capture
    structure: Structure
    state: Mapping[str, Tensor]

    @property
    def graph(self) -> Graph:
        """The captured graph."""
        return self.structure.graph

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Position of the last reader of every node."""
        return {name: max((self.graph.position[user] for user in users), default=-1)
                for name, users in self.graph.users.items()}

    @cached_property
    def calls(self) -> dict[str, Callable[..., Any]]:
        """The function behind every operator node."""
        return {node.name: resolve(node.op) for node in self.graph.operators()}

    def under(self, structure: Structure) -> Program:
        """The program of what is left of the model: the structure of a plan that may drop branches."""
        if structure is self.structure or not structure.dropped:
            return self
        gone = {name for branch in structure.dropped for name in branch.state}
        return Program(self.capture, structure, {n: tensor for n, tensor in self.state.items() if n not in gone})

    def __getstate__(self) -> dict[str, Any]:
        return {"capture": self.capture, "structure": self.structure, "state": self.state}

    def flatten_inputs(self, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the model's inputs in the order of the graph's input nodes."""
        return [*args, *(kwargs[name] for name in self.capture.keywords)]

    def run(
        self,
        inputs: Sequence[Tensor],
        evaluate: Evaluate,
        *,
        cached: Mapping[str, Any] | None = None,
        skip: frozenset[str] = frozenset(),
        keep: frozenset[str] = frozenset(),
    ) -> Values:
        """Run the graph.

        Args:
            inputs: One tensor per input node.
            evaluate: Computes the value of an operator, parameter or constant node from earlier values.
            cached: Values known before the run; nodes in `skip` are taken from here when needed.
            skip: Nodes that are not computed because nothing they depend on has changed.
            keep: Nodes whose values are kept to the end (outputs always are).

        Returns:
            The values of `keep` and of the output nodes.
        """
        graph = self.graph
        values: Values = {} if cached is None else dict(cached)
        values.update(zip(graph.inputs, inputs, strict=True))
        wanted = keep | set(graph.outputs)
        for position, node in enumerate(graph.nodes):
            if node.op in ("input", "output") or node.name in skip:
                continue
            values[node.name] = evaluate(node, values)
            for name in node.inputs:
                if self.last_use[name] == position and name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def outputs(self, values: Values) -> Any:  # noqa: ANN401 - whatever the user's model returns
        """Nest the output nodes' values as the model returns them."""
        names = iter(self.graph.outputs)
        flat = [values[next(names)] if present else None for present in self.capture.outputs]
        return pytree.tree_unflatten(flat, self.capture.output_spec)

    def downstream(self, changed: Sequence[str]) -> frozenset[str]:
        """The nodes whose values depend on any of `changed`, those included."""
        reached = set(changed)
        for node in self.graph.nodes:
            if not reached.isdisjoint(node.inputs):
                reached.add(node.name)
        return frozenset(reached)


def resolve(op: str) -> Callable[..., Any]:
    """Return the function of an operator name such as `aten.conv2d.default`."""
    if op.startswith("python."):
        return getattr(operator, op.rpartition(".")[2])  # type: ignore[no-any-return]
    namespace, name, overload = op.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)  # type: ignore[no-any-return]


def call(program: Program, node: Node, values: Values, changes: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
    """Apply an operator node to earlier values, with some arguments changed."""
    arguments = node.arguments if not changes else {**node.arguments, **changes}
    filled = {name: _fill(value, values) for name, value in arguments.items()}
    if node.op.startswith("python."):
        return program.calls[node.name](*filled.values())
    if "split_sizes" in filled and "split_sizes" not in node.arguments:   # parts that were of one size no longer are
        return torch.ops.aten.split_with_sizes.default(filled["self"], filled["split_sizes"], filled["dim"])
    return program.calls[node.name](**filled)


def _fill(value: Any, values: Values) -> Any:  # noqa: ANN401
    if isinstance(value, Ref):
        return values[value.node]
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    return value


def apply_layer(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Apply a dense layer's operation with other tensors of the same meaning, the weight's rows its outputs."""
    if layer.flipped:   # the memory layout of the user's tensor, so that the product is the same bit for bit
        weight = as_stored(layer, weight, groups).t()
    return apply_operator(layer, x, operator_weight(layer, weight, groups), bias, groups)


def operator_weight(layer: Layer, weight: Tensor, groups: int) -> Tensor:
    """A weight with its outputs as rows as PyTorch's function for the layer takes it."""
    return as_stored(layer, weight, groups) if layer.kind is LayerKind.TRANSPOSED else weight


def apply_operator(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Apply a layer's operation with the weight as PyTorch's function for it takes it."""
    functional, two = torch.nn.functional, len(layer.window) == 2
    if layer.kind is LayerKind.EMBEDDING:
        return functional.embedding(x, weight)
    if not layer.window:
        return functional.linear(x, weight, bias)
    if layer.kind is LayerKind.TRANSPOSED:
        transposed = functional.conv_transpose2d if two else functional.conv_transpose1d
        more = layer.output_padding
        return transposed(x, weight, bias, layer.stride, layer.padding, more, groups, layer.dilation)
    function = functional.conv2d if two else functional.conv1d
    return function(x, weight, bias, layer.stride, layer.padding, layer.dilation, groups)


def build_program(
    model: torch.nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Tensor] | None = None,
    *,
    own_code: bool = False,
) -> Program:
    """Capture a model and check that the captured graph computes what the model computes.

    Args:
        model: The dense model; it is not changed.
        args: Positional example inputs with at least 2 samples.
        kwargs: Keyword example inputs.
        own_code: Whether groups are frozen that the user's own code does not run without, as sizes are written
            in it. Otherwise a model without them runs as it was captured.

    Raises:
        UnsupportedModelError: The model cannot be captured, cannot run on the example, or its capture gives
            other outputs.
    """
    captured = capture(model, args, kwargs)
    structure = analyse(captured, model)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in (*model.named_buffers(), *model.named_parameters()):
        state.setdefault(name, tensor.detach().clone())
    for node in structure.graph.nodes:
        if node.op == "constant":
            state.setdefault(node.target, captured.constants[node.target])
    program = Program(captured, structure, state)
    _check_same(program, model, args, kwargs or {})
    from paretopress.compressors.probe import own_code_failures, probed, with_frozen  # they run programs

    program = probed(program)
    return with_frozen(program, own_code_failures(model, program)) if own_code else program


def dense_value(program: Program, node: Node, values: Values) -> Any:  # noqa: ANN401
    """The value of a node in the unchanged dense model."""
    if node.op in ("parameter", "constant"):
        return program.state[node.target]
    return call(program, node, values)


def _check_same(
    program: Program, model: torch.nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
) -> None:
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    inputs = program.flatten_inputs(args, kwargs)
    try:
        with torch.inference_mode():
            expected = pytree.tree_leaves(model(*args, **kwargs))
            values = program.run(inputs, lambda node, known: dense_value(program, node, known))
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        raise UnsupportedModelError(_failure(model, inputs, error)) from None
    finally:
        for name, module in model.named_modules():
            module.training = training[name]
    found = pytree.tree_leaves(program.outputs(values))
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, Tensor) and not torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise UnsupportedModelError(
                "the captured graph does not compute what the model computes; "
                "does its forward depend on state or chance?"
            )


def _failure(model: torch.nn.Module, inputs: Sequence[Tensor], error: Exception) -> str:
    """One line on a model that was captured but does not run, with the types where they may be the reason."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"the model cannot run on the example: {type(error).__name__}: {reason}{differing_types(model, inputs)}"
