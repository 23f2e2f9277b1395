"""Where n policies compute in 8-bit integers: `choose_arithmetic` with a truth value per policy for every fact.

The rules and their order are those of `arithmetic.py`, which explains them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from paretopress.spaces.arithmetic import can_run_in_integers, moves_data
from paretopress.spaces.batch_graph import BatchGraph, Bools
from paretopress.spaces.graph import Node
from paretopress.spaces.layers import LayerKind


@dataclass
class BatchArithmetic:
    """The integer parts of n models.

    Attributes:
        batch: Their graphs.
        layers: For nodes of layers where they compute in 8-bit integers.
        integer: For nodes where they work on integers.
        ranges: For tensors where they have a range of their own.
        shared: For tensors where they use another one's range.
        sources: For tensors where they are quantised on the way to integer readers only.
    """

    batch: BatchGraph
    layers: Mapping[str, Bools]
    integer: dict[str, Bools] = field(default_factory=dict)
    ranges: dict[str, Bools] = field(default_factory=dict)
    shared: dict[str, Bools] = field(default_factory=dict)
    sources: dict[str, Bools] = field(default_factory=dict)
    _produced: dict[str, Bools] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(where.any() for where in self.layers.values()):
            return
        self._place(self._wanted())
        self._leave_unread(self._unread())
        self._quantise_before_moving()

    def is_quantised(self, tensor: str) -> Bools:
        """Where integer readers of a tensor see it quantised."""
        return self._in(self.shared, tensor) | self._in(self.ranges, tensor)

    def _in(self, values: Mapping[str, Bools], name: str) -> Bools:
        return values.get(name, self.batch.nowhere)

    def _add(self, values: dict[str, Bools], name: str, where: Bools) -> None:
        before = values.get(name)
        values[name] = where if before is None else before | where

    def _remove(self, values: dict[str, Bools], name: str, where: Bools) -> None:
        if name in values:
            values[name] = values[name] & ~where

    def _add_sources(self, values: dict[str, Bools], name: str, where: Bools) -> None:
        """Add whatever reading `name` means."""
        for source, case in self.batch.read_as(name):
            self._add(values, source, where & case)

    def _nodes(self) -> Iterator[tuple[Node, Bools]]:
        """Nodes with where they are left and no part of another one's kernel."""
        for node in self.batch.wiring.values:
            yield node, self.batch.alive[node.name] & ~self.batch.is_absorbed(node.name)

    def _runs(self, node: Node) -> bool:
        return node.name in self.batch.kernels and can_run_in_integers(self.batch.wiring.graph, node)

    def _wanted(self) -> dict[str, Bools]:
        wanted: dict[str, Bools] = {}
        for node, left in reversed(list(self._nodes())):
            inputs = self.batch.wiring.activations[node.name]
            if node.name in self.layers:
                self._add_sources(wanted, inputs[0], left & self.layers[node.name])
            elif self._runs(node):
                is_read = self._at_output(wanted, node.name) & left & self.batch.kernels[node.name]
                for name in inputs:
                    self._add_sources(wanted, name, is_read)
            elif moves_data(node) and inputs and node.name in wanted:
                self._add_sources(wanted, inputs[0], left & wanted[node.name])
        return wanted

    def _at_output(self, values: Mapping[str, Bools], main: str) -> Bools:
        """A property of what a kernel produces."""
        cases = self.batch.outputs(main)
        return self.batch.any(where & values[name] for name, where in cases if name in values)

    def _produce(self, main: str, where: Bools) -> None:
        for name, case in self.batch.outputs(main):
            self._add(self._produced, name, where & case)
            self._add(self.ranges, name, where & case)

    def _quantise_input(self, name: str, where: Bools) -> None:
        for source, case in self.batch.read_as(name):
            fresh = where & case & ~self.is_quantised(source)
            self._add(self.ranges, source, fresh)
            self._add(self.sources, source, fresh)

    def _place(self, wanted: Mapping[str, Bools]) -> None:
        for node, left in self._nodes():
            inputs = self.batch.wiring.activations[node.name]
            if node.name in self.layers:
                integer = left & self.layers[node.name]
                self._add(self.integer, node.name, integer)
                self._quantise_input(inputs[0], integer)
                layer = self.batch.wiring.mains[node.name].layer
                linear = layer is not None and layer.kind is LayerKind.LINEAR
                self._produce(node.name, integer & self._at_output(wanted, node.name) if linear else integer)
            elif self._runs(node):
                self._place_kernel(node, inputs, left & self._at_output(wanted, node.name))
            elif moves_data(node) and inputs:
                moved = left & self.batch.at(self._produced, inputs[0])
                self._add(self.integer, node.name, moved)
                self._add(self._produced, node.name, moved)
                self._add(self.shared, node.name, moved)

    def _place_kernel(self, node: Node, inputs: tuple[str, ...], wanted: Bools) -> None:
        """A kernel without weights, where all that it reads is quantised or a model input that can be."""
        by_name, some, all_of_them = self.batch.wiring.graph.by_name, self.batch.nowhere, wanted
        for name in inputs:
            quantised = self.batch.at(self.ranges, name) | self.batch.at(self.shared, name)
            some = some | quantised
            if by_name[name].op != "input":
                all_of_them = all_of_them & quantised
        integer = all_of_them & some & self.batch.kernels[node.name]
        for name in inputs:
            if by_name[name].op == "input":
                self._quantise_input(name, integer)
        self._add(self.integer, node.name, integer)
        self._produce(node.name, integer)

    def _integer_reader(self, name: str, values: Mapping[str, Bools]) -> Iterator[tuple[Bools, Bools]]:
        """For every reader of a node that does not only ask for its size: where it reads, and where `values` has it.

        What is part of another one's kernel reads as that.
        """
        by_name = self.batch.wiring.graph.by_name
        for reader, where in self.batch.readers[name]:
            if by_name[reader].short_op != "sym_size":
                yield where, self.with_absorber(reader, values)

    def with_absorber(self, name: str, values: Mapping[str, Bools]) -> Bools:
        """A property of a node's kernel: of the one that absorbs it, else of itself."""
        own = self._in(values, name)
        for main, where in self.batch.absorbers.get(name, ()):
            own = (self._in(values, main) & where) | (own & ~where)
        return own

    def _reads_any(self, name: str, values: Mapping[str, Bools]) -> Bools:
        return self.batch.any(where & has for where, has in self._integer_reader(name, values))

    def _unread(self) -> dict[str, Bools]:
        unread: dict[str, Bools] = {}
        still = dict(self.integer)
        for node in reversed(self.batch.wiring.values):
            if node.name not in self.integer or node.name in self.layers:
                continue
            read = self.batch.nowhere
            for output, where in self._outputs(node.name):
                read = read | (where & self._reads_any(output, still))
            unread[node.name] = self.integer[node.name] & ~read
            still[node.name] = self.integer[node.name] & read
        made: dict[str, Bools] = {}
        for name in self.integer:
            for output, where in self._outputs(name):
                self._add(made, output, where & still[name])
        for node in self.batch.wiring.values:
            if node.name in unread and moves_data(node):
                back = unread[node.name] & self.batch.at(made, node.inputs[0])
                unread[node.name] = unread[node.name] & ~back
                self._add(made, node.name, back)
        return unread

    def _outputs(self, name: str) -> list[tuple[str, Bools]]:
        """What a kernel, or an operator that is none, produces."""
        if name not in self.batch.kernels:
            return [(name, self.batch.everywhere)]
        kernel = self.batch.kernels[name]
        if kernel.all():
            return self.batch.outputs(name)
        return [(name, ~kernel), *((output, where & kernel) for output, where in self.batch.outputs(name))]

    def _leave_unread(self, unread: Mapping[str, Bools]) -> None:
        dropped: dict[str, Bools] = {}
        for name, where in unread.items():
            self.integer[name] = self.integer[name] & ~where
            for output, case in self._outputs(name):
                self._add(dropped, output, where & case)
        for name, where in self.sources.items():
            alone = where & ~self._in(self._produced, name)
            self._add(dropped, name, alone & ~self._reads_any(name, self.integer))
            self.sources[name] = alone & ~dropped[name]
        for name, where in dropped.items():
            self._remove(self.ranges, name, where)
            self._remove(self.shared, name, where)

    def _quantise_before_moving(self) -> None:
        for node in reversed(self.batch.wiring.values):
            if node.name not in self.sources or not moves_data(node):
                continue
            moved = self.sources[node.name]
            for where, integer in self._integer_reader(node.name, self.integer):
                moved = moved & (~where | integer)
            if not moved.any():
                continue
            self._remove(self.sources, node.name, moved)
            self._add(self.integer, node.name, moved)
            self._remove(self.ranges, node.name, moved)
            self._add(self.shared, node.name, moved)
            self._quantise_input(self.batch.wiring.activations[node.name][0], moved)
