"""Predicted against measured latency of whole networks that no predictor is fitted to, on this machine.

    python benchmarks/hardware/whole_networks.py [--runtimes onnxruntime openvino] [--seconds 150] [--out FOLDER]

Per runtime, on one thread: random small networks are timed for `--seconds` and a profile is fitted to them, as
`paretopress device measure` does. Then 40 compressed shapes of 20 models (`held_out_networks.py`) are exported in
float32, in int8 and in a mix of both, timed, and compared with what the profile says. Beside it, in the same run:

- microseconds linear in the multiply-accumulates of either type, fitted to the same networks;
- the plain sum of isolated kernels, each timed in a session of its own, for every twelfth network;
- nn-Meter's way: a random forest on raw configurations per kind of kernel, trained on isolated kernels.

Kernels: the profile of the first 300 networks alone predicts the kernels of all networks timed after them, those
that take at least 5 us (shorter ones are below what profilers resolve). `load` and `noise` say how quiet the machine
was. Writes `whole_networks.json` and `whole_networks.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import by_forests, by_operations, isolated_us, shape_of
from held_out_networks import BASES, HeldOut, held_out

from paretopress.hardware_profiles.accuracy import spearman
from paretopress.hardware_profiles.fit import kernel_accuracy
from paretopress.hardware_profiles.host import host_info
from paretopress.hardware_profiles.measure import Campaign, Settings, fit_campaign, fitted_profile, time_networks
from paretopress.hardware_profiles.networks import MODES
from paretopress.hardware_profiles.runtimes import open_runtime
from paretopress.hardware_profiles.timing import open_reference
from paretopress.hardware_profiles.timing_protocol import Reference, Runtime, time_model

FEW = 300                   # networks of the profile that kernels are judged by
EVERY = 12                  # held-out networks whose kernels are timed alone
FOREST_KERNELS = 300
WHOLE_BUDGET_MS = 60.0
Row = dict[str, Any]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--seconds", type=float, default=150.0, help="time for the profile's networks")
    parser.add_argument("--most", type=int, default=None, help="networks of the profile at most")
    parser.add_argument("--bases", nargs="+", default=list(BASES), help="models to take variants of")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = list(held_out(arguments.bases))   # exporting them takes minutes
    results = [_measured(name, networks, arguments) for name in arguments.runtimes]
    for result in results:
        (arguments.out / f"whole_networks_{result['runtime']}.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n\n".join(map(_text, results)) + "\n"
    (arguments.out / "whole_networks.txt").write_text(text)
    print(text, end="")


def _measured(name: str, networks: Sequence[HeldOut], arguments: argparse.Namespace) -> Row:
    runtime = open_runtime(name)
    began = time.monotonic()
    campaign = time_networks(runtime, Settings(arguments.seconds, most=arguments.most, budget_ms=20.0))
    spent = time.monotonic() - began
    profile = fitted_profile(campaign, "measured-here", host_info(), time.strftime("%Y-%m-%d"))
    reference = open_reference(runtime)
    timed = [(item, wall) for item in networks if (wall := _wall(item, runtime, reference)) is not None]
    kept, walls = [item for item, _ in timed], np.array([wall for _, wall in timed])
    views = [item.network.view for item in kept]
    predicted = {
        "profile": np.array([profile.latency_ms(view).mid * 1e3 for view in views]),
        "operations": by_operations(campaign.timed, views),
    }
    some = list(range(0, len(kept), EVERY))
    alone = isolated_us([kernel for index in some for kernel in views[index].kernels], runtime, reference)
    sums = np.array([sum(alone[shape_of(kernel)] for kernel in views[index].kernels) for index in some])
    training = _training_kernels(campaign)
    predicted["forests"] = by_forests(isolated_us(training, runtime, reference), profile.session_us, views)
    rows = [
        {"network": item.name, "mode": item.mode, "measured_us": float(wall),
         **{method: float(values[index]) for method, values in predicted.items()}}
        for index, (item, wall) in enumerate(zip(kept, walls, strict=True))
    ]
    return {
        "runtime": name, "version": runtime.version, "threads": 1, "host": host_info().description,
        "date": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[0], "noise": campaign.noise,
        "noise_of_held_out": reference.noise,
        "profile": {"networks": len(campaign.timed), "seconds": spent, "kernels": _kernels(campaign)},
        "held_out": len(kept), "left_out": len(networks) - len(kept),
        "whole": {mode: {m: _errors(v, walls, kept, mode) for m, v in predicted.items()} for mode in (*MODES, "all")},
        "isolated_sum": _figures(sums, walls[some]),
        "few": _few(campaign, spent), "rows": rows,
    }


def _wall(item: HeldOut, runtime: Runtime, reference: Reference) -> float | None:
    try:
        network = item.network
        return time_model(network.model, network.input_shape, runtime, reference, WHOLE_BUDGET_MS).wall
    except RuntimeError as error:
        warnings.warn(f"{runtime.name} cannot load {item.name} {item.mode}: {str(error).splitlines()[0]}", stacklevel=2)
        return None


def _kernels(campaign: Campaign) -> int:
    return sum(len(item.network.view.kernels) for item in campaign.timed)


def _training_kernels(campaign: Campaign) -> list[Any]:
    every = list(dict.fromkeys(
        shape_of(kernel) for item in campaign.timed for kernel in item.network.view.kernels
    ))
    chosen = np.random.default_rng(0).permutation(len(every))[:FOREST_KERNELS]
    return [every[index] for index in chosen]


def _few(campaign: Campaign, seconds: float) -> Row:
    """Kernel errors of a profile of the first networks alone, on the kernels of the others."""
    few = replace(campaign, timed=campaign.timed[:FEW])
    others = campaign.timed[FEW:]
    share = seconds * len(few.timed) / len(campaign.timed)
    if not others:
        return {"networks": len(few.timed), "seconds": share, "kernels": {}}
    fitted, _ = fit_campaign("few", few, "this run")
    found = kernel_accuracy(fitted, others)
    kernels = {
        f"{executed} {family.value}": {"n": a.n, "mape": a.mape, "within10": a.within10}
        for (family, executed), a in found.items()
    }
    for executed in ("float32", "int8"):
        members = [a for (_, kind), a in found.items() if kind == executed]
        total = sum(a.n for a in members)
        if total:
            kernels[f"{executed}, all"] = {
                "n": total, "mape": sum(a.n * a.mape for a in members) / total,
                "within10": sum(a.n * a.within10 for a in members) / total,
            }
    return {"networks": len(few.timed), "seconds": share, "kernels": kernels}


def _errors(predicted: np.ndarray, walls: np.ndarray, kept: Sequence[HeldOut], mode: str) -> Row:
    chosen = np.array([mode in (item.mode, "all") for item in kept])
    return _figures(predicted[chosen], walls[chosen])


def _figures(predicted: np.ndarray, walls: np.ndarray) -> Row:
    ratio = predicted / walls
    return {
        "n": len(walls), "within10": float((abs(ratio - 1) <= 0.10).mean()),
        "within5": float((abs(ratio - 1) <= 0.05).mean()), "mape": float(abs(ratio - 1).mean()),
        "bias": float(ratio.mean() - 1), "spearman": spearman(predicted, walls),
    }


def _text(result: Row) -> str:
    profile, few = result["profile"], result["few"]
    noise = f"noise {result['noise']:.2f} (held out: {result['noise_of_held_out']:.2f})"
    where = f"{result['runtime']} {result['version']}, one thread, {result['host']}, {result['date']}"
    lines = [
        f"{where}, load {result['load']:.1f}, {noise}",
        f"profile: {profile['networks']} networks with {profile['kernels']} kernels in {profile['seconds']:.0f} s",
        f"held out: {result['held_out']} networks; {result['left_out']} that the runtime cannot load",
        "",
        f"{'':10s}{'method':22s}{'n':>5s}{'+-10%':>8s}{'+-5%':>8s}{'MAPE':>8s}{'bias':>8s}{'rho':>8s}",
    ]
    for mode, methods in result["whole"].items():
        lines += [_line(mode, method, figures) for method, figures in methods.items()]
    lines.append(_line("some", "sum of isolated", result["isolated_sum"]))
    lines += ["", f"kernels over 5 us, profile of {few['networks']} networks ({few['seconds']:.0f} s):"]
    lines += [
        f"  {name:24s}{k['n']:6d} kernels, within 10%: {k['within10']:6.1%}, MAPE {k['mape']:6.1%}"
        for name, k in few["kernels"].items()
    ]
    return "\n".join(lines)


def _line(mode: str, method: str, figures: Row) -> str:
    return (
        f"{mode:10s}{method:22s}{figures['n']:5d}{figures['within10']:8.0%}{figures['within5']:8.0%}"
        f"{figures['mape']:8.1%}{figures['bias']:+8.1%}{figures['spearman']:8.3f}"
    )


if __name__ == "__main__":
    main()
