"""What a latency predictor has to beat: operations counted, isolated kernels added up, a forest on raw features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.kernels_onnx_tokens import NetworkBuilder
from paretopress.hardware_profiles.networks import Network, finish
from paretopress.hardware_profiles.nnls import non_negative_least_squares
from paretopress.hardware_profiles.timing import Timed
from paretopress.hardware_profiles.timing_protocol import Reference, Runtime, time_model
from paretopress.spaces.kernels import CostView, Family, Kernel, product

Array = NDArray[np.float64]
_CONVOLUTIONS = (Family.CONV, Family.GROUPED, Family.DEPTHWISE)


def operations(views: Sequence[CostView]) -> Array:
    """A constant, multiply-accumulates in float and in int8, shape (networks, 3)."""
    rows = []
    for view in views:
        integers = sum(kernel.macs for kernel in view.kernels if kernel.activation_bits == 8)
        rows.append((1.0, view.macs - integers, integers))
    return np.array(rows, dtype=np.float64)


def by_operations(timed: Sequence[Timed], views: Sequence[CostView]) -> Array:
    """Microseconds linear in the operations of either type, fitted to the timed networks by relative error."""
    wall = np.array([item.wall for item in timed])
    rows = operations([item.network.view for item in timed])
    return operations(views) @ non_negative_least_squares(rows / wall[:, None], np.ones(len(wall)))


def alone(kernel: Kernel) -> Network:
    """A network of one kernel; those without an operator of their own here become a ReLU of the same size."""
    builder = NetworkBuilder(0)
    int8 = kernel.activation_bits == 8
    if kernel.family in _CONVOLUTIONS:
        value = builder.start(kernel.cin, kernel.input_size)
        value = builder.conv(value, kernel.cout, kernel.window, kernel.stride[0], groups=kernel.groups,
                             relu=bool(kernel.fused), int8=int8)
    elif kernel.family is Family.LINEAR and kernel.rows == 1:
        value = builder.linear(builder.start(kernel.cin, ()), kernel.cout, relu=bool(kernel.fused), int8=int8)
    elif kernel.family is Family.LINEAR:
        value = builder.project(builder.start(kernel.rows, (kernel.cin,)), kernel.cout, int8=int8)
    elif kernel.family is Family.POOL and kernel.window and min(kernel.input_size) >= max(kernel.window):
        value = builder.start(kernel.cin, kernel.input_size)
        value = builder.pool(value, kernel.window[0], kernel.stride[0], int8=int8)
    elif kernel.family is Family.GLOBAL_POOL and kernel.input_size:
        value = builder.global_pool(builder.start(kernel.cin, kernel.input_size), int8=int8)
    else:
        size = kernel.output_size or (1,)
        channels = max(1, kernel.output_elements // product(size))
        value = builder.elementwise(builder.start(channels, size), "Relu")
    return finish(builder, value)


def shape_of(kernel: Kernel) -> Kernel:
    """The kernel without its name: equal for kernels that take equally long."""
    return replace(kernel, name="", layer="")


def isolated_us(kernels: Sequence[Kernel], runtime: Runtime, reference: Reference) -> dict[Kernel, float]:
    """Microseconds of a whole session of every distinct kernel."""
    result: dict[Kernel, float] = {}
    for kernel in map(shape_of, kernels):
        if kernel not in result:
            network = alone(kernel)
            result[kernel] = time_model(network.model, network.input_shape, runtime, reference, 4.0).wall
    return result


def raw_features(kernels: Sequence[Kernel]) -> Array:
    """What nn-Meter's forests see: the configuration as it is."""
    return np.array([
        (k.cin, k.cout, product(k.window), product(k.stride), k.groups, product(k.input_size), k.rows,
         k.input_elements, k.output_elements) for k in kernels
    ], dtype=np.float64)


def by_forests(known: Mapping[Kernel, float], session_us: float, views: Sequence[CostView]) -> Array:
    """Sums of forests on raw features, one per family and type, trained on isolated kernels less the session."""
    from sklearn.ensemble import RandomForestRegressor

    groups: dict[tuple[Family, int], list[Kernel]] = {}
    for kernel in known:
        groups.setdefault((kernel.family, kernel.activation_bits), []).append(kernel)
    forests = {}
    for key, members in groups.items():
        target = [max(known[kernel] - session_us, 0.1) for kernel in members]
        forests[key] = RandomForestRegressor(100, random_state=0, n_jobs=1).fit(raw_features(members), target)
    totals = []
    for view in views:
        total = session_us
        for key in {(kernel.family, kernel.activation_bits) for kernel in view.kernels}:
            members = [k for k in view.kernels if (k.family, k.activation_bits) == key]
            forest = forests.get(key) or forests.get((Family.ELEMENTWISE, 32))
            total += float(forest.predict(raw_features(members)).sum()) if forest is not None else 0.0
        totals.append(total)
    return np.array(totals)
