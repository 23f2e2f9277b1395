"""A graph under many policies at once: which nodes are left, who reads whom, what fuses, a truth value per policy.

What `Structure.without` and `fuse` do for one set of dropped branches, for n sets side by side. A dropped sum stands
for its shortcut, so that a reader of a value may read any of a few nodes: each such edge has a condition, an array of
shape `(n,)`. Every node and edge that no branch touches has the same condition, which is true everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.branches import passes_values, same_activation
from paretopress.spaces.fusion import (
    ACTIVATIONS,
    PADDING_CONVOLUTIONS,
    FusedKernel,
    family_of,
    is_free,
    is_residual_sum,
    may_pad,
)
from paretopress.spaces.graph import Graph, Node, Ref
from paretopress.spaces.layers import Layer
from paretopress.spaces.structure import Structure

Bools = NDArray[np.bool_]
PARTS = 3   # real layers in place of one, at most
Cases = list[tuple[str, Bools]]   # nodes, each with where it is the one; at most one of them is, per policy


@dataclass(frozen=True)
class Wiring:
    """What does not depend on the policy.

    Attributes:
        structure: Of the dense model.
        droppable: Groups whose branch some policies drop.
    """

    structure: Structure
    droppable: tuple[str, ...]

    @property
    def graph(self) -> Graph:
        """The dense graph."""
        return self.structure.graph

    @cached_property
    def values(self) -> tuple[Node, ...]:
        """Nodes that are no parameters and no constants, in execution order."""
        return tuple(node for node in self.graph.nodes if node.op not in ("parameter", "constant"))

    @cached_property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """For every node the values that it reads, once each."""
        names = {node.name for node in self.values}
        return {node.name: tuple(n for n in dict.fromkeys(node.inputs) if n in names) for node in self.values}

    @cached_property
    def activations(self) -> dict[str, tuple[str, ...]]:
        """The same without what is no tensor."""
        by_name = self.graph.by_name
        return {name: tuple(n for n in inputs if by_name[n].dtype) for name, inputs in self.sources.items()}

    @cached_property
    def branches_around(self) -> dict[str, tuple[str, ...]]:
        """For every node inside droppable branches the groups that take it along."""
        found: dict[str, list[str]] = {}
        for group in self.droppable:
            for name in self.structure.branches[group].nodes:
                found.setdefault(name, []).append(group)
        return {name: tuple(groups) for name, groups in found.items()}

    @cached_property
    def sums(self) -> dict[str, tuple[str, str]]:
        """Residual sums that may go: the group that takes them along, and the shortcut they then stand for."""
        branches = ((group, self.structure.branches[group]) for group in self.droppable)
        return {branch.sum: (group, branch.shortcut) for group, branch in branches}

    @cached_property
    def mains(self) -> dict[str, FusedKernel]:
        """Nodes that may be a kernel's main operator, with the normalisation that is folded into it."""
        applied = {kernel.main: kernel.layer for kernel in self.structure.fusion.kernels}
        taken = {view for layer in self.structure.layers if not layer.frozen for view in layer.views}
        folded = {layer.node: name for name, layer in self.structure.fusion.folds.items()}
        found = {}
        for node in self.graph.operators():
            free = is_free(self.graph, node) and node.name not in self.movable_pads
            if free or node.name in taken or node.name in folded.values():
                continue
            layer = applied.get(node.name)
            absorbed = (folded[node.name],) if layer is not None and node.name in folded else ()
            found[node.name] = FusedKernel(node.name, absorbed, family_of(self.graph, node, layer), layer)
        return found

    @cached_property
    def kinds(self) -> dict[str, str]:
        """For every activation that kernels absorb the first one of the graph that is the same function."""
        first: dict[tuple[str, str], str] = {}
        found = {}
        for node in self.values:
            if node.short_op in ACTIVATIONS and node.inputs:
                limits = sorted((key, value) for key, value in node.arguments.items() if not isinstance(value, Ref))
                found[node.name] = first.setdefault((node.op, repr(limits)), node.name)
        return found

    @cached_property
    def slots(self) -> dict[str, int]:
        """The first slot of every main operator: see `batch_view`."""
        return {main: PARTS * number for number, main in enumerate(self.mains)}

    @cached_property
    def absorbing(self) -> frozenset[str]:
        """Main operators that take a following activation along."""
        def absorbs(name: str, layer: Layer | None) -> bool:
            in_integers = layer is not None and layer.runs_in_integers
            return in_integers or is_residual_sum(self.graph, self.graph.by_name[name])

        return frozenset(name for name, kernel in self.mains.items() if absorbs(name, kernel.layer))

    @cached_property
    def movable_pads(self) -> frozenset[str]:
        """Paddings that a convolution may do instead, where it is their only reader."""
        return frozenset(node.name for node in self.graph.operators() if may_pad(node))


