"""Coupling rules of operators that put tensors together and take them apart."""

from __future__ import annotations

from collections.abc import Sequence

from paretopress.spaces import coupling_axes
from paretopress.spaces.coupling import Axis, CouplingBuilder, where
from paretopress.spaces.coupling_groups import Segment
from paretopress.spaces.graph import Node, Ref

Axes = tuple[Axis, ...]


def _source(builder: CouplingBuilder, node: Node) -> Node:
    return builder.graph.by_name[node.inputs[0]]


def concat(builder: CouplingBuilder, node: Node) -> Axes:
    """One behind the other; a part of fixed size becomes a frozen segment."""
    sources = [builder.graph.by_name[ref.node] for ref in node.arguments["tensors"]]
    sources = [source for source in sources if source.shape != (0,)]
    dim = int(node.arguments["dim"]) % len(node.shape)
    result = _together(builder, node, sources, dim)
    parts = [builder.axes(source)[dim] for source in sources]
    if any(part is not None for part in parts):
        segments: list[Segment] = []
        for source, part in zip(sources, parts, strict=True):
            segments += part or (builder.table.new(source.shape[dim], f"{source.name} has a fixed size"),)
        result[dim] = tuple(segments)
    return tuple(result)


def _together(builder: CouplingBuilder, node: Node, sources: Sequence[Node], dim: int | None) -> list[Axis]:
    result = list(builder.axes(sources[0]))
    reason = f"{where(node)} joins it with a tensor whose size is fixed"
    for source in sources[1:]:
        for index, axis in enumerate(builder.axes(source)):
            if index != dim:
                result[index] = builder.unify(result[index], axis, reason)
    return result


def stack(builder: CouplingBuilder, node: Node) -> Axes:
    """A new dimension."""
    sources = [builder.graph.by_name[ref.node] for ref in node.arguments["tensors"]]
    result = _together(builder, node, sources, None)
    result.insert(int(node.arguments["dim"]) % len(node.shape), None)
    return tuple(result)


