"""The cost view of a plan: the fused kernels, conversions and buffers that a device is priced on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from paretopress.spaces.arithmetic import INNER
from paretopress.spaces.factor_forms import convolved, part_layers
from paretopress.spaces.fusion import FusedKernel, convolution_pads, is_free
from paretopress.spaces.graph import Graph
from paretopress.spaces.kernels import Boundary, CostView, Family, Kernel, Lifetime, product
from paretopress.spaces.layers import LayerKind
from paretopress.spaces.plan import LayerPlan, Plan
from paretopress.spaces.shortcuts import Subsampling
from paretopress.spaces.weights_applied import source_of


def cost_view(plan: Plan) -> CostView:
    """Return what a device prices for `plan`, at batch 1.

    What layers do to their own inputs (`layer_formats.own_input`) is not priced: they count as layers in floats.
    """
    merged = merged_sums(plan)
    by_sum = {addition: main for main, addition in merged.items()}
    by_main = {fused.main: fused for fused in plan.structure.fusion.kernels}
    kernels: list[Kernel] = []
    read_at: dict[str, int] = {}   # node to the kernel that reads its inputs
    for fused in plan.structure.fusion.kernels:
        if fused.main in merged:
            continue   # a convolution that adds runs where the sum stood: its other operand is ready there
        conv = by_main[by_sum[fused.main]] if fused.main in by_sum else None
        read_at[(conv or fused).main] = len(kernels)
        kernels.extend(kernels_of(plan, conv or fused, fused if conv else None))
        read_at[fused.main] = len(kernels) - 1 if conv else read_at[fused.main]
        if fused.main in plan.subsamplings:   # its first operator reads where the convolution runs
            read_at.update(dict.fromkeys(plan.subsamplings[fused.main].nodes, len(kernels) - 1))
    weight_bytes = sum(_loaded_bytes(layer) for layer in plan.layers)
    weight_bytes += sum(k.weight_elements + 4 * k.cout for k in kernels if not k.layer and k.weight_elements)
    lifetimes = _lifetimes(plan, kernels, read_at)
    return CostView(tuple(kernels), tuple(_boundaries(plan)), tuple(lifetimes), weight_bytes)


def _loaded_bytes(layer: LayerPlan) -> int:
    """Bytes of a layer's weights in the file the runtime loads: integers stay at 8 bits there."""
    scale = 4 if layer.loaded_bits == 8 else 0   # of every row
    return sum(product(shape) * layer.loaded_bits // 8 + scale * shape[0] for _, shape in layer.parts) + (
        4 * layer.shape[0])


def merged_sums(plan: Plan) -> dict[str, str]:
    """Float convolutions that absorb the residual sum behind them: main node to the sum's main node."""
    graph = plan.structure.graph
    sums = {kernel.main: kernel for kernel in plan.structure.fusion.kernels if kernel.family is Family.ADD}
    taken: set[str] = set()
    merged: dict[str, str] = {}
    for kernel in plan.structure.fusion.kernels:
        layer = plan.by_node.get(kernel.main)
        if layer is None or layer.activation_bits == 8:
            continue
        if not layer.layer.window or layer.layer.kind is LayerKind.TRANSPOSED:
            continue
        users = graph.users[kernel.output]
        addition = sums.get(users[0]) if len(users) == 1 else None
        has_activation = any(graph.by_name[name].short_op != "batch_norm" for name in kernel.absorbed)
        if addition is None or has_activation or addition.main in taken:
            continue
        if addition.main in plan.arithmetic.integer_kernels:
            continue
        taken.add(addition.main)
        merged[kernel.main] = addition.main
    return merged


def kernels_of(plan: Plan, fused: FusedKernel, addition: FusedKernel | None) -> Iterator[Kernel]:
    """The kernels of a main operator; a convolution may absorb the `addition` behind it."""
    layer, subsampling = plan.by_node.get(fused.main), plan.subsamplings.get(fused.main)
    if subsampling is not None:
        if fused.main == subsampling.output:
            yield subsampling_kernel(plan, subsampling)
        return
    if layer is None or (fused.layer is not None and fused.layer.kind is LayerKind.EMBEDDING):
        if not _is_rectified_in_quantising(plan, fused.main):
            yield plain_kernel(plan, fused)
        return
    tail = _absorbed_names(plan.structure.graph, fused)
    output, extra = fused.output, 0
    if addition is not None:
        tail = (*tail, "add", *_absorbed_names(plan.structure.graph, addition))
        output = addition.output
        extra = product(plan.shape(fused.output))
    yield from layer_kernels(plan, layer, fused.main, output, tail, extra)


def _is_rectified_in_quantising(plan: Plan, name: str) -> bool:
    """Whether a node is a ReLU of floats that only integer kernels read, directly or through one more such ReLU.

    Its range begins at zero, so that quantising cuts off what is below; runtimes drop the operator.
    """
    graph, arithmetic = plan.structure.graph, plan.arithmetic
    if graph.by_name[name].short_op != "relu":
        return False
    readers = [user for user in graph.users[name] if graph.by_name[user].short_op != "sym_size"]
    if name in arithmetic.sources:
        return all(reader in arithmetic.integer_kernels for reader in readers)
    return len(readers) == 1 and _is_rectified_in_quantising(plan, readers[0])


def _absorbed_names(graph: Graph, fused: FusedKernel) -> tuple[str, ...]:
    names = (graph.by_name[name].short_op for name in fused.absorbed)
    return tuple(name for name in names if name != "batch_norm")