@dataclass
class BatchGraph:
    """The graph of n policies.

    Attributes:
        wiring: What they have in common.
        dropped: For every droppable group where its branch is dropped.
        count: How many policies there are.
    """

    wiring: Wiring
    dropped: Mapping[str, Bools]
    count: int
    alive: dict[str, Bools] = field(init=False, default_factory=dict)
    stands_for: dict[str, Cases] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.everywhere, self.nowhere = np.ones(self.count, dtype=bool), np.zeros(self.count, dtype=bool)
        self._resolve()

    def _resolve(self) -> None:
        """Find what is left and what dropped values stand for, node by node as `without_branches` does."""
        wiring = self.wiring
        rectified: dict[str, dict[str, Bools]] = {}   # by value the activations that reading it went through last
        for node in wiring.values:
            name, left = node.name, self.everywhere
            for group in wiring.branches_around.get(name, ()):
                left = left & ~self.dropped[group]
            if name in wiring.sums:
                group, shortcut = wiring.sums[name]
                dropped = self.dropped[group]
                self.stands_for[name] = [(name, ~dropped), *self._where(shortcut, dropped)]
                rectified[name] = {kind: where & dropped for kind, where in rectified.get(shortcut, {}).items()}
                left = left & ~dropped
            elif name in wiring.kinds:
                done = self._is_done_before(node, rectified)
                if done.any():
                    self.stands_for[name] = [(name, ~done), *self._where(node.inputs[0], done)]
                    left = left & ~done
                rectified[name] = {wiring.kinds[name]: self.everywhere}
            elif passes_values(node) and node.inputs:
                rectified[name] = rectified.get(node.inputs[0], {})
            self.alive[name] = left

    def _where(self, name: str, condition: Bools) -> Cases:
        cases = ((other, case & condition) for other, case in self.read_as(name))
        return [(other, case) for other, case in cases if case.any()]

    def _is_done_before(self, node: Node, rectified: Mapping[str, Mapping[str, Bools]]) -> Bools:
        """Where an activation behind a dropped sum changes nothing: what is left went through an equal one."""
        graph, source = self.wiring.graph, node.inputs[0]
        if source not in self.wiring.sums or "output" in graph.users[node.name]:
            return self.nowhere
        kind = self.wiring.kinds[node.name]
        if not same_activation(graph.by_name[kind], node):
            return self.nowhere
        return rectified.get(source, {}).get(kind, self.nowhere)

    def read_as(self, name: str) -> Cases:
        """The nodes that reading a value of the dense graph may mean."""
        return self.stands_for.get(name) or [(name, self.everywhere)]

    def at(self, values: Mapping[str, Bools], name: str) -> Bools:
        """A property of whatever reading `name` means."""
        cases = self.read_as(name)
        if len(cases) == 1:
            return values.get(cases[0][0], self.nowhere)
        return self.any(case & values[node] for node, case in cases if node in values)

    def any(self, conditions: Iterator[Bools]) -> Bools:
        """Where one of the conditions holds."""
        found = self.nowhere
        for condition in conditions:
            found = condition if found is self.nowhere else found | condition
        return found

    @cached_property
    def readers(self) -> dict[str, Cases]:
        """For every node its readers with where they read it, in execution order; here several may at once."""
        found: dict[str, dict[str, Bools]] = {node.name: {} for node in self.wiring.values}
        for node in self.wiring.values:
            alive = self.alive[node.name]
            for name in self.wiring.sources[node.name]:
                for source, case in self.read_as(name):
                    condition = alive if case is self.everywhere else case & alive
                    before = found[source].get(node.name)
                    found[source][node.name] = condition if before is None else before | condition
        return {name: list(readers.items()) for name, readers in found.items()}

    def only_reader(self, name: str) -> Cases:
        """The one node that reads a value, with where there is exactly one."""
        readers = self.readers[name]
        if len(readers) < 2:
            return readers
        count = np.zeros(self.count, dtype=np.int64)
        for _, condition in readers:
            count += condition
        single = count == 1
        return [(reader, condition & single) for reader, condition in readers]

    @cached_property
    def absorbed(self) -> dict[str, Cases]:
        """For every absorbing main operator the activations it takes along, with where it does."""
        by_name, found = self.wiring.graph.by_name, {}
        for main in self.wiring.absorbing:
            head = self.head(main)
            cases = [(reader, where & self.alive[main]) for reader, where in self.only_reader(head)
                     if by_name[reader].short_op in ACTIVATIONS]
            cases = [case for case in cases if case[1].any()]
            if cases:
                found[main] = cases
        return found

    def head(self, main: str) -> str:
        """The last node of a kernel before an activation that it may take along."""
        return self.wiring.mains[main].output

    @cached_property
    def absorbers(self) -> dict[str, Cases]:
        """For every node that kernels may absorb their main operators, with where they do."""
        found: dict[str, Cases] = {}
        for main, kernel in self.wiring.mains.items():
            for name in kernel.absorbed:
                found.setdefault(name, []).append((main, self.alive[main]))
        for main, cases in self.absorbed.items():
            for name, where in cases:
                found.setdefault(name, []).append((main, where))
        return found

    def is_absorbed(self, name: str) -> Bools:
        """Where a node is part of another one's kernel."""
        return self.any(where for _, where in self.absorbers.get(name, ()))

    @cached_property
    def free(self) -> dict[str, Bools]:
        """Where a node costs nothing, for those that may."""
        graph, found = self.wiring.graph, {}
        for node in graph.operators():
            if node.name in self.wiring.movable_pads:
                users = self.only_reader(node.name)
                found[node.name] = self.any(
                    where for name, where in users
                    if graph.by_name[name].op in PADDING_CONVOLUTIONS and graph.by_name[name].inputs[0] == node.name
                )
            elif is_free(graph, node):
                found[node.name] = self.everywhere
        return found

    @cached_property
    def kernels(self) -> dict[str, Bools]:
        """For every possible main operator where it is one."""
        found = {}
        for main in self.wiring.mains:
            taken, free = self.is_absorbed(main), self.free.get(main)
            found[main] = self.alive[main] & ~taken if free is None else self.alive[main] & ~taken & ~free
        return found

    def outputs(self, main: str) -> Cases:
        """The nodes whose value a kernel may produce."""
        cases = self.absorbed.get(main)
        if not cases:
            return [(self.head(main), self.everywhere)]
        return [(self.head(main), ~self.any(where for _, where in cases)), *cases]
