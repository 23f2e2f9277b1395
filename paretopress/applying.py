"""From a model, data and one policy to a compressed model, by the code that builds a search's finalists."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paretopress.compressors.calibration import base_network
from paretopress.compressors.compressed_model import CompressedModel, network_of
from paretopress.compressors.distillation import DistillationSettings, distil
from paretopress.compressors.entries import IMPORTANCES, Entries
from paretopress.compressors.network import Network
from paretopress.compressors.program import Program
from paretopress.compressors.quantisation import RANGE_METHODS, ROUNDING_METHODS, RangeMethod, RoundingMethod
from paretopress.evaluators.batches import Batches, Set, normalise_set
from paretopress.evaluators.construction import (
    CALIBRATION_SAMPLES,
    REFIT_SAMPLES,
    Scores,
    build,
    calibrated,
    captured,
    flat_inputs,
    flat_outputs,
    outputs_on,
    realised,
    stitched,
)
from paretopress.evaluators.data import BATCH_SIZE, FEWEST_APART, Data, prepare
from paretopress.evaluators.divergence import divergence
from paretopress.evaluators.gradual_construction import APPROACHES, ROUNDS, Gradual, approached
from paretopress.progress import ProgressObserver
from paretopress.settings import parse_duration
from paretopress.spaces.choices import Weights
from paretopress.spaces.errors import ArtifactError, ConfigError, unknown_name
from paretopress.spaces.methods import Assignment
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.structure import Structure

COMPARED_SAMPLES = 1000   # that both builds of a policy are compared on
APART = 4                 # every fourth sample is kept from the fit where there is no search set

Distil = bool | int | str | DistillationSettings
Decide = Policy | Callable[[Structure], Assignment]


@dataclass(frozen=True)
class Ranked:
    """What makes the policy once the channels can be ranked."""

    decide: Callable[[Entries], Assignment]


@dataclass(frozen=True)
class Sets:
    """What the samples are used for.

    Attributes:
        fitted: Layers are fitted to these.
        compared: The builds of a policy are compared on these.
        training: Distillation trains on these.
    """

    fitted: Batches
    compared: Batches
    training: Batches

    @classmethod
    def of(cls, data: Data | Set) -> Sets:
        """Divide the user's data: the sets of a `Data` as a search does, calibration inputs where that leaves enough.

        Raises:
            DataError: Data that is empty, not finite, or of differing shapes.
        """
        if isinstance(data, Data):
            prepared = prepare(data)
            return cls(prepared.fitted, prepared.scored, prepared.train or prepared.calibration)
        whole = normalise_set(data, "calibration", BATCH_SIZE, needs_targets=False)
        if whole.count < APART * FEWEST_APART:
            return cls(whole, whole, whole)
        rows = range(whole.count)
        fitted = [row for row in rows if row % APART]
        return cls(whole.take(fitted), whole.take(rows[::APART]), whole)


def apply_policy(
    model: nn.Module,
    data: Data | Set,
    decide: Decide | Ranked,
    *,
    refit: bool = True,
    distillation: DistillationSettings | None = None,
    schedule: str = "one-shot",
    rounds: int = ROUNDS,
    importance: str = "obs",
    ranges: RangeMethod = "mse",
    rounding: RoundingMethod = "feedback",
    equalise: bool = False,
    seed: int = 0,
    observer: ProgressObserver | None = None,
) -> CompressedModel:
    """Build one policy.

    Args:
        model: The dense model; it is not changed.
        data: A `Data`, or calibration inputs.
        decide: The policy, or what makes it from the captured model's structure, or from the calibrated model.
        refit: Whether the refit pass is tried as well.
        distillation: How the result is distilled, None for not at all.
        schedule: `"one-shot"`, or how the policy is approached while training.
        rounds: Cuts of `"iterative"`.
        importance: How channels are ranked.
        ranges: How ranges of quantised activations are chosen.
        rounding: How weights find their integers.
        equalise: Whether layers are rescaled against those that read them first.
        seed: Of everything that is drawn.
        observer: Hears about progress.

    Raises:
        ParetopressError: What cannot be done, in one line.
    """
    _check_model(model)
    if importance not in IMPORTANCES:
        raise ConfigError(unknown_name("importance", str(importance), IMPORTANCES))
    _check_quantisation(ranges, rounding, equalise)
    gradual = gradual_settings(schedule, rounds, distillation)
    watcher, sets = observer or ProgressObserver(), Sets.of(data)
    with torch.inference_mode(mode=False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        watcher.stage("capture", None)
        program = captured(model, sets.fitted)
        # What the model does not have is refused before anything is spent.
        decided = None if isinstance(decide, Ranked) else _decided(program.structure, decide)
        watcher.stage("calibrate", len(sets.fitted.first(CALIBRATION_SAMPLES)))
        entries = calibrated(program, sets.fitted, importance, seed=seed, ranges=ranges, rounding=rounding,
                             equalise=equalise, progress=lambda *_: watcher.advance())
        if isinstance(decide, Ranked):
            decided = _decided(program.structure, lambda _: decide.decide(entries))
        assert decided is not None
        policy, assignment = decided
        entries.widths = tuple(sorted({one.bits for _, one in policy if isinstance(one, Weights)}, reverse=True))
        if gradual is not None and not policy.is_dense:
            watcher.stage("train", (gradual.shares - 1) * gradual.share.steps)
            distillation, training = gradual.share, flat_inputs(program, sets.training)
            entries = approached(entries, policy, sets.fitted, training, gradual, seed=seed, progress=watcher.advance)
        if refit:
            watcher.stage("refit", None)
            inputs = flat_inputs(program, sets.fitted.first(REFIT_SAMPLES))
            network, tier, _, _ = build(entries, policy, inputs, _judge(program, base_network(program), sets), seed)
        else:
            network, tier = stitched(entries, policy)[0], "dense" if policy.is_dense else "entries"
        if distillation is not None:
            network, tier = _distilled(program, network, tier, sets, distillation, seed, watcher)
        compressed = realised(model, program, network)
    compressed.tier, compressed.assignment = tier, assignment
    return compressed


def _decided(structure: Structure, decide: Decide) -> tuple[Policy, Assignment | None]:
    assignment = None if isinstance(decide, Policy) else decide(structure)
    policy = assignment.policy if assignment is not None else decide
    assert isinstance(policy, Policy)
    if assignment is not None and policy.is_dense:
        _warn_of_nothing(assignment)
    plan(structure, policy)
    return policy, assignment


def distil_further(
    compressed: CompressedModel,
    model: nn.Module,
    data: Data | Set,
    settings: DistillationSettings,
    *,
    seed: int = 0,
    observer: ProgressObserver | None = None,
) -> CompressedModel:
    """Train a compressed model against the dense one, of which it was made.

    Raises:
        ArtifactError: It was made of a model with other operators.
    """
    _check_model(model)
    watcher, sets = observer or ProgressObserver(), Sets.of(data)
    with torch.inference_mode(mode=False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        program = captured(model, sets.fitted)
        if program.structure.fingerprint != compressed.delta.structure:
            raise ArtifactError("the compressed model belongs to another model: its operators are not the same")
        network, tier = network_of(compressed), compressed.tier
        network, tier = _distilled(program, network, tier, sets, settings, seed, watcher)
        further = realised(model, program, network)
    further.tier, further.assignment = tier, compressed.assignment
    return further


def distillation_settings(distil: Distil) -> DistillationSettings | None:
    """Read what a user writes: False, True, a number of steps, a time (`"5m"`), or settings. Raises `ConfigError`."""
    if isinstance(distil, DistillationSettings):
        return distil
    if isinstance(distil, bool):
        return DistillationSettings() if distil else None
    if isinstance(distil, str):
        return DistillationSettings(seconds=parse_duration(distil, "distil"))
    if not isinstance(distil, int) or distil < 1:
        raise ConfigError(f"distil: got {distil!r} (allowed: True, False, a number of steps, a time such as '5m')")
    return DistillationSettings(steps=distil)


def gradual_settings(schedule: str, rounds: int, distillation: DistillationSettings | None) -> Gradual | None:
    """Read how a policy is approached; None for one cut. Raises `ConfigError`."""
    if schedule not in APPROACHES:
        raise ConfigError(unknown_name("schedule", str(schedule), APPROACHES))
    if schedule == "one-shot":
        return None
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 2:
        raise ConfigError(f"rounds: got {rounds!r} (allowed: a whole number from 2; one cut is schedule 'one-shot')")
    if distillation is None:
        raise ConfigError(f"schedule {schedule!r} trains before the last cut: give distil=True, steps, or a time")
    return Gradual(schedule, rounds, distillation)


def _judge(program: Program, base: Network, sets: Sets) -> Callable[[Network], Scores]:
    samples = sets.compared.first(COMPARED_SAMPLES)
    dense: list[tuple[Tensor, ...]] = []

    def score(network: Network) -> Scores:
        if not dense:
            dense.append(flat_outputs(outputs_on(program, base, samples)))
        return {"divergence": divergence(dense[0], flat_outputs(outputs_on(program, network, samples)))}

    return score


def _distilled(
    program: Program, network: Network, tier: str, sets: Sets, settings: DistillationSettings, seed: int,
    watcher: ProgressObserver,
) -> tuple[Network, str]:
    """The network distilled, where that brought it nearer to the dense model, and which build it is.

    Nearer on variations of the training samples is not enough: a short training may gain there and lose on samples
    as they are.
    """
    watcher.stage("distil", settings.steps)
    inputs = flat_inputs(program, sets.training)
    found = distil(program, network, inputs, settings, seed=seed, progress=lambda *_: watcher.advance())
    if found.network is network:
        return network, tier
    score = _judge(program, base_network(program), sets)
    nearer = score(found.network)["divergence"] < score(network)["divergence"]
    return (found.network, "distilled") if nearer else (network, tier)


def with_time(settings: DistillationSettings, steps: int | None, time: str | None) -> DistillationSettings:
    """Settings with a number of steps or a time, where they are given. Raises `ConfigError`."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ConfigError(f"distill: steps {steps!r} is not a whole number from 1")
    seconds = settings.seconds if time is None else parse_duration(time, "distill: time")
    return replace(settings, steps=settings.steps if steps is None else steps, seconds=seconds)


def _warn_of_nothing(assignment: Assignment) -> None:
    first = "; ".join(f"{unit}: {reason}" for unit, reason in assignment.left_dense[:1])
    warnings.warn(f"nothing was changed ({first}); left_dense has every reason", UserWarning, stacklevel=6)


def _check_quantisation(ranges: str, rounding: str, equalise: object) -> None:
    if ranges not in RANGE_METHODS:
        raise ConfigError(unknown_name("choice of ranges", str(ranges), RANGE_METHODS))
    if rounding not in ROUNDING_METHODS:
        raise ConfigError(unknown_name("rounding", str(rounding), ROUNDING_METHODS))
    if not isinstance(equalise, bool):
        raise ConfigError(f"equalise: got {equalise!r} (allowed: True, False)")


def _check_model(model: object) -> None:
    if isinstance(model, CompressedModel):
        raise ConfigError(
            "the model is compressed already; methods compose as policies on the dense model: "
            "paretopress.apply(model, data, one.policy.replace(other.policy.choices))"
        )
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
