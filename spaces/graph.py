"""The captured model as plain data: nodes with shapes, operators, arguments and module paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to a node's value inside an argument list."""

    node: str


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the captured graph.

    Attributes:
        name: Unique name, the same for every capture of the same code.
        op: `"input"`, `"parameter"`, `"constant"`, `"output"`, or an operator such as `"aten.relu.default"`.
        inputs: Names of the nodes this one reads, in argument order (parameters among them).
        arguments: The operator's arguments by schema name, defaults filled in, tensors as `Ref`.
        shape: Shape of the value at the example batch size; `()` where it is not a single tensor.
        dtype: Such as `"float32"`; empty where the value is not a tensor.
        module_path: Path of the user's module whose forward made the node, `""` for the root.
        target: For parameters and constants: the qualified name in the model's state.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    shape: tuple[int, ...] = ()
    dtype: str = ""
    module_path: str = ""
    target: str = ""

    @property
    def short_op(self) -> str:
        """The operator's bare name, such as `"conv2d"`."""
        return self.op.split(".")[1] if self.op.startswith("aten.") else self.op

    @property
    def elements_per_sample(self) -> int:
        """Number of values for one sample (the first dimension is the batch)."""
        count = 1
        for size in self.shape[1:]:
            count *= size
        return count


@dataclass(frozen=True)
class Graph:
    """A captured forward pass in execution order.

    Attributes:
        nodes: All nodes in topological order.
        batch: The example batch size that the shapes were recorded at.
        dynamic_batch: Whether the first dimension may change.
        notes: What the capture had to give up, each a sentence.
    """

    nodes: tuple[Node, ...]
    batch: int
    dynamic_batch: bool
    notes: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def users(self) -> dict[str, tuple[str, ...]]:
        """For every node the names of the nodes that read it, in execution order, once each."""
        users: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                users[name].append(node.name)
        return {name: tuple(readers) for name, readers in users.items()}

    @cached_property
    def position(self) -> dict[str, int]:
        """Index of every node in execution order."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's input nodes."""
        return tuple(node.name for node in self.nodes if node.op == "input")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the nodes whose values the model returns."""
        return next(node.inputs for node in self.nodes if node.op == "output")

    def operators(self) -> Iterator[Node]:
        """The nodes that compute something, in execution order."""
        return (node for node in self.nodes if node.op not in ("input", "parameter", "constant", "output"))

    def parameter(self, node: Node, argument: str) -> Node | None:
        """The parameter node behind a tensor argument of `node`, or None where it is something else."""
        ref = node.arguments.get(argument)
        if not isinstance(ref, Ref):
            return None
        source = self.by_name[ref.node]
        return source if source.op == "parameter" else None
