"""Choices that a count of operations would take, and what the profile and ONNX Runtime say about them.

    python benchmarks/hardware/break_even.py [--runs 400] [--target local] [--out FOLDER]

Every row is one choice in a small network, beside the network without it. `operations` is the ratio that a count gives:
of multiply-accumulates, those that are left out of sparse weights not counted, and for formats of bit operations
(multiply-accumulates times bits of weights times bits of activations, as in Baskin et al., "UNIQ", 2018). `profile`
is the predicted ratio of times; `offered` says whether a search may take the choice, and why not. `measured` is the
ratio of times in ONNX Runtime on one thread: both networks are timed in turn, in blocks of 20 calls each; the ratio of
the two medians of a block counts, and the median and the quartiles over all blocks are printed. Where this is at least
0.98 the choice saves no time here. Weights are random: they do not change the time.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, session
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.refit import settle
from paretopress.evaluators.costs import (
    CostModel,
    drop_slower_ranks,
    drop_slower_twins,
    drop_what_cannot_run,
    drop_what_does_not_pay,
)
from paretopress.evaluators.timing import call_of, host_description
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.spaces.choices import Choice, Factorised, Keep, Sparse, Weights, describe
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings, build_space

SAVES = 0.98    # measured ratio below which a choice saves time
BLOCK = 20      # calls
WARM_UP = 20

Units = Mapping[str, Choice]


@dataclass(frozen=True)
class Case:
    """One choice.

    Attributes:
        name: What it is.
        model: Makes the network.
        shape: Of one input.
        before: The policy without the choice.
        after: The policy with it.
        asked: Settings of a space in which a user asks for it.
        left: Share of the multiply-accumulates that a count takes for left out of `after`.
        bits: `(weights, activations)` of the changed layers before and after, where a count of bit operations differs.
        layers: Names of the changed layers, where `bits` are given.
    """

    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    before: Units
    after: Units
    asked: SpaceSettings = field(default_factory=SpaceSettings)
    left: float = 1.0
    bits: tuple[tuple[int, int], tuple[int, int]] | None = None
    layers: tuple[str, ...] = ()


class Stack(nn.Module):
    """Layers one after the other, named `0`, `1`, ..., with ReLUs between them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, channels, height, width)` to the same shape."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Tokens(nn.Module):
    """Two linear layers on every one of many rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, rows, width)` to the same shape."""
        second: Tensor = self.second(torch.relu(self.first(x)))
        return second


def convolutions(count: int, width: int, window: int = 3, groups: int = 1) -> Callable[[], nn.Module]:
    """A stack of convolutions of one width on an image of that many channels."""
    return lambda: Stack(*(nn.Conv2d(width, width, window, padding=window // 2, groups=groups) for _ in range(count)))


def everywhere(names: Sequence[str], kind: str, choice: Choice) -> dict[str, Choice]:
    """The same choice for several subjects."""
    return {f"{name}/{kind}": choice for name in names}


def cases() -> list[Case]:
    """What is compared. Channel groups inside a stack have the name of the layer that makes them."""
    four, inner = [f"layers.{n}" for n in range(4)], [f"layers.{n}" for n in range(3)]
    int8, packed = everywhere(four, "weights", Weights(8)), Weights(4, 32, "asymmetric", 32)
    wide = convolutions(4, 32)
    return [
        Case("31 of 32 channels, float", wide, (32, 16, 16), {}, everywhere(inner, "channels", Keep(31 / 32)),
             SpaceSettings(keep=(31 / 32,))),
        Case("31 of 32 channels, int8", wide, (32, 16, 16), int8,
             {**int8, **everywhere(inner, "channels", Keep(31 / 32))}, SpaceSettings(keep=(31 / 32,))),
        Case("29 of 32 channels, int8", wide, (32, 16, 16), int8,
             {**int8, **everywhere(inner, "channels", Keep(29 / 32))}, SpaceSettings(keep=(29 / 32,))),
        Case("rank 31 instead of 32, float", convolutions(4, 64), (64, 14, 14),
             everywhere(four, "rank", Factorised("svd", 32)), everywhere(four, "rank", Factorised("svd", 31)),
             SpaceSettings(rank=(0.538,))),
        Case("rank 31 instead of 32, int8", convolutions(4, 64), (64, 14, 14),
             {**int8, **everywhere(four, "rank", Factorised("svd", 32))},
             {**int8, **everywhere(four, "rank", Factorised("svd", 31))}, SpaceSettings(rank=(0.538,))),
        Case("rank 6 of a 1x1 convolution of 16 channels", convolutions(4, 16, 1), (16, 28, 28), {},
             everywhere(four, "rank", Factorised("svd", 6)), SpaceSettings(rank=(0.75,))),
        Case("rank 12 of a 1x1 convolution of 32 channels", convolutions(4, 32, 1), (32, 14, 14), {},
             everywhere(four, "rank", Factorised("svd", 12)), SpaceSettings(rank=(0.75,))),
        Case("int8 depthwise convolutions", convolutions(4, 64, 3, 64), (64, 28, 28), {}, int8,
             bits=((32, 32), (8, 8)), layers=tuple(four)),
        Case("one int8 1x1 convolution between float ones", convolutions(3, 32, 1), (32, 28, 28), {},
             {"layers.1/weights": Weights(8)}, bits=((32, 32), (8, 8)), layers=("layers.1",)),
        Case("8-bit weights, float activations", wide, (32, 16, 16), {}, everywhere(four, "weights", Weights(8, 32)),
             SpaceSettings(end_bits=2), bits=((32, 32), (8, 32)), layers=tuple(four)),
        Case("4-bit weights instead of 8, int8 activations", wide, (32, 16, 16), int8,
             everywhere(four, "weights", Weights(4)), SpaceSettings(end_bits=2), bits=((8, 8), (4, 8)),
             layers=tuple(four)),
        Case("4-bit weights of a linear layer, 256 rows", lambda: Tokens(512), (256, 512), {},
             everywhere(("first", "second"), "weights", packed),
             SpaceSettings(schemes=("asymmetric",), groups=(32,), end_bits=2), bits=((32, 32), (4, 32)),
             layers=("first", "second")),
        Case("half of the weights of a 3x3 convolution", wide, (32, 16, 16), {},
             everywhere(four, "sparsity", Sparse(0.5)), SpaceSettings(sparsity=(0.5,)), left=0.5),
        Case("a tenth of the weights of a 3x3 convolution", wide, (32, 16, 16), {},
             everywhere(four, "sparsity", Sparse(0.1)), SpaceSettings(sparsity=(0.1,)), left=0.1),
        # What pays, for comparison: the method must find that too.
        Case("28 of 32 channels, int8 (pays)", wide, (32, 16, 16), int8,
             {**int8, **everywhere(inner, "channels", Keep(28 / 32))}, SpaceSettings(keep=(28 / 32,))),
        Case("all four convolutions int8 (pays)", wide, (32, 16, 16), {}, int8, bits=((32, 32), (8, 8)),
             layers=tuple(four)),
        Case("rank 16 of a 3x3 convolution of 64 (pays)", convolutions(4, 64), (64, 14, 14), {},
             everywhere(four, "rank", Factorised("svd", 16)), SpaceSettings(rank=(0.3,))),
    ]


def main() -> None:
    """Print the table, and write it as text and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--target", default="local")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    costs = CostModel((load_profile(arguments.target),))
    rows = []
    for case in cases():
        rows.append(row_of(case, costs, arguments.runs))
        print(line_of(rows[-1]), flush=True)
    device = costs.devices[0]
    host = {**host_description(), "torch": torch.__version__, "python": platform.python_version()}
    found = {"profile": device.id, "profile_runtime": f"{device.runtime} {device.runtime_version}",
             "runs": arguments.runs, "saves_below": SAVES, "host": host, "rows": rows}
    (arguments.out / "break_even.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "break_even.txt").write_text(table_of(found))


def row_of(case: Case, costs: CostModel, runs: int) -> dict[str, Any]:
    """Everything about one choice."""
    torch.manual_seed(0)
    model = case.model().eval()
    samples = torch.randn(16, *case.shape)
    program = build_program(model, (samples[:2],))
    before, after = Policy.of(dict(case.before)), Policy.of(dict(case.after))
    predicted = [costs.predict(plan(program.structure, policy)) for policy in (before, after)]
    name = costs.latency_names[0]
    low, middle, high, times = measured(program, samples, (before, after), runs)
    return {
        "choice": case.name,
        "operations": round(operations(case, program, before, after), 4),
        "profile": round(predicted[1][name] / predicted[0][name], 4),
        "predicted_ms": [round(one[name], 5) for one in predicted],
        "measured": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)],
        "measured_ms": [round(one, 5) for one in times],
        "size": round(predicted[1]["size"] / predicted[0]["size"], 4),
        "offered": offered(case, program, costs),
    }


