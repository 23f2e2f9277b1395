"""Which features price which family in ONNX Runtime on x86, and what stands in for unmeasured families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from paretopress.hardware_profiles.features import Alignment
from paretopress.hardware_profiles.predictor import LatencyModel
from paretopress.spaces.kernels import Family

# Blocked float layouts hold 16 channels; int8 products take 4 inputs at a time and 16 outputs.
X86: Mapping[str, Alignment] = {"float32": Alignment(16, 16, 4), "int8": Alignment(4, 16, 4)}

_CONV = (
    "one",
    "work_1x1",
    "work_3x3",
    "work_other",
    "work_strided",
    "work_few_pixels",
    "work_odd_input",
    "work_odd_output",
    "work_few_inputs",
    "work_few_inputs_1x1",
    "work_flat",
    "gathers",
    "im2col",
    "lines",
    "blocks",
    "weights",
    "inputs",
    "inputs_few",
    "outputs_aligned",
    "odd_input",
    "odd_output",
    "odd_input_one",
    "odd_output_one",
    "few_inputs_one",
    "flat_one",
    "fused",
    "pixels",
    "tail",
    "outputs",
    "few_outputs",
    "tap_few_outputs",
)
TERMS: dict[Family, tuple[str, ...]] = {
    Family.CONV: _CONV,
    Family.GROUPED: (
        "one",
        "work",
        "gathers",
        "im2col",
        "lines",
        "blocks",
        "weights",
        "inputs",
        "outputs_aligned",
        "odd_output",
        "unblocked_channels",
        "groups",
        "group_pixels",
    ),
    Family.DEPTHWISE: (
        "one",
        "window_reads",
        "gathers",
        "tap_blocks",
        "tap_tail",
        "tap_half",
        "tap_quarter",
        "lines",
        "blocks",
        "inputs",
        "outputs_aligned",
        "odd_output",
        "odd_output_one",
        "weights",
        "unblocked_channels",
    ),
    Family.LINEAR: (
        "one",
        "work",
        "inputs",
        "outputs",
        "odd_input_one",
        "work_tokens",
        "tokens_one",
        "tokens_outputs",
        "row_weights",
    ),
    Family.MATMUL: ("one", "work", "inputs", "outputs"),
    Family.ADD: ("one", "inputs"),
    Family.POOL: ("one", "window_reads", "inputs", "outputs", "odd_output", "odd_output_one"),
    Family.GLOBAL_POOL: ("one", "inputs", "outputs", "odd_input", "odd_output_one"),
    Family.NORM: ("one", "inputs"),
    Family.ELEMENTWISE: ("one", "inputs", "inputs_curved", "odd_input"),
    Family.CONCAT: ("one", "outputs", "odd_output"),
    Family.DATA: ("one", "inputs", "odd_input"),
    Family.OTHER: ("one", "inputs"),
}
BOUNDARY_TERMS = ("one", "elements", "layout_one", "layout")


def derived_families(model: LatencyModel) -> LatencyModel:
    """Add families that were not measured, priced like kernels that do similar work.

    Products of activations cost what linear layers cost, and unknown operators what an unabsorbed activation
    costs. A family that no timed network happened to contain falls back on the first relative that is known.
    """
    families = dict(model.families)
    for family, relatives in _RELATIVES.items():
        for executed in ("float32",) if family in _FLOAT_ONLY else ("float32", "int8"):
            known = [families[like, executed] for like in relatives if (like, executed) in families]
            if (family, executed) not in families and known:
                families[family, executed] = replace(known[0], trees=None)
    return replace(model, families=families)


_FLOAT_ONLY = (Family.MATMUL, Family.NORM, Family.ELEMENTWISE, Family.OTHER)
_MOVERS = (Family.CONCAT, Family.ADD, Family.DATA, Family.POOL)
_RELATIVES: Mapping[Family, tuple[Family, ...]] = {
    Family.GROUPED: (Family.CONV,),
    Family.DEPTHWISE: (Family.GROUPED, Family.CONV),
    Family.LINEAR: (Family.CONV,),
    Family.MATMUL: (Family.LINEAR, Family.CONV),
    Family.CONCAT: _MOVERS,
    Family.DATA: _MOVERS,
    Family.ADD: _MOVERS,
    Family.POOL: _MOVERS,
    Family.GLOBAL_POOL: _MOVERS,
    Family.ELEMENTWISE: (Family.NORM, *_MOVERS),
    Family.NORM: (Family.ELEMENTWISE, *_MOVERS),
    Family.OTHER: (Family.ELEMENTWISE, Family.NORM, *_MOVERS),
}