def pad(builder: CouplingBuilder, node: Node) -> Axes:
    """Constant channels around: groups of their own, which go where what they are added to goes.

    The channels of the source keep their places between them, so that a stage that is widened this way is
    coupled to the stage before it with an offset. Negative amounts cut channels off.
    """
    source = _source(builder, node)
    axes, amounts = list(builder.axes(source)), list(node.arguments["pad"])
    constant = node.arguments.get("mode", "constant") == "constant"
    for index in range(len(amounts) // 2):
        place = len(axes) - 1 - index
        before, after = amounts[2 * index], amounts[2 * index + 1]
        if axes[place] is None or not (before or after):
            continue
        if not constant or isinstance(before, Ref) or isinstance(after, Ref):
            builder.freeze(axes[place], f"{where(node)} pads this dimension by what is not constant")
            axes[place] = None
            continue
        start, stop = max(0, -before), source.shape[place] + min(0, after)
        left = coupling_axes.part(builder.table, axes[place], start, stop, where(node))
        head = (builder.table.new(before),) if before > 0 else ()
        tail = (builder.table.new(after),) if after > 0 else ()
        axes[place] = None if left is None else (*head, *left, *tail)
    return tuple(axes)


def take(builder: CouplingBuilder, node: Node) -> Axes:
    """`slice` and `narrow`: a run of channels, cut at the borders of segments or into new ones."""
    source = _source(builder, node)
    axes = list(builder.axes(source))
    dim = int(node.arguments["dim"]) % len(axes)
    if source.shape == node.shape or axes[dim] is None:
        return tuple(axes)
    start, step, size = node.arguments.get("start") or 0, node.arguments.get("step", 1), source.shape[dim]
    if isinstance(start, Ref) or isinstance(step, Ref) or step != 1:
        axes[dim] = _one_of_several(builder, node, axes[dim], size)
        return tuple(axes)
    start = min(max(start + size if start < 0 else start, 0), size)
    axes[dim] = coupling_axes.part(builder.table, axes[dim], start, start + node.shape[dim], where(node))
    return tuple(axes)


def _one_of_several(builder: CouplingBuilder, node: Node, axis: Axis, size: int) -> Axis:
    """A slice with a step: runs of as many channels as the step is long are pruned whole."""
    start, step = node.arguments.get("start") or 0, node.arguments.get("step", 1)
    reason = f"{where(node)} takes one entry of every {step} of this dimension"
    whole = isinstance(start, int) and isinstance(step, int) and 0 <= start < step
    if not whole or size % step or node.shape[int(node.arguments["dim"])] != size // step:
        builder.freeze(axis, reason)
        return None
    lead, trail = coupling_axes.divide(builder.table, axis, (size // step, step), where(node))
    builder.freeze(trail, reason)
    return lead


def split(builder: CouplingBuilder, node: Node) -> Axes:
    """`chunk`, `split` and `split_with_sizes`: parts of equal sizes keep the same channels where they can.

    The user's code divides what is left into equal parts again. Channels that a shuffle has interleaved are the
    exception: there every split would halve what is left to choose from, and so the captured graph gets the sizes.
    """
    source = _source(builder, node)
    axes = builder.axes(source)
    dim = int(node.arguments.get("dim") or 0) % len(axes)
    sizes = part_sizes(node, source.shape[dim])
    parts: list[Axis] = [None] * len(sizes)
    if axes[dim] is not None:
        interleaved = any(segment.inner > 1 for segment in builder.table.resolve(axes[dim] or ()))
        start = 0
        for index, size in enumerate(sizes):
            parts[index] = coupling_axes.part(builder.table, axes[dim], start, start + size, where(node))
            start += size
        for other in parts[1:] if len(set(sizes)) == 1 and not interleaved else ():
            builder.unify(parts[0], other, f"{where(node)} makes equal parts")
    builder.lists[node.name] = tuple((*axes[:dim], part, *axes[dim + 1 :]) for part in parts)
    return ()


def part_sizes(node: Node, size: int) -> list[int]:
    """Sizes of the parts that a splitting operator makes of a dimension."""
    sizes = node.arguments.get("split_sizes", node.arguments.get("split_size"))
    if isinstance(sizes, list):
        return [int(part) for part in sizes]
    if node.short_op == "chunk":
        sizes = -(-size // int(node.arguments["chunks"]))
    each = int(sizes or 1)
    return [min(each, size - start) for start in range(0, size, each)]


def unbind(builder: CouplingBuilder, node: Node) -> Axes:
    """One tensor for every entry of a dimension."""
    source = _source(builder, node)
    axes = list(builder.axes(source))
    dim = int(node.arguments.get("dim") or 0) % len(axes)
    builder.freeze(axes[dim], f"{where(node)} takes this dimension apart")
    rest = (*axes[:dim], *axes[dim + 1 :])
    builder.lists[node.name] = (rest,) * source.shape[dim]
    return ()


def getitem(builder: CouplingBuilder, node: Node) -> Axes:
    """One of several tensors."""
    several, index = builder.lists.get(node.inputs[0]) if node.inputs else None, node.arguments.get("arg1")
    if several is None or not isinstance(index, int) or not -len(several) <= index < len(several):
        return (None,) * len(node.shape)
    return several[index]


def select(builder: CouplingBuilder, node: Node) -> Axes:
    """One entry of a dimension."""
    axes = list(builder.first_axes(node))
    taken = axes.pop(int(node.arguments["dim"]))
    builder.freeze(taken, f"{where(node)} takes a constant part of this dimension")
    return tuple(axes)


def look_up(builder: CouplingBuilder, node: Node) -> Axes:
    """`index_select` and `gather`: the entries of one dimension have fixed places."""
    axes = list(builder.first_axes(node))
    dim = int(node.arguments["dim"]) % len(axes)
    builder.freeze(axes[dim], f"{where(node)} looks entries of this dimension up")
    axes[dim] = None
    if node.short_op == "gather":
        builder.freeze_all(axes, f"{where(node)} looks entries up")
    return tuple(axes)


def index(builder: CouplingBuilder, node: Node) -> Axes:
    """Indexing by tensors: indexed dimensions are replaced by those of the indices."""
    axes = builder.operand_axes(node, "self") or ()
    indices = list(node.arguments["indices"])
    places = [place for place, one in enumerate(indices) if one is not None]
    for place in places:
        builder.freeze(axes[place], f"{where(node)} looks entries of this dimension up")
    added: Axes = (None,) * (len(node.shape) - len(axes) + len(places))
    together = places == list(range(places[0], places[-1] + 1)) if places else False
    if not together:
        builder.freeze_all(axes, f"{where(node)} looks entries up")
        return (None,) * len(node.shape)
    return (*axes[: places[0]], *added, *axes[places[-1] + 1 :])


def gated(builder: CouplingBuilder, node: Node) -> Axes:
    """`glu`: one half of a dimension gates the other."""
    axes = list(builder.first_axes(node))
    dim = int(node.arguments["dim"]) % len(axes)
    half = node.shape[dim]
    first = coupling_axes.part(builder.table, axes[dim], 0, half, where(node))
    second = coupling_axes.part(builder.table, axes[dim], half, 2 * half, where(node))
    if axes[dim] is not None:
        axes[dim] = builder.unify(first, second, f"{where(node)} has halves that differ")
    return tuple(axes)


RULES = {
    **dict.fromkeys(("cat", "concat", "concatenate"), concat),
    "stack": stack,
    "pad": pad, "constant_pad_nd": pad,
    "slice": take, "narrow": take,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split"), split),
    "unbind": unbind,
    "select": select,
    "index_select": look_up, "gather": look_up, "index": index,
    "glu": gated,
}
