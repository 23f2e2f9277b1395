"""Coupling rules of operators that move, merge, divide and repeat dimensions."""

from __future__ import annotations

from paretopress.spaces import coupling_axes
from paretopress.spaces.coupling import Axis, CouplingBuilder, where
from paretopress.spaces.coupling_groups import MOST_REPEATS, Segment
from paretopress.spaces.graph import Node, Ref
from paretopress.spaces.kernels import product

Axes = tuple[Axis, ...]


def _source(builder: CouplingBuilder, node: Node) -> Node:
    return builder.graph.by_name[node.inputs[0]]


def view(builder: CouplingBuilder, node: Node) -> Axes:
    """Views, reshapes, flattening: dimensions are merged and divided in the smallest blocks that agree."""
    source = _source(builder, node)
    return reshaped(builder, node, builder.axes(source), source.shape, node.shape)


def reshaped(
    builder: CouplingBuilder, node: Node, axes: Axes, old: tuple[int, ...], new: tuple[int, ...]
) -> Axes:
    """The axes after a change of shape in row-major order."""
    result: list[Axis] = []
    asked = node.arguments.get("size", node.arguments.get("shape"))
    has_batch = not builder.is_weight(_source(builder, node))
    i = j = 0
    while i < len(old) and j < len(new):
        first, second, before, after = i, j, old[i], new[j]
        i, j = i + 1, j + 1
        while before != after:
            if before < after:
                before, i = before * old[i], i + 1
            else:
                after, j = after * new[j], j + 1
        computed = isinstance(asked, list) and len(asked) == len(new) and isinstance(asked[second], Ref)
        batch = has_batch and (first == 0 or computed)
        result += _block(builder, node, axes[first:i], old[first:i], new[second:j], batch)
    return (*result, *(None,) * (len(new) - len(result)))


