"""Pricing many policies at once: the same numbers as pricing each alone, whatever the model, choices and devices."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from paretopress.evaluators.costs import CostModel
from paretopress.evaluators.pricing import PolicyPricer
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.search.option_space import OptionSpace
from paretopress.spaces.plan import plan
from paretopress.spaces.space import SpaceSettings, build_space

sys.path.insert(0, str(Path(__file__).parents[1] / "spaces"))
from space_zoo import ZOO, specimen

DEVICES = ("x86-zen4-vnni-onnxruntime", "cortex-a76-tflite", "stm32-h7a3", "h200-sxm")
EVERYTHING = SpaceSettings(
    rank_kinds=("svd", "nmf", "spatial", "tucker"), sparsity=(0.5, "2:4", "0.25 in 4x1"), halves=("fp16", "bf16"),
    schemes=("symmetric", "asymmetric", "tensor"), groups=(0, 32), clusters=(4,), binary=(1, 2), end_bits=2,
)


def case_of(structure, inside=None):
    """A pricer on four devices, one of which only ranks and one of which refuses floats, and its option space."""
    costs = CostModel(tuple(load_profile(name) for name in DEVICES))
    space = build_space(structure, [costs.devices[0].capabilities()], EVERYTHING)
    options = OptionSpace.of(space.options, inside=inside)
    return costs, options, PolicyPricer(structure, dict(zip(options.units, options.options, strict=True)), costs)


def draw(options, count, seed):
    """Policies from nearly dense to everything changed, every third with 8-bit activations wherever there are."""
    rng = random.Random(seed)
    integer = [next((n for n, c in enumerate(choices) if getattr(c, "activations", 0) == 8), 0)
               for choices in options.options]
    found = []
    for number in range(count):
        start = tuple(integer) if number % 3 == 0 else options.dense
        found.append(options.canonical(options.scattered(start, rng)))
    return found


def compare(structure, costs, options, pricer, genomes):
    found = pricer.predict(np.array(genomes, dtype=np.int64).reshape(len(genomes), len(options.units)))
    for row, genome in enumerate(genomes):
        policy = options.policy(genome)
        wanted = costs.predict(plan(structure, policy))
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name][row] == pytest.approx(value, rel=1e-9), (name, policy.to_plain()["units"])


@pytest.mark.parametrize("name", ZOO)
def test_every_wiring_is_priced_as_alone(name):
    structure = specimen(name).structure
    costs, options, pricer = case_of(structure)
    if options.units:
        compare(structure, costs, options, pricer, [options.dense, *draw(options, 24, name)])
