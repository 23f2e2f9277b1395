"""From calibration samples to a finished model: what a search builds finalists by, and a model of one policy too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.compressed_model import CompressedModel, run_batches
from paretopress.compressors.entries import Entries, Importance
from paretopress.compressors.network import Network, dense_network
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.quantisation import RangeMethod, RoundingMethod
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit, settle
from paretopress.evaluators.batches import Batch, Batches
from paretopress.evaluators.divergence import divergence
from paretopress.evaluators.metrics import concatenate_outputs
from paretopress.spaces.errors import UnsupportedModelError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

EXAMPLE_SAMPLES = 4
CALIBRATION_SAMPLES = 1024
TUNING_SAMPLES = 256
REFIT_SAMPLES = 512
TRAINING_SAMPLES = 10_000   # of a search: every worker holds them

Scores = Mapping[str, float]


def captured(model: nn.Module, samples: Batches) -> Program:
    """Capture a model on the first samples of a set.

    Raises:
        UnsupportedModelError: It cannot be captured, or one of its tensors holds what cannot be computed with.
    """
    example = samples.first(EXAMPLE_SAMPLES)[0]
    program = build_program(model, example.args, dict(example.kwargs))
    weights = {name for layer in program.structure.layers for name in (layer.weight, layer.bias)}
    for name, tensor in program.state.items():
        if tensor.is_floating_point():   # masks may hold infinities
            bad = ~tensor.isfinite() if name in weights else tensor.isnan()
            if bool(bad.any()):
                where = f"{int(bad.sum())} of {tensor.numel()} places"
                raise UnsupportedModelError(f"the model's tensor {name!r} holds NaN or infinities in {where}")
    return program


def flat_inputs(program: Program, samples: Batches) -> tuple[Tensor, ...]:
    """All samples of a set as one batch, one tensor per model input in the order of the graph."""
    return tuple(program.flatten_inputs(samples.whole.args, samples.whole.kwargs))


def calibrated(
    program: Program, samples: Batches, importance: Importance = "obs", *, seed: int = 0,
    ranges: RangeMethod = "mse", rounding: RoundingMethod = "feedback", equalise: bool = False,
    base: Network | None = None, progress: Callable[[int, int], None] | None = None,
) -> Entries:
    """Calibrate a captured model on the first samples of a set; its compressed layers are made on demand.

    Args:
        program: The capture.
        samples: Their first `CALIBRATION_SAMPLES` are used.
        importance: How channels are ranked.
        seed: Of the sampled positions.
        ranges: How ranges of quantised activations are chosen.
        base: Stands for the dense model, in its shapes; by default its own weights.
        rounding: How weights find their integers.
        equalise: Whether layers are rescaled against those that read them first.
        progress: Called with batches done and in all.
    """
    batches = [program.flatten_inputs(batch.args, batch.kwargs) for batch in samples.first(CALIBRATION_SAMPLES)]
    calibration = calibrate(program, batches, tuning_samples=TUNING_SAMPLES, seed=seed, ranges=ranges,
                            equalise=equalise, base=base, progress=progress)
    return Entries(program, calibration, importance, seed=seed, rounding=rounding)


def stitched(entries: Entries, policy: Policy) -> tuple[Network, float]:
    """Return the tuned network of a policy and its divergence on the tuning samples."""
    program, calibration = entries.program, entries.calibration
    if policy.is_dense:
        return calibration.base, 0.0
    network, values = settle(entries, plan(program.structure, policy))
    dense = [calibration.values[name] for name in program.graph.outputs]
    return network, divergence(dense, [values[name] for name in program.graph.outputs])


def build(
    entries: Entries,
    policy: Policy,
    inputs: Sequence[Tensor],
    score: Callable[[Network], Scores],
    seed: int,
    known: Scores | None = None,
) -> tuple[Network, str, Scores, Scores]:
    """Build a policy by the refit pass; keep the stitched build where that one diverges less.

    Args:
        entries: Memoised compressed layers of the model.
        policy: What to build.
        inputs: Calibration samples as one batch.
        score: Returns at least the `divergence` of a network on samples that nothing is fitted to.
        seed: Seed of the refit's sampled positions.
        known: Scores of the stitched build where they are known: it is made only if it is better than the refit then.

    Returns:
        The network; which build it is, `"dense"`, `"entries"` or `"refit"`; the scores of the stitched build and of
        the one that is returned.
    """
    first: Network | None = None
    if known is None or policy.is_dense:
        first, _ = stitched(entries, policy)
        known = score(first)
    if first is not None and policy.is_dense:
        return first, "dense", known, known
    with torch.inference_mode():
        refitted = refit(entries.program, entries, plan(entries.program.structure, policy), inputs, seed=seed)
    after = score(refitted)
    if after["divergence"] <= known["divergence"]:
        return refitted, "refit", known, after
    return first or stitched(entries, policy)[0], "entries", known, known


def realised(model: nn.Module, program: Program, network: Network) -> CompressedModel:
    """Return the compressed model of a network; under the dense policy a copy of the user's own, nothing folded."""
    if network.plan.policy.is_dense:
        network = dense_network(program, plan(program.structure, network.plan.policy))
    return realise(model, program, network)


def outputs_of(program: Program, network: Network, batch: Batch) -> Any:  # noqa: ANN401
    """Outputs of a network on one batch, as the model returns them."""
    with torch.inference_mode():
        return run_batches(program, network, program.flatten_inputs(batch.args, batch.kwargs))


def outputs_on(program: Program, network: Network, samples: Batches) -> Any:  # noqa: ANN401
    """Outputs of a network on a set, as the model returns them."""
    return concatenate_outputs([outputs_of(program, network, batch) for batch in samples])


def flat_outputs(outputs: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    """The tensors among a model's outputs, in order."""
    return tuple(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))
