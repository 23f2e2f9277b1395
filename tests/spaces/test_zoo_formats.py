"""Every architecture of the zoo under a random policy of every format: what is stored computes what was built."""

import copy
import random
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

sys.path.append(str(Path(__file__).parents[1]))  # the zoo is a package beside the tests' folders

from zoo import parity
from zoo.registry import ZOO

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit
from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import compatible
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings, build_space

ANY_DEVICE = Capabilities("any", formats=tuple((bits, activations) for bits in (8, 4, 3, 2) for activations in (8, 32)))
EVERY = SpaceSettings(
    rank_kinds=("svd", "nmf", "spatial", "tucker"), schemes=("symmetric", "asymmetric", "tensor"), groups=(0, 16),
    halves=("fp16", "bf16"), clusters=(4, 2), binary=(1, 2), sparsity=(0.5, 0.1, "2:4", "0.5 in 2x2"), end_bits=2,
)


def tensors(outputs):
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_what_is_stored_computes_what_was_built(name):
    item = parity.subject(name)
    model = copy.deepcopy(item.model).float()
    args = tuple(one.float() if one.is_floating_point() else one for one in item.args)
    program = build_program(model, args)
    flat = program.flatten_inputs(args, {})
    entries = Entries(program, calibrate(program, [flat]))
    space = build_space(program.structure, [ANY_DEVICE], EVERY)
    draw = random.Random(3)
    drawn = {unit: draw.choice(options) for unit, options in space.options.items()}
    chosen = compatible({unit: choice for unit, choice in drawn.items() if choice is not None})
    network = refit(program, entries, plan(program.structure, Policy.of(chosen)), tuple(flat))
    compressed = realise(model, program, network)
    assert compressed.size_bytes == network.plan.stored_bytes
    with torch.inference_mode():
        wanted, found = tensors(forward(program, network, flat)), tensors(compressed(*args))
    for one, other in zip(wanted, found, strict=True):
        assert bool(torch.isfinite(one).all())
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))