def layer_kernels(
    plan: Plan, layer: LayerPlan, main: str, output: str, tail: tuple[str, ...], extra: int
) -> Iterator[Kernel]:
    """The kernel of each real layer; `tail` and the `extra` elements read are the last one's."""
    graph = plan.structure.graph
    source = source_of(graph.by_name[main])
    before, after = plan.shape(unpadded(graph, source)), plan.shape(main)
    is_linear = layer.layer.kind is LayerKind.LINEAR
    rows = product(after[:-1]) if is_linear else 1
    size, elements = () if is_linear else before[2:], product(before)
    # What is computed on, where the padding in front is the first convolution's: the size between is of that.
    padded = () if is_linear else plan.shape(source)[2:]
    operations = part_layers(layer.layer, layer.factors)
    for index, (operation, (_, shape)) in enumerate(zip(operations, layer.parts, strict=True)):
        last = index == len(operations) - 1
        if last:
            name, made, written = output, () if is_linear else after[2:], product(after)
        else:
            name, made = f"{layer.layer.name}{INNER[index]}", convolved(operation, padded)
            written = shape[0] * (rows if is_linear else product(made))
        yield Kernel(
            name, Family(operation.kind.value), layer.layer.name, layer.weight_bits, layer.activation_bits,
            shape[1] * layer.groups, shape[0], operation.window, operation.stride, layer.groups, size, made, rows,
            tail if last else (), elements + (extra if last else 0), written,
        )
        size = padded = made
        elements = written


def unpadded(graph: Graph, tensor: str) -> str:
    """The tensor that is really read where a convolution pads it."""
    node = graph.by_name[tensor]
    return node.inputs[0] if convolution_pads(graph, node) else tensor


def subsampling_kernel(plan: Plan, chain: Subsampling) -> Kernel:
    """The 1x1 convolution with an identity weight that an integer runtime runs instead of the chain."""
    before, after = plan.shape(chain.source), plan.shape(chain.output)
    return Kernel(
        chain.output, Family.CONV, "", 8, 8, before[1], after[1], (1, 1), chain.stride, 1,
        before[2:], after[2:], 1, (), product(before), product(after),
    )


def plain_kernel(plan: Plan, fused: FusedKernel) -> Kernel:
    """The kernel of a main operator without weights of its own."""
    graph = plan.structure.graph
    node = graph.by_name[fused.main]
    sources = [name for name in node.inputs if graph.by_name[name].op not in ("parameter", "constant")]
    shapes = [plan.shape(name) for name in sources if graph.by_name[name].dtype]
    output = plan.shape(fused.output) if graph.by_name[fused.output].dtype else (1,)
    first = shapes[0] if shapes else (1,)
    integer = fused.main in plan.arithmetic.integer_kernels
    rows, cin, cout = 1, first[1] if len(first) > 1 else 1, output[1] if len(output) > 1 else 1
    if fused.family is Family.MATMUL:
        left = plan.shape(node.inputs[0])
        rows, cin, cout = product(output[:-1]), left[-1], output[-1]
        if node.short_op == "scaled_dot_product_attention":   # scores of every key, then weighted values
            cin, cout = plan.shape(node.inputs[1])[-2], left[-1] + output[-1]
    window = tuple(node.arguments.get("kernel_size") or ()) if fused.family is Family.POOL else ()
    stride = tuple(node.arguments.get("stride") or window) if fused.family is Family.POOL else ()
    return Kernel(
        fused.output, fused.family, "", 32, 8 if integer else 32, cin, cout, window, stride, 1, first[2:],
        output[2:], rows, _absorbed_names(graph, fused), sum(map(product, shapes)), product(output),
        operator=node.short_op if fused.family is Family.ELEMENTWISE else "",
    )


def _boundaries(plan: Plan) -> Iterator[Boundary]:
    arithmetic, graph = plan.arithmetic, plan.structure.graph
    for tensor in arithmetic.sources:
        shape = plan.shape(unpadded(graph, tensor))
        yield Boundary(tensor, "quantize", product(shape), len(shape))
    absorbed = {name: kernel.main for kernel in plan.structure.fusion.kernels for name in kernel.absorbed}
    for tensor in (*arithmetic.ranges, *arithmetic.shared):
        if tensor in arithmetic.sources or tensor not in graph.by_name:
            continue
        readers = [absorbed.get(user, user) for user in graph.users[tensor]]
        if any(reader not in arithmetic.integer_kernels for reader in readers):
            shape = plan.shape(tensor)
            yield Boundary(tensor, "dequantize", product(shape), len(shape))


def _lifetimes(plan: Plan, kernels: list[Kernel], read_at: Mapping[str, int]) -> Iterator[Lifetime]:
    """Buffers from the kernel that writes them to the last one that reads them."""
    graph = plan.structure.graph
    written = {kernel.name: index for index, kernel in enumerate(kernels)}
    buffers = [node.name for node in graph.nodes if node.op == "input"] + [k.name for k in kernels]
    for name in buffers:
        first = written.get(name, -1)
        if name not in graph.by_name:   # between the parts of a factorised layer
            width = 1 if kernels[first].activation_bits == 8 else 4
            yield Lifetime(name, kernels[first].output_elements * width, first, first + 1)
            continue
        width = 1 if plan.arithmetic.is_quantised(name) and name not in plan.arithmetic.sources else 4
        readers = list(_readers(plan, name))
        last = max((len(kernels) if r == "output" else read_at[r] for r in readers), default=first)
        yield Lifetime(name, product(plan.shape(name)) * width, first, last)


def _readers(plan: Plan, name: str) -> Iterator[str]:
    """Nodes that read a buffer, also through operators that only rename its memory or that no kernel computes."""
    graph = plan.structure.graph
    for user in graph.users[name]:
        node = graph.by_name[user]
        if node.short_op == "sym_size":
            continue   # reads the shape, not the buffer
        if node.op != "output" and (is_free(graph, node) or _is_rectified_in_quantising(plan, user)):
            yield from _readers(plan, user)
        else:
            yield user