def _block(
    builder: CouplingBuilder, node: Node, axes: Axes, old: tuple[int, ...], new: tuple[int, ...], batch: bool
) -> list[Axis]:
    """The axes of the dimensions `new` that a block of dimensions `old` of as many elements becomes.

    Args:
        builder: What is known.
        node: The view.
        axes: Axes of the old dimensions.
        old: Their sizes.
        new: The new sizes.
        batch: Whether the first dimension is the batch: what is merged with it repeats that often.
    """
    lead = axes[0]
    if len(old) == len(new) == 1:
        return [lead]
    if lead is not None and (outer := coupling_axes.repeats(lead)) > 1 and outer % new[0] == 0:
        left = coupling_axes.repeated(lead, outer // new[0])
        return [None, *_block(builder, node, (left, *axes[1:]), (old[0] // new[0], *old[1:]), new[1:], False)]
    if lead is None and batch and len(old) > 1 and new[0] % old[0] == 0:
        inside = _block(builder, node, axes[1:], old[1:], (new[0] // old[0], *new[1:]), False)
        return [coupling_axes.repeated(inside[0], old[0]), *inside[1:]]
    if batch and len(old) > 1:
        builder.freeze_all(axes, f"{where(node)} merges it behind the batch")
        return [None] * len(new)
    merged = coupling_axes.merge(builder.table, axes, old, where(node))
    return coupling_axes.divide(builder.table, merged, new, where(node))


def permute(builder: CouplingBuilder, node: Node) -> Axes:
    """Dimensions in another order."""
    axes = builder.first_axes(node)
    return tuple(axes[int(dim) % len(axes)] for dim in node.arguments["dims"])


def transpose(builder: CouplingBuilder, node: Node) -> Axes:
    """Two dimensions exchanged."""
    axes = list(builder.first_axes(node))
    if len(axes) < 2:
        return tuple(axes)
    first, second = int(node.arguments.get("dim0", 0)) % len(axes), int(node.arguments.get("dim1", 1)) % len(axes)
    if node.short_op in ("mT", "matrix_H"):
        first, second = len(axes) - 2, len(axes) - 1
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def movedim(builder: CouplingBuilder, node: Node) -> Axes:
    """Dimensions moved to other places."""
    axes = builder.first_axes(node)
    places = [node.arguments[name] for name in ("source", "destination")]
    source, destination = ([p] if isinstance(p, int) else list(p) for p in places)
    moved = {int(to) % len(axes): int(start) % len(axes) for start, to in zip(source, destination, strict=True)}
    rest = iter(index for index in range(len(axes)) if index not in moved.values())
    return tuple(axes[moved[place] if place in moved else next(rest)] for place in range(len(axes)))


def squeeze(builder: CouplingBuilder, node: Node) -> Axes:
    """Dimensions of length 1 removed."""
    source = _source(builder, node)
    dims = node.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    count = len(source.shape)
    places = {int(dim) % count for dim in dims} if dims is not None else set(range(count))
    dropped = {place for place in places if source.shape[place] == 1}
    return tuple(axis for index, axis in enumerate(builder.axes(source)) if index not in dropped)


def unsqueeze(builder: CouplingBuilder, node: Node) -> Axes:
    """A new dimension of length 1."""
    axes = list(builder.first_axes(node))
    axes.insert(int(node.arguments["dim"]) % (len(axes) + 1), None)
    return tuple(axes)


def expand(builder: CouplingBuilder, node: Node) -> Axes:
    """Copies along dimensions of length 1: as many as what they are joined with needs."""
    source = _source(builder, node)
    axes, lead = builder.axes(source), len(node.shape) - len(source.shape)
    asked = node.arguments.get("size") or [None] * len(node.shape)
    result: list[Axis] = []
    for place, size in enumerate(node.shape):
        if place >= lead and source.shape[place - lead] == size:
            result.append(axes[place - lead])
        elif isinstance(asked[place], Ref) or size == 1:
            result.append(None)
        else:
            copies = builder.table.new(size)
            builder.table.weaken((copies,))
            result.append((copies,))
    return tuple(result)


def repeat(builder: CouplingBuilder, node: Node) -> Axes:
    """The whole tensor several times along its dimensions."""
    source, counts = _source(builder, node), list(node.arguments.get("repeats", node.arguments.get("dims")) or [])
    axes = ((None,) * (len(node.shape) - len(source.shape)), *[(axis,) for axis in builder.axes(source)])
    flat = [axis for some in axes for axis in some]
    for place, count in enumerate(counts):
        axis = flat[place]
        if axis is None or count == 1:
            continue
        if isinstance(count, Ref) or count * len(axis) > MOST_REPEATS:
            builder.freeze(axis, f"{where(node)} repeats this dimension")
            flat[place] = None
        else:
            flat[place] = axis * int(count)
    return tuple(flat)


def repeat_interleave(builder: CouplingBuilder, node: Node) -> Axes:
    """Every entry several times in a row, as key/value heads for their query heads."""
    axes = list(builder.first_axes(node))
    count, dim = node.arguments.get("repeats"), node.arguments.get("dim")
    if not isinstance(count, int) or not isinstance(dim, int):
        builder.freeze_all(axes, f"{where(node)} repeats entries by a computed number")
        return (None,) * len(node.shape)
    axis = axes[dim]
    axes[dim] = None if axis is None else tuple(Segment(s.group, s.size, s.inner * count) for s in axis)
    return tuple(axes)


def pixel_shuffle(builder: CouplingBuilder, node: Node) -> Axes:
    """Blocks of `r * r` channels become pixels: whole blocks are pruned."""
    axes, source = builder.first_axes(node), _source(builder, node)
    factor = int(node.arguments["upscale_factor"])
    sizes = (source.shape[-3] // factor**2, factor**2)
    lead, trail = coupling_axes.divide(builder.table, axes[-3], sizes, where(node))
    builder.freeze_all((trail, *axes[-2:]), f"{where(node)} turns this dimension into pixels")
    return (*axes[:-3], lead, None, None)


def pixel_unshuffle(builder: CouplingBuilder, node: Node) -> Axes:
    """Pixels become blocks of `r * r` channels."""
    axes, factor = builder.first_axes(node), int(node.arguments["downscale_factor"])
    builder.freeze_all(axes[-2:], f"{where(node)} turns this dimension into channels")
    axis = axes[-3]
    wide = None if axis is None else tuple(Segment(s.group, s.size, s.inner * factor**2) for s in axis)
    return (*axes[:-3], wide, None, None)


def channel_shuffle(builder: CouplingBuilder, node: Node) -> Axes:
    """`(groups, rest)` exchanged inside the channel dimension."""
    axes, source = builder.first_axes(node), _source(builder, node)
    groups = int(node.arguments["groups"])
    sizes = (groups, source.shape[1] // groups)
    lead, trail = coupling_axes.divide(builder.table, axes[1], sizes, where(node))
    builder.freeze(lead, f"{where(node)} shuffles between this many groups")
    merged = coupling_axes.merge(builder.table, (trail, lead), sizes[::-1], where(node))
    return (axes[0], merged, *axes[2:])


def windows(builder: CouplingBuilder, node: Node) -> Axes:
    """`im2col` puts windows behind the channels; `unfold` cuts a dimension into windows."""
    axes = list(builder.first_axes(node))
    if node.short_op == "unfold":
        dim = int(node.arguments["dimension"]) % len(axes)
        builder.freeze(axes[dim], f"{where(node)} cuts this dimension into windows")
        axes[dim] = None
        return (*axes, None)
    builder.freeze_all(axes[2:], f"{where(node)} cuts this dimension into windows")
    window, axis = product(tuple(int(size) for size in node.arguments["kernel_size"])), axes[1]
    return (axes[0], tuple(Segment(s.group, s.size, s.inner * window) for s in axis) if axis else None, None)


RULES = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"), view),
    "permute": permute,
    **dict.fromkeys(("transpose", "t", "swapaxes", "swapdims", "mT", "numpy_T"), transpose),
    "movedim": movedim, "moveaxis": movedim,
    "squeeze": squeeze, "unsqueeze": unsqueeze,
    "expand": expand, "expand_as": expand, "broadcast_to": expand,
    "repeat": repeat, "tile": repeat, "repeat_interleave": repeat_interleave,
    "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle, "native_channel_shuffle": channel_shuffle,
    "im2col": windows, "unfold": windows,
}