def operations(case: Case, program: Program, before: Policy, after: Policy) -> float:
    """What a count of (bit) operations says: the ratio after to before."""
    totals = []
    for place, policy in enumerate((before, after)):
        total = 0.0
        for kernel in cost_view(plan(program.structure, policy)).kernels:
            changed = case.bits is not None and kernel.layer in case.layers
            weights, activations = case.bits[place] if case.bits is not None and changed else (32, 32)
            total += kernel.macs * weights * activations
        totals.append(total * (case.left if place else 1.0))
    return totals[1] / totals[0]


def offered(case: Case, program: Program, costs: CostModel) -> str:
    """`yes` or `size only` where a search may take the choice, else why not."""
    structure, device = program.structure, costs.devices[0]
    space = build_space(structure, [device.capabilities()], case.asked)
    space = drop_what_cannot_run(structure, space, costs)
    space = drop_slower_twins(structure, drop_slower_ranks(structure, space, costs), costs)
    space, size_only = drop_what_does_not_pay(structure, space, costs)
    unit, choice = next((unit, choice) for unit, choice in case.after.items() if case.before.get(unit) != choice)
    if choice in space.options.get(unit, ()):
        return "size only" if any(key.startswith(f"{unit}: ") for key in size_only) else "yes"
    reasons = {text: reason for name, text, reason in space.dropped if name == unit}
    reason = reasons.get(describe(choice)) or reasons.get("*")
    return f"no: {reason}" if reason else "no: between the steps of the device"


