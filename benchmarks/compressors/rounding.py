"""What learned rounding and cross-layer equalisation gain: error of layers and accuracy, without any training.

    python benchmarks/compressors/rounding.py [--only errors rounding equalisation] > rounding.txt

The networks and data are those of `examples/cifar` and `examples/kws` (the folder of shared data is named by
PARETOPRESS_SHARED). The channels of the uneven networks are rescaled at random by factors from 1/30 to 30 and back
where they are read, as training without weight decay may leave them: as floats they compute the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

sys.path.extend(str(Path(__file__).parents[2] / "examples" / example) for example in ("cifar", "kws"))

import cifar
import kws

from paretopress.compressors.calibration import Calibration, base_network, calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.equalisation import find_pairs
from paretopress.compressors.least_squares import centred
from paretopress.compressors.matrices import rounded
from paretopress.compressors.network import Network, forward, layer_columns
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.quantisation import ROUNDING_METHODS, RoundingMethod, dequantise
from paretopress.compressors.refit import refit
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

BATCH = 256
SPREAD = 30.0
WIDTHS = (2, 3, 4)
FORMS = (Weights(8, 8), Weights(8, 32, "tensor"), Weights(4, 32, "tensor"))


class Subject:
    """A network with its data."""

    def __init__(self, name: str, model: torch.nn.Module, inputs: Tensor, scored: tuple[Tensor, Tensor]) -> None:
        self.name, self.inputs, self.scored = name, inputs, scored
        self.program = build_program(model, (inputs[:2],))

    def calibrated(self, program: Program, *, equalise: bool = False) -> Calibration:
        """Statistics on the calibration inputs."""
        return calibrate(program, [[batch] for batch in self.inputs.split(BATCH)], equalise=equalise)

    def score(self, program: Program, network: Network) -> float:
        """Share of the scored inputs that are right."""
        inputs, labels = self.scored
        with torch.inference_mode():
            outputs = [forward(program, network, [batch]) for batch in inputs.split(BATCH)]
        return float((torch.cat(outputs).argmax(dim=1) == labels).double().mean())

    def accuracy(
        self, program: Program, calibration: Calibration, form: Weights, rounding: RoundingMethod, *, rebuilt: bool
    ) -> float:
        """Of all layers in a format."""
        entries = Entries(program, calibration, rounding=rounding)
        planned = plan(program.structure, Policy.of(program.structure.takers(form)))
        if rebuilt:
            return self.score(program, refit(program, entries, planned, [self.inputs]))
        return self.score(program, tune(program, entries.stitch(planned), calibration)[0])


@cache
def subjects() -> tuple[Subject, ...]:
    """ResNet-20 on CIFAR-10 and the depthwise separable network of keyword spotting."""
    stimuli = kws.data()
    return (
        Subject("resnet20", cifar.resnet20(), cifar.images("train")[0][:1024], cifar.images("validation")),
        Subject("ds_cnn", kws.model(), stimuli.calibration[0], stimuli.holdout),
    )


def errors(subject: Subject) -> None:
    """Squared output error of the layers relative to what their outputs vary, summed over them, and its time."""
    calibration = subject.calibrated(subject.program)
    for bits in WIDTHS:
        for rounding in ROUNDING_METHODS:
            begin, total = time.perf_counter(), 0.0
            for node, statistics in calibration.layers.items():
                weight = layer_columns(calibration.folded[node][0])
                moments = statistics.moments
                covariance, _ = centred(moments if moments.ndim == 3 else moments.unsqueeze(0))
                found = dequantise(*rounded(weight, moments, (bits,), rounding)[bits])
                total += _energy(weight - found, covariance) / _energy(weight, covariance)
            print(f"  W{bits} {rounding:9s} {total:9.5f}   {time.perf_counter() - begin:.1f} s", flush=True)


def _energy(weight: Tensor, covariance: Tensor) -> float:
    grouped = weight.double().reshape(len(covariance), -1, weight.shape[1])
    return float(((grouped @ covariance) * grouped).sum())


def roundings(subject: Subject) -> None:
    """Accuracy with weights of all layers at each width, by how they are rounded."""
    calibration = subject.calibrated(subject.program)
    for bits in WIDTHS:
        for rounding in ROUNDING_METHODS:
            found = [subject.accuracy(subject.program, calibration, Weights(bits, 32), rounding, rebuilt=rebuilt)
                     for rebuilt in (False, True)]
            print(f"  W{bits} {rounding:9s} tuned {100 * found[0]:6.2f}%  solved again {100 * found[1]:6.2f}%",
                  flush=True)


def equalisation(subject: Subject) -> None:
    """Accuracy with shared scales and ranges, with and without equalisation, as trained and made uneven."""
    for name, program in (("as trained", subject.program), ("uneven", unevened(subject.program))):
        for equalise in (False, True):
            calibration = subject.calibrated(program, equalise=equalise)
            for form in FORMS:
                for rounding in ROUNDING_METHODS[: 3 if form.bits < 8 else 2]:   # learning gains nothing at 8 bits
                    found = [subject.accuracy(program, calibration, form, rounding, rebuilt=rebuilt)
                             for rebuilt in (False, True)]
                    kind = f"W{form.bits}A{form.activations} {form.scheme}"
                    print(f"  {name:10s} {kind:16s} {calibration.base.equalised:2d} pairs {rounding:9s} "
                          f"tuned {100 * found[0]:6.2f}%  solved again {100 * found[1]:6.2f}%", flush=True)


def unevened(program: Program, seed: int = 0) -> Program:
    """The same function with uneven channels: multiplied by the normalisation behind them, divided where read."""
    generator, state = torch.Generator().manual_seed(seed), dict(program.state)
    norms = {layer.node: name for name, layer in program.structure.fusion.folds.items()}
    for pair in find_pairs(program.structure)[0]:
        factors = SPREAD ** (2.0 * torch.rand(pair.count, generator=generator) - 1.0)
        norm = program.graph.by_name[norms[pair.producer.node]]
        for argument in ("weight", "bias"):
            parameter = program.graph.parameter(norm, argument)
            assert parameter is not None
            state[parameter.target] = state[parameter.target] * factors[pair.made]
        for reader, numbers in pair.readers:
            weight = state[reader.weight]
            grouped = weight.reshape(reader.groups, -1, *weight.shape[1:])
            shape = (reader.groups, 1, weight.shape[1], *(1,) * len(reader.window))
            state[reader.weight] = (grouped / factors[numbers].reshape(shape)).reshape(weight.shape)
    return replace(program, state=state)


PARTS = {"errors": errors, "rounding": roundings, "equalisation": equalisation}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for subject in subjects():
        dense = subject.score(subject.program, base_network(subject.program))
        print(f"\n{subject.name}: dense {100 * dense:.2f}% of {len(subject.scored[1])}", flush=True)
        for part in chosen.only:
            print(f" {part}", flush=True)
            PARTS[part](subject)


if __name__ == "__main__":
    main()
