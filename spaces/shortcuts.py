"""Subsampling shortcuts: strided slices and a zero padding of channels that are one convolution.

The parameter-free shortcut of CIFAR ResNets (option A of He et al., "Deep Residual Learning for Image
Recognition", CVPR 2016, section 3.3) takes every second pixel and adds channels of zeros. Integer
runtimes keep images channels-last: there a 1x1 convolution with an identity weight of exactly 1.0 does
the same in one kernel, while slices and paddings pay a change of layout each.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from paretopress.spaces.graph import Graph, Node

PADDINGS = ("pad", "constant_pad_nd")


@dataclass(frozen=True, slots=True)
class Subsampling:
    """A chain of operators on a 4-d tensor that equals a 1x1 convolution with an identity weight.

    Attributes:
        nodes: The operators in order; nothing else reads the values in between.
        source: The node whose value the first one reads.
        stride: Step per spatial dimension, `(height, width)`.
        before: Channels of zeros before the source's channels, in the dense model.
        after: Channels of zeros behind them.
    """

    nodes: tuple[str, ...]
    source: str
    stride: tuple[int, int]
    before: int
    after: int

    @property
    def output(self) -> str:
        """The node whose value the chain produces."""
        return self.nodes[-1]


def find_subsamplings(graph: Graph) -> tuple[Subsampling, ...]:
    """Return the chains of a graph, each as long as it can be, in execution order."""
    found: list[Subsampling] = []
    taken: set[str] = set()
    for node in graph.operators():
        if node.name not in taken and (_changes(graph, node) or _pads_channels(node)):
            chain = _chain(graph, node)
            taken.update(link.name for link in chain)
            found.append(_subsampling(chain))
    return tuple(found)


def _chain(graph: Graph, node: Node) -> list[Node]:
    chain = [node]
    while not _pads_channels(chain[-1]):
        users = graph.users[chain[-1].name]
        following = graph.by_name[users[0]] if len(users) == 1 else None
        if following is None or not (_steps(graph, following) or _pads_channels(following)):
            break
        chain.append(following)
    while _steps(graph, chain[-1]) and not _changes(graph, chain[-1]):
        chain.pop()   # a slice that takes everything costs nothing as it is
    return chain


def _subsampling(chain: list[Node]) -> Subsampling:
    stride, before, after = [1, 1], 0, 0
    for node in chain:
        if node.short_op == "slice":
            place = int(node.arguments["dim"]) % 4 - 2
            if place >= 0:
                stride[place] *= int(node.arguments["step"])
        else:
            before, after = (int(amount) for amount in node.arguments["pad"][4:6])
    names = tuple(node.name for node in chain)
    return Subsampling(names, chain[0].inputs[0], (stride[0], stride[1]), before, after)


def _steps(graph: Graph, node: Node) -> bool:
    """Whether a node takes every n-th row or column from the first to the end, or simply everything."""
    if node.short_op != "slice" or len(node.shape) != 4:
        return False
    source = graph.by_name[node.inputs[0]]
    dim, step = int(node.arguments["dim"]) % 4, int(node.arguments["step"])
    if dim == 0:   # the number of samples may change: only a slice without bounds takes them all
        end = node.arguments["end"]
        return node.arguments["start"] in (None, 0) and step == 1 and (end is None or end == sys.maxsize)
    if source.shape == node.shape:
        return True
    to_the_end = node.shape[dim] == -(-source.shape[dim] // step)
    return dim >= 2 and node.arguments["start"] in (None, 0) and to_the_end


def _changes(graph: Graph, node: Node) -> bool:
    return _steps(graph, node) and graph.by_name[node.inputs[0]].shape != node.shape


def _pads_channels(node: Node) -> bool:
    """Whether a node only adds channels of zeros to a 4-d tensor."""
    if node.short_op not in PADDINGS or len(node.shape) != 4:
        return False
    amounts = list(node.arguments["pad"])
    constant = node.arguments.get("mode", "constant") == "constant" and not node.arguments.get("value")
    channels = amounts[4:6]
    return constant and len(amounts) == 6 and not any(amounts[:4]) and min(channels) >= 0 and any(channels)