def measured(
    program: Program, samples: Tensor, policies: Sequence[Policy], runs: int
) -> tuple[float, float, float, list[float]]:
    """Quartiles and median of the ratio of times, and the median of each side in ms."""
    entries = Entries(program, calibrate(program, [[samples]]), "l1")
    with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
        calls = []
        for number, policy in enumerate(policies):
            path = Path(folder) / f"{number}.onnx"
            export_onnx(program, settle(entries, plan(program.structure, policy))[0], path)
            calls.append(call_of(session(path), [samples[:1]]))
        blocks = np.array([[block_ms(call) for call in calls] for _ in range(max(3, runs // BLOCK))])
    low, middle, high = np.percentile(blocks[:, 1] / blocks[:, 0], [25, 50, 75])
    return float(low), float(middle), float(high), [float(one) for one in np.median(blocks, axis=0)]


def block_ms(call: Callable[[], object]) -> float:
    """Median milliseconds of a few calls, after some that fill the caches."""
    times = np.empty(BLOCK)
    for index in range(-WARM_UP // 4, BLOCK):
        start = time.perf_counter()
        call()
        if index >= 0:
            times[index] = time.perf_counter() - start
    return float(np.median(times)) * 1e3


def line_of(row: Mapping[str, Any]) -> str:
    """One row as text."""
    low, high = row["quartiles"]
    agrees = (row["profile"] < SAVES) == (row["measured"] < SAVES)
    return (f"{row['choice']:46s} {row['operations']:6.2f} {row['profile']:8.2f} {row['measured']:9.2f} "
            f"({low:.2f}-{high:.2f})  {'yes' if agrees else 'NO':6s}  {row['offered']}")


def table_of(found: Mapping[str, Any]) -> str:
    """The whole table as text."""
    host, rows = found["host"], found["rows"]
    agreeing = sum((row["profile"] < SAVES) == (row["measured"] < SAVES) for row in rows)
    ranked = sum((row["operations"] < SAVES) == (row["measured"] < SAVES) for row in rows)
    head = (f"Ratios of after to before; below {SAVES} saves time. {host['cpu']}, {host['runtime']}, one thread, "
            f"batch 1; profile {found['profile']}.\n\n"
            f"{'choice':46s} {'count':>6s} {'profile':>8s} {'measured':>9s} (quartiles)  {'agree':6s}  offered\n")
    foot = (f"\nThe profile and the measurement agree on whether time is saved in {agreeing} of {len(rows)} rows, "
            f"the count in {ranked}.\n")
    return head + "".join(line_of(row) + "\n" for row in rows) + foot


if __name__ == "__main__":
    main()
