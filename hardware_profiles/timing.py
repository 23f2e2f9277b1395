"""Timed networks: which kernel of a network each of the runtime's executed nodes belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.kernels_onnx import ModelBuilder
from paretopress.hardware_profiles.networks import Network
from paretopress.hardware_profiles.timing_protocol import Measurement, Node, Reference, Runtime, time_model
from paretopress.spaces.errors import ProfileError

Array = NDArray[np.float64]
_LAYOUT = ("Transpose", "ReorderInput", "ReorderOutput", "Reorder")
_CONVERSIONS = {"QuantizeLinear": "quantize", "DequantizeLinear": "dequantize"}


@dataclass(frozen=True, slots=True)
class Timed:
    """Measurements of one network, microseconds.

    Attributes:
        network: What was timed.
        wall: One call by the clock.
        kernels: Profiler time per kernel, shape (kernels,), profiler overhead included; 0 where the runtime
            fused the kernel into another.
        kernel_events: Executed nodes per kernel.
        boundaries: Profiler time per boundary, shape (boundaries,).
        boundary_events: Executed nodes per boundary.
        complete: Whether the profiler saw every executed node. Otherwise nothing is known of a kernel without
            nodes.
    """

    network: Network
    wall: float
    kernels: Array
    kernel_events: Array
    boundaries: Array
    boundary_events: Array
    complete: bool = True

    @property
    def events(self) -> float:
        """Executed nodes."""
        return float(self.kernel_events.sum() + self.boundary_events.sum())

    @property
    def profiled(self) -> float:
        """Sum over all executed nodes."""
        return float(self.kernels.sum() + self.boundaries.sum())


def reference_model() -> tuple[bytes, tuple[int, ...]]:
    """Return the network that shows the machine's speed, and the shape of its input."""
    builder = ModelBuilder(0)
    value = builder.start(32, (16, 16))
    for _ in range(2):
        value = builder.conv(value, 32, (3, 3))
    return builder.build(value)[0], (1, 32, 16, 16)


def open_reference(runtime: Runtime) -> Reference:
    """Return the reference of a runtime."""
    model, shape = reference_model()
    return Reference(runtime.open(model, np.zeros(shape, np.float32)))


def time_network(network: Network, runtime: Runtime, reference: Reference, budget_ms: float = 12.0) -> Timed:
    """Time one network by the clock, then kernel by kernel where the runtime has a profiler.

    Args:
        network: The model and its cost view.
        runtime: What runs it.
        reference: Shows the machine's speed between the calls.
        budget_ms: Roughly how long each of the two measurements may take.
    """
    measured = time_model(network.model, network.input_shape, runtime, reference, budget_ms)
    return timed_of(network, measured, runtime.sees_every_node)


def timed_of(network: Network, measured: Measurement, complete: bool) -> Timed:
    """Add executed nodes up per kernel and per boundary.

    Args:
        network: The model and its cost view.
        measured: Its measurement.
        complete: Whether profiles have every executed node.

    Raises:
        ProfileError: A node of a complete profile that belongs to no kernel.
    """
    view, nodes = network.view, measured.nodes if network.named else ()
    kernels, kernel_events = np.zeros(len(view.kernels)), np.zeros(len(view.kernels))
    boundaries, boundary_events = np.zeros(len(view.boundaries)), np.zeros(len(view.boundaries))
    owners = [_owner(network, node) for node in nodes]
    for index, node in enumerate(nodes):
        owner = owners[index] or _layout_owner(owners, nodes, index)
        if owner is None:
            if not complete:
                continue
            raise ProfileError(
                f"cannot tell which kernel the runtime's node {node.name!r} ({node.operator}) belongs to"
            )
        if owner[0] == "kernel":
            kernels[owner[1]] += node.microseconds
            kernel_events[owner[1]] += 1
        else:
            boundaries[owner[1]] += node.microseconds
            boundary_events[owner[1]] += 1
    return Timed(
        network, measured.wall, kernels, kernel_events, boundaries, boundary_events, complete and bool(nodes)
    )


def _owner(network: Network, node: Node) -> tuple[str, int] | None:
    """The kernel or boundary in a node's name; None for layout changes, which the runtime names itself."""
    if node.operator in _LAYOUT:
        return None
    found = re.search(r"(?:^|\s)([bk])(\d+)_", node.name)
    if found is None:
        return None
    count = len(network.view.boundaries if found[1] == "b" else network.view.kernels)
    if int(found[2]) >= count:
        return None
    if found[1] == "b":
        return "boundary", int(found[2])
    if node.operator in _CONVERSIONS:
        for index, item in enumerate(network.view.boundaries):
            if item.kind == _CONVERSIONS[node.operator] and item.tensor.startswith(f"k{found[2]}_"):
                return "boundary", index
    return "kernel", int(found[2])


def _layout_owner(
    owners: list[tuple[str, int] | None], nodes: Sequence[Node], index: int
) -> tuple[str, int] | None:
    """A layout change beside a conversion, or a transpose, belongs to it; else to the kernel it serves."""
    near = sorted((abs(other - index), owner) for other, owner in enumerate(owners) if owner)
    reach = len(nodes) if nodes[index].operator == "Transpose" else 1
    conversion = next(
        (owner for distance, owner in near if owner[0] == "boundary" and distance <= reach), None
    )
    if conversion is not None:
        return conversion
    before = next((owner for owner in reversed(owners[:index]) if owner), None)
    after = next((owner for owner in owners[index + 1 :] if owner), None)
    return (before or after) if nodes[index].operator == "ReorderOutput" else (after or before)
