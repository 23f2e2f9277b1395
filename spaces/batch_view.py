"""The cost view of n policies: which kernels run where, which conversions stand between them, how long buffers live.

What `cost_view` says of one plan, with a truth value or a number per policy for every fact. Times are slots: three for
every main operator in execution order, one for each real layer that may stand in its place. Only their order matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.batch_arithmetic import BatchArithmetic
from paretopress.spaces.batch_graph import PARTS, BatchGraph, Bools, Cases
from paretopress.spaces.kernels import Family
from paretopress.spaces.layers import LayerKind

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Emission:
    """A kernel, or the kernels of one layer, that some policies have.

    Attributes:
        main: The main operator.
        where: Where it runs.
        tail: The activation that it absorbs, `""` for none.
        addition: The residual sum that a convolution absorbs, `""` for none; it runs where that stood.
        addition_tail: The activation absorbed behind that sum, `""` for none.
        chain: Whether it is the one convolution that stands for a subsampling chain.
    """

    main: str
    where: Bools
    tail: str = ""
    addition: str = ""
    addition_tail: str = ""
    chain: bool = False

    @property
    def place(self) -> str:
        """The node in whose slots it runs."""
        return self.addition or self.main


@dataclass
class BatchView:
    """Kernels, conversions and buffers of n policies.

    Attributes:
        batch: Their graphs.
        arithmetic: Where they compute in integers.
        parts: For nodes of layers how many real layers stand in their place.
    """

    batch: BatchGraph
    arithmetic: BatchArithmetic
    parts: Mapping[str, Integers]

    @cached_property
    def merged(self) -> dict[str, Cases]:
        """Float convolutions with the residual sums behind them that they absorb, and where they do."""
        batch, mains = self.batch, self.batch.wiring.mains
        taken: dict[str, Bools] = {}
        found: dict[str, Cases] = {}
        for main, kernel in mains.items():
            layer = kernel.layer
            if layer is None or not layer.window or layer.kind is LayerKind.TRANSPOSED:
                continue
            plain = batch.kernels[main] & ~self.arithmetic.layers.get(main, batch.nowhere)
            plain = plain & ~batch.any(where for _, where in batch.absorbed.get(main, ()))
            cases = []
            for reader, where in batch.only_reader(batch.head(main)):
                if reader not in mains or mains[reader].family is not Family.ADD:
                    continue
                merges = where & plain & batch.kernels[reader] & ~self._integer(reader)
                if reader in taken:
                    merges = merges & ~taken[reader]
                if merges.any():
                    taken[reader] = taken.get(reader, batch.nowhere) | merges
                    cases.append((reader, merges))
            if cases:
                found[main] = cases
        return found

    def _integer(self, name: str) -> Bools:
        return self.arithmetic.integer.get(name, self.batch.nowhere)

    @cached_property
    def chains(self) -> dict[str, tuple[str, Bools]]:
        """For nodes of subsampling chains the last one, and where the chain is one integer convolution."""
        found = {}
        for chain in self.batch.wiring.structure.subsamplings:
            where = self.batch.everywhere
            for name in chain.nodes:
                where = where & self._integer(name)
            if where.any():
                found.update(dict.fromkeys(chain.nodes, (chain.output, where)))
        return found

    @cached_property
    def rectified(self) -> dict[str, Bools]:
        """ReLUs of floats that only integer kernels read, with where quantising does what they do."""
        batch, by_name = self.batch, self.batch.wiring.graph.by_name
        found: dict[str, Bools] = {}
        for node in reversed(batch.wiring.values):
            if node.short_op != "relu":
                continue
            readers = [(name, where) for name, where in batch.readers[node.name]
                       if by_name[name].short_op != "sym_size"]
            every, count, one = batch.everywhere, np.zeros(batch.count, dtype=np.int64), batch.nowhere
            for name, where in readers:
                every = every & (~where | self._integer(name))
                one = one | (where & found.get(name, batch.nowhere))
                count += where
            quantised = self.arithmetic.sources.get(node.name, batch.nowhere)
            result = np.where(quantised, every, one & (count == 1))
            if result.any():
                found[node.name] = result
        return found

    @cached_property
    def emissions(self) -> tuple[Emission, ...]:
        """All kernels that any of the policies has."""
        return tuple(one for one in self._emissions() if one.where.any())

    def _emissions(self) -> Iterator[Emission]:
        batch = self.batch
        absorbed_sums: dict[str, Bools] = {}
        for cases in self.merged.values():
            for addition, where in cases:
                absorbed_sums[addition] = absorbed_sums.get(addition, batch.nowhere) | where
        for main, kernel in batch.wiring.mains.items():
            exists = batch.kernels[main]
            if main in self.chains:
                output, whole = self.chains[main]
                if output == main:
                    yield Emission(main, exists & whole, chain=True)
                exists = exists & ~whole
            if kernel.layer is None or kernel.layer.kind is LayerKind.EMBEDDING:
                exists = exists & ~self.rectified.get(main, batch.nowhere)
                exists = exists & ~absorbed_sums.get(main, batch.nowhere)
            for addition, where in self.merged.get(main, ()):
                exists = exists & ~where
                for tail, case in self._tails(addition):
                    yield Emission(main, where & case, "", addition, tail)
            for tail, case in self._tails(main):
                yield Emission(main, exists & case, tail)

    def _tails(self, main: str) -> Cases:
        head = self.batch.head(main)
        return [("" if name == head else name, where) for name, where in self.batch.outputs(main)]

    def slot(self, main: str) -> int:
        """The first slot of a main operator."""
        return self.batch.wiring.slots[main]

    @property
    def end(self) -> int:
        """The slot behind everything."""
        return PARTS * len(self.batch.wiring.mains)

    @cached_property
    def read_at(self) -> dict[str, Integers]:
        """For main operators and nodes of chains the slot at which they read."""
        batch = self.batch
        found = {main: np.full(batch.count, self.slot(main)) for main in batch.wiring.mains}
        for main, cases in self.merged.items():
            for addition, where in cases:
                found[main] = np.where(where, self.slot(addition), found[main])
                last = self.slot(addition) + self.parts[main] - 1
                found[addition] = np.where(where, last, found[addition])
        for name, (output, where) in self.chains.items():
            own = found.get(name, 0)
            found[name] = np.where(where, self.slot(output), own)
        return found

    @cached_property
    def read_last(self) -> dict[str, Integers]:
        """For every value the slot of its last reader, -1 for none, through what only renames its memory."""
        batch, by_name = self.batch, self.batch.wiring.graph.by_name
        none, end = np.full(batch.count, -1), np.full(batch.count, self.end)
        found: dict[str, Integers] = {}
        for node in reversed(batch.wiring.values):
            last = none
            for reader, where in batch.readers[node.name]:
                if by_name[reader].short_op == "sym_size":
                    continue
                at = end if by_name[reader].op == "output" else self._read_through(reader, found)
                last = np.maximum(last, at if where is batch.everywhere else np.where(where, at, -1))
            found[node.name] = last
        return found

    def _read_through(self, reader: str, found: Mapping[str, Integers]) -> Integers:
        free, rectified = self.batch.free.get(reader), self.rectified.get(reader)
        if free is self.batch.everywhere:
            return found[reader]
        at = self.read_at.get(reader, found[reader])
        for passes in (free, rectified):
            if passes is not None:
                at = np.where(passes, found[reader], at)
        return at

    def quantised(self) -> Iterator[tuple[str, Bools]]:
        """Float tensors that are quantised for integer readers, with where they are."""
        yield from ((name, where) for name, where in self.arithmetic.sources.items() if where.any())

    def dequantised(self) -> Iterator[tuple[str, Bools]]:
        """Quantised tensors that kernels in floats read, with where they do."""
        batch, arithmetic = self.batch, self.arithmetic
        for name in dict.fromkeys((*arithmetic.ranges, *arithmetic.shared)):
            floats = batch.any(
                where & ~arithmetic.with_absorber(reader, arithmetic.integer) for reader, where in batch.readers[name]
            )
            found = floats & arithmetic.is_quantised(name) & ~arithmetic.sources.get(name, batch.nowhere)
            if found.any():
                yield name, found

    def width(self, name: str) -> Integers:
        """Bytes of an element of a tensor as it is stored."""
        small = self.arithmetic.is_quantised(name) & ~self.arithmetic.sources.get(name, self.batch.nowhere)
        return np.where(small, 1, 4)
