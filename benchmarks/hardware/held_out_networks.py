"""Whole networks that no predictor is fitted to: compressed variants of the zoo and of the examples' models.

Every base model gets random legal policies: pruned channels (multiples of 16, of 4, or odd), low ranks, and all
layers in float32, all in int8, or every layer by chance. They are realised and exported by the project's own code;
what a device prices is the cost view of the very plan.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path += [str(Path(__file__).resolve().parents[2] / name) for name in ("tests", "examples/cifar", "examples/kws")]

from cifar import ResNet
from kws import DSCNN
from zoo import branches, mobile, residual, sequence, vision
from zoo.registry import randomise

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.refit import settle
from paretopress.demo.factories import model as demo_model
from paretopress.hardware_profiles.networks import MODES, Network
from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import Choice, Factorised, Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import ParetopressError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace, SpaceSettings, build_space

STEPS = (16, 4, 1)                      # of channels and ranks, in turn: aligned, half aligned, odd
DEVICE = {"formats": ((8, 8),)}         # what both runtimes execute faster
Base = tuple[Callable[[], nn.Module], tuple[int, ...]]

BASES: dict[str, Base] = {
    "ResNet-20 (examples)": (lambda: ResNet(3), (3, 32, 32)),
    "DS-CNN (examples)": (DSCNN, (1, 49, 10)),
    "digits (demo)": (demo_model, (1, 8, 8)),
    "ResNet-56 CIFAR, width 8": (lambda: residual.CifarResNet(9, 8), (3, 32, 32)),
    "ResNet-18, width 32": (lambda: residual.ResNet(width=32, classes=100), (3, 64, 64)),
    "ResNet-50, width 16": (
        lambda: residual.ResNet(residual.Bottleneck, (3, 4, 6, 3), width=16, classes=100), (3, 64, 64)),
    "MobileNetV1 0.5": (lambda: mobile.MobileNetV1(0.5, 100), (3, 96, 96)),
    "MobileNetV2 0.5": (lambda: mobile.MobileNetV2(0.5, 100), (3, 96, 96)),
    "MobileNetV3 0.5": (lambda: mobile.MobileNetV3(0.5, 100), (3, 96, 96)),
    "VGG-16, quarter": (lambda: branches.Vgg(share=4, hidden=256, positions=2, classes=10), (3, 64, 64)),
    "SqueezeNet, half": (lambda: branches.SqueezeNet(share=2, classes=10), (3, 64, 64)),
    "GoogLeNet, quarter": (lambda: branches.GoogLeNet(share=4, classes=10), (3, 64, 64)),
    "U-Net, width 16": (lambda: branches.UNet(width=16, depth=3), (3, 32, 32)),
    "DenseNet, growth 12": (
        lambda: branches.DenseNet(growth=12, depths=(4, 6, 8, 5), stem=24, classes=10), (3, 32, 32)),
    "RegNetY": (lambda: residual.RegNet(widths=(24, 56, 152, 368), classes=100), (3, 64, 64)),
    "ESPCN": (lambda: vision.Espcn(width=32), (3, 24, 24)),
    "MLP": (sequence.PlainMlp, (1, 28, 28)),
    "autoencoder (MLPerf Tiny)": (sequence.AutoEncoder, (640,)),
    "ViT, size 96": (
        lambda: vision.VisionTransformer(image=32, patch=4, size=96, depth=6, heads=3, classes=10), (3, 32, 32)),
    "MLP-Mixer, size 64": (
        lambda: vision.MlpMixer(image=32, patch=4, size=64, depth=6, token_hidden=32, hidden=128, classes=10),
        (3, 32, 32)),
}


@dataclass(frozen=True)
class HeldOut:
    """One network: its name, the arithmetic of its layers, model and cost view."""

    name: str
    mode: str
    network: Network


@dataclass(frozen=True)
class _Captured:
    program: Program
    entries: Entries
    inputs: Tensor


def _captured(base: Base) -> _Captured:
    factory, shape = base
    torch.manual_seed(0)
    model = factory()
    if factory is not demo_model:
        randomise(model)
    model.eval().requires_grad_(False)
    inputs = torch.randn(8, *shape)
    program = build_program(model, (inputs[:4],), {})
    return _Captured(program, Entries(program, calibrate(program, [[inputs]]), "l1"), inputs)


def held_out(names: list[str], variants: int = 2, seed: int = 2026) -> Iterator[HeldOut]:
    """Make `variants` shapes of every base, each in every mode; a shape that cannot be exported is skipped."""
    for position, name in enumerate(names):
        captured = _captured(BASES[name])
        for variant in range(variants):
            step = STEPS[(position + variant) % len(STEPS)]
            random = np.random.default_rng([seed, position, variant])
            space = _space(captured.program, step)
            shapes = _shapes(space, random, dense=0.15)
            for mode in MODES:
                policy = Policy.of(shapes | _formats(space, mode, random))
                label = f"{name}, variant {variant + 1} (channels in {step}s)"
                try:
                    yield HeldOut(label, mode, _exported(captured, policy))
                except ParetopressError as error:
                    print(f"left out: {label} {mode}: {error}", file=sys.stderr)


def _space(program: Program, step: int) -> SearchSpace:
    device = Capabilities("any", channel_step=step, rank_step=step, **DEVICE)
    return build_space(program.structure, [device], SpaceSettings(bits=(8,)))


def _shapes(space: SearchSpace, random: np.random.Generator, dense: float) -> dict[str, Choice]:
    """Random widths and ranks; a network's units keep about as much as each other, as found policies do."""
    found: dict[str, Choice] = {}
    level = random.uniform(0.35, 1.0)
    for unit, options in space.options.items():
        kind = unit.rpartition("/")[2]
        shapes = [c for c in options if isinstance(c, Keep if kind == "channels" else Factorised)]
        if kind not in ("channels", "rank") or not shapes or random.random() < (dense if kind == "channels" else 0.75):
            continue
        if kind == "channels":
            kept = [c for c in shapes if c.ratio > 0]
            if not kept:
                continue
            wanted = np.clip(level + random.normal(0, 0.15), 0.2, 1.0)
            found[unit] = min(kept, key=lambda choice: abs(choice.ratio - wanted))
        else:
            found[unit] = shapes[int(random.integers(len(shapes)))]
    return found


def _formats(space: SearchSpace, mode: str, random: np.random.Generator) -> dict[str, Choice]:
    share = {"float32": 0.0, "int8": 1.0, "mixed": 0.6}[mode]
    units = [unit for unit, options in space.options.items() if Weights(8) in options]
    return {unit: Weights(8) for unit in units if random.random() < share}


def _exported(captured: _Captured, policy: Policy) -> Network:
    program = captured.program
    planned = plan(program.structure, policy)
    with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(program, settle(captured.entries, planned)[0], path)
        return Network(path.read_bytes(), cost_view(planned), (1, *captured.inputs.shape[1:]))
