"""Means over all positions of an image, rewritten as the global average pooling that runtimes have kernels for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paretopress.spaces.graph import Node, Ref

POOL = ":pool"   # suffix of the pooling that a mean without kept dimensions is split into


def averages_positions(node: Node) -> bool:
    """Whether a node is the mean over height and width of a 4-d tensor, kept as 1 x 1 or not."""
    dims = node.arguments.get("dim")
    if node.short_op != "mean" or not isinstance(dims, list) or node.arguments.get("dtype") is not None:
        return False
    rank = len(node.shape) + (0 if node.arguments.get("keepdim") else len(dims))
    return rank == 4 and {int(dim) % 4 for dim in dims} == {2, 3}


def with_pooled_means(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return the nodes with `x.mean((2, 3))` as a mean that keeps its dimensions, then flattened.

    Global average pooling is that kept mean, and flattening only renames memory: the two forms of the same
    network are then priced, quantised and exported alike. The flattened node keeps the mean's name.
    """
    result: list[Node] = []
    for node in nodes:
        if not averages_positions(node) or node.arguments.get("keepdim"):
            result.append(node)
            continue
        pool = replace(
            node, name=node.name + POOL, arguments={**node.arguments, "keepdim": True}, shape=(*node.shape, 1, 1)
        )
        arguments = {"self": Ref(pool.name), "start_dim": 1, "end_dim": -1}
        flat = replace(node, op="aten.flatten.using_ints", inputs=(pool.name,), arguments=arguments)
        result += [pool, flat]
    return tuple(result)
