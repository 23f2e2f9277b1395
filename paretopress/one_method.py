"""Compress a model by one method, without a search: `prune`, `quantize`, `factorize`, ... and `apply` for any policy.

All of them share the code of the search: the model is captured, its layers are calibrated, compressed with
compensation, rebuilt on their own compressed prefix, and realised as a `CompressedModel` that computes, saves, exports
and knows its bytes. The model that is given is not changed. What cannot have the method stays dense, and
`CompressedModel.left_dense` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from paretopress.spaces.errors import ConfigError
from paretopress.spaces.methods import (
    END_BITS,
    Assignment,
    Method,
    binarisation,
    clustering,
    factorisation,
    halving,
    pruning,
    quantisation,
    sparsification,
)
from paretopress.spaces.policy import Policy

if TYPE_CHECKING:
    from torch import nn

    from paretopress.applying import Distil
    from paretopress.compressors.compressed_model import CompressedModel
    from paretopress.compressors.distillation import DistillationSettings
    from paretopress.compressors.quantisation import RangeMethod, RoundingMethod
    from paretopress.evaluators.batches import Set
    from paretopress.evaluators.data import Data
    from paretopress.spaces.structure import Structure

__all__ = ["apply", "binarize", "cluster", "distill", "factorize", "halve", "prune", "quantize", "sparsify"]


def apply(
    model: nn.Module, data: Data | Set, policy: Policy, *, refit: bool = True, distil: Distil = False,
    schedule: str = "one-shot", rounds: int = 4, importance: str = "obs", rounding: RoundingMethod = "feedback",
    equalise: bool = False, seed: int = 0,
) -> CompressedModel:
    """Build one policy: any legal combination of the methods, in the order prune, factorise, sparsify, then a format.

    Methods compose as policies on the dense model, the later one first asked:
    `apply(model, data, pruned.policy.replace(quantized.policy.choices))`.

    Args:
        model: A trained model; it is taken in eval mode.
        data: A `paretopress.Data`, or calibration inputs: a tensor, a tuple or mapping of them, an iterable of batches.
        policy: What to do to each unit; see `Policy` and `Policy.load`.
        refit: Solve every layer again on what the compressed layers before it give, and keep that where it is nearer
            to the dense model's outputs on samples that nothing was fitted to.
        distil: Train the result against the dense model's outputs, without labels, on the `train` set or the
            calibration inputs: True, a number of steps, or a time such as `"5m"`.
        schedule: `"one-shot"`: removed at once. `"iterative"`: channels and weights go in several cuts, with training
            after each. `"lasso"`: trained to zero by a penalty on their size (weights one by one, channels in groups)
            before they go, then trained again. These two divide the time of `distil` among their trainings.
        rounds: Cuts of `"iterative"`.
        importance: How channels are ranked: `"obs"`, `"taylor"`, `"fisher"`, `"hessian"`, `"bn_scale"`, `"fpgm"`,
            `"l2"` or `"l1"`.
        rounding: How weights find their integers: `"feedback"`, `"nearest"` or `"learned"`; see `quantize`.
        equalise: Whether layers are rescaled against those that read them first; see `quantize`.
        seed: Of everything that is drawn: with the same seed, number of threads and no time the result is the same.

    Returns:
        The compressed model in eval mode.

    Raises:
        PolicyError: The policy names what the model does not have, what is frozen, or what does not go together.
        ConfigError: A malformed argument.
        DataError: Data that is empty, not finite, or of differing shapes.
        UnsupportedModelError: The model cannot be captured, or holds NaN.
    """
    from paretopress.applying import apply_policy, distillation_settings

    if not isinstance(policy, Policy):
        kind = type(policy).__name__
        raise ConfigError(f"apply: expected a paretopress.Policy, got {kind} (Policy.load reads a file)")
    settings = distillation_settings(distil)
    return apply_policy(model, data, policy, refit=refit, distillation=settings, schedule=schedule, rounds=rounds,
                        importance=importance, rounding=rounding, equalise=equalise, seed=seed)


def prune(
    model: nn.Module, data: Data | Set, ratio: float | Mapping[str, float | None] = 0.5, *,
    scope: Literal["each", "global", "threshold"] = "each", importance: str = "obs", schedule: str = "one-shot",
    rounds: int = 4, exclude: Sequence[str] = (), refit: bool = True, distil: Distil = False, seed: int = 0,
) -> CompressedModel:
    """Really remove channels; what is left makes up for them.

    Args:
        model: As for `apply`.
        data: As for `apply`.
        ratio: Fraction of each group's channels that is kept, in (0, 1); or globs of groups, or of layers that make
            their channels, to fractions. There, 0 drops the residual branch that a group is the inside of.
        scope: What the ratio is of: `"each"` group; `"global"`: all channels together, of which the least important
            ones go wherever they are; `"threshold"`: the importance, relative to the average channel of a group, below
            which channels go. Of these two at most nine tenths of a group go.
        importance: As for `apply`.
        schedule: As for `apply`.
        rounds: As for `apply`.
        exclude: Globs of layers and groups that stay as they are.
        refit: As for `apply`.
        distil: As for `apply`.
        seed: As for `apply`.

    Returns:
        As `apply`.

    Raises:
        ConfigError: A ratio outside its range, or a glob that matches nothing (with the nearest).
        PolicyError: None of what a glob names can be pruned, with the reason. Others as `apply`.
    """
    if scope == "each":
        return _by(pruning(ratio), model, data, exclude, refit=refit, distil=distil, seed=seed, importance=importance,
                   schedule=schedule, rounds=rounds)
    from paretopress.applying import Ranked, apply_policy, distillation_settings
    from paretopress.ranked_pruning import ranked_pruning

    decide = Ranked(ranked_pruning(ratio, scope, exclude))   # type: ignore[arg-type]   # it refuses mappings
    settings = distillation_settings(distil)
    return apply_policy(model, data, decide, refit=refit, distillation=settings, schedule=schedule, rounds=rounds,
                        importance=importance, seed=seed)


def quantize(
    model: nn.Module, data: Data | Set, bits: int | Mapping[str, int | None] = 8,
    activations: int | Literal["dynamic"] = 8, *,
    scheme: str = "symmetric", group: int = 0, ranges: RangeMethod = "mse", rounding: RoundingMethod = "feedback",
    equalise: bool = False, end_bits: int = END_BITS, exclude: Sequence[str] = (), refit: bool = True,
    distil: Distil = False, seed: int = 0,
) -> CompressedModel:
    """Store weights as packed integers, and compute in 8-bit integers where asked.

    Args:
        model: As for `apply`.
        data: As for `apply`.
        bits: 8, 4, 3 or 2; or globs of layers to them.
        activations: 8, or 32 to compute in floats on the integers; 16 or 4 to do so on inputs that each layer rounds to
            as many bits, which saves neither time nor bytes; `"dynamic"` to compute in 8-bit integers on ranges that
            each layer finds in its input, one for all samples of a batch.
        scheme: `"symmetric"`; without 8-bit activations also `"asymmetric"`: zero points, or `"tensor"`: one scale for
            all weights of a layer.
        group: Inputs that share a scale, a power of two from 16, without 8-bit activations; 0 for all of an output.
            ONNX Runtime computes linear layers on 4-bit weights in groups as they are.
        ranges: Of activations, as far as calibration chooses them: `"mse"` (least squared error), `"minmax"`, or
            `"percentile"` (without the outermost thousandth at either end).
        rounding: How each weight finds its integer: `"feedback"` (GPTQ: the weights still to come make up for each
            error), `"nearest"` (each on its own, on a grid chosen without the data), or `"learned"` (AdaRound: up or
            down by gradient, from what error feedback finds; seconds per layer). Embeddings take the nearest.
        equalise: Divide the channels of layers, and multiply them where they are read, so that the weights on either
            side are of like size: for one scale or range that many channels share. The float model computes the
            same; `CompressedModel.equalised` counts the pairs of layers.
        end_bits: Fewest bits of the weights and activations of the first and the last layers, but for those that `bits`
            names; 2 for no difference.
        exclude: Globs of layers that stay as they are.
        refit: As for `apply`.
        distil: As for `apply`.
        seed: As for `apply`.

    Returns:
        As `apply`.

    Raises:
        PolicyError: Widths that are not offered, or none of what a glob names can have them.
        ConfigError: A glob that matches nothing (with the nearest). Others as `apply`.
    """
    method = quantisation(bits, activations, end_bits, scheme, group)
    return _by(method, model, data, exclude, refit=refit, distil=distil, seed=seed, ranges=ranges, rounding=rounding,
               equalise=equalise)


def factorize(
    model: nn.Module, data: Data | Set, rank: int | float | Mapping[str, int | float | None] = 0.5, *,
    kind: Literal["svd", "nmf", "spatial", "tucker"] = "svd", scope: Literal["each", "energy", "budget"] = "each",
    exclude: Sequence[str] = (), refit: bool = True, distil: Distil = False, seed: int = 0,
) -> CompressedModel:
    """Replace layers by smaller ones, fitted to the outputs that calibration inputs give.

    Args:
        model: As for `apply`.
        data: As for `apply`.
        rank: A fraction in (0, 1) of the rank from which on the factors have no fewer weights than the layer, or a
            whole number; or globs of layers to either.
        kind: `"svd"`: two layers by singular values; `"spatial"`: windows (h, 1) and (1, w); `"tucker"`: 1x1, a
            narrower window, 1x1; `"nmf"`: two layers of non-negative factors, one pair for each sign.
        scope: What the rank is: of `"each"` layer as above; `"energy"`: the share of each layer's energy (the variance
            of its outputs) to be kept; `"budget"`: the fraction of the weights of all layers together, of which those
            stay that keep most of it. These two are for `"svd"`; a layer whose rank saves nothing stays whole.
        exclude: Globs of layers that stay as they are.
        refit: As for `apply`.
        distil: As for `apply`.
        seed: As for `apply`.

    Returns:
        As `apply`.

    Raises:
        PolicyError: A rank below 1, an unknown kind, or none of what a glob names can have it.
        ConfigError: A fraction outside (0, 1), or a glob that matches nothing (with the nearest). Others as `apply`.
    """
    if scope == "each":
        return _by(factorisation(rank, kind), model, data, exclude, refit=refit, distil=distil, seed=seed)
    from paretopress.applying import Ranked, apply_policy, distillation_settings
    from paretopress.ranked_factors import ranked_factors

    decide = Ranked(ranked_factors(rank, scope, kind, exclude))   # type: ignore[arg-type]   # it refuses mappings
    return apply_policy(model, data, decide, refit=refit, distillation=distillation_settings(distil), seed=seed)


def sparsify(
    model: nn.Module, data: Data | Set, density: float | str | Mapping[str, float | str | None] = 0.5, *,
    schedule: str = "one-shot", rounds: int = 4, exclude: Sequence[str] = (), refit: bool = True,
    distil: Distil = False, seed: int = 0,
) -> CompressedModel:
    """Store a part of the weights and their places; the others make up for what is gone. Saves bytes, not time.

    Args:
        model: As for `apply`.
        data: As for `apply`.
        density: Fraction kept, `"2:4"` (two of every four neighbours), or `"0.25 in 4x1"` (whole blocks); or globs of
            layers to them.
        schedule: As for `apply`; patterns `"n:m"` come with the last cut.
        rounds: As for `apply`.
        exclude: Globs of layers that stay as they are.
        refit: As for `apply`.
        distil: As for `apply`.
        seed: As for `apply`.

    Returns:
        As `apply`.

    Raises:
        PolicyError: A density outside (0, 1) or a pattern that is none.
        ConfigError: A glob that matches nothing (with the nearest). Others as `apply`.
    """
    return _by(sparsification(density), model, data, exclude, refit=refit, distil=distil, seed=seed, schedule=schedule,
               rounds=rounds)


def binarize(
    model: nn.Module, data: Data | Set, bases: int | Mapping[str, int | None] = 1, activations: int = 32, *,
    end_bits: int = END_BITS, exclude: Sequence[str] = (), refit: bool = True, distil: Distil = False, seed: int = 0,
) -> CompressedModel:
    """Store weights as signs with a scale per output and base. Without distillation few models survive it.

    Args:
        model: As for `apply`.
        data: As for `apply`.
        bases: 1 to 3: every further one holds the signs of what is left; or globs of layers to them.
        activations: 32 to compute in floats, 8 in 8-bit integers, 1 to make signs of the inputs too.
        end_bits: The first and the last layers, but for those that `bases` names, get integers of that width; 2 gives
            them 2 bits where there is 1 basis.
        exclude: Globs of layers that stay as they are.
        refit: As for `apply`.
        distil: As for `apply`.
        seed: As for `apply`.

    Returns:
        As `apply`.

    Raises:
        PolicyError: Bases or activations that are not offered, or none of what a glob names can be signs.
        ConfigError: A glob that matches nothing (with the nearest). Others as `apply`.
    """
    return _by(binarisation(bases, activations, end_bits), model, data, exclude, refit=refit, distil=distil, seed=seed)


def cluster(
    model: nn.Module, data: Data | Set, bits: int | Mapping[str, int | None] = 4, *, end_bits: int = END_BITS,
    exclude: Sequence[str] = (), refit: bool = True, distil: Distil = False, seed: int = 0,
) -> CompressedModel:
    """Share `2^bits` values among the weights of each layer, times a scale per output. Saves bytes, not time.

    Args:
        model: As for `apply`.
        data: As for `apply`.
        bits: 2 to 8; or globs of layers to them.
        end_bits: The first and the last layers, but for those that `bits` names, get integers of that width where
            `bits` is less.
        exclude: Globs of layers that stay as they are.
        refit: As for `apply`.
        distil: As for `apply`.
        seed: As for `apply`.

    Returns:
        As `apply`.

    Raises:
        PolicyError: Bits that are not offered, or none of what a glob names can have them.
        ConfigError: A glob that matches nothing (with the nearest). Others as `apply`.
    """
    return _by(clustering(bits, end_bits), model, data, exclude, refit=refit, distil=distil, seed=seed)


def halve(
    model: nn.Module, data: Data | Set, kind: str | Mapping[str, str | None] = "fp16", *,
    exclude: Sequence[str] = (), refit: bool = True, distil: Distil = False, seed: int = 0,
) -> CompressedModel:
    """Store weights as 16-bit floats; they compute in 32 bits. Saves bytes, not time.

    Args:
        model: As for `apply`.
        data: As for `apply`.
        kind: `"fp16"` or `"bf16"`; or globs of layers to them.
        exclude: Globs of layers that stay as they are.
        refit: As for `apply`.
        distil: As for `apply`.
        seed: As for `apply`.

    Returns:
        As `apply`.

    Raises:
        PolicyError: Another kind.
        ConfigError: A glob that matches nothing (with the nearest). Others as `apply`.
    """
    return _by(halving(kind), model, data, exclude, refit=refit, distil=distil, seed=seed)


def distill(
    compressed: CompressedModel | Policy, model: nn.Module, data: Data | Set, *, steps: int | None = None,
    time: str | None = None, settings: DistillationSettings | None = None, seed: int = 0,
) -> CompressedModel:
    """Train a compressed model against the dense one, without labels; the better of before and after is returned.

    Args:
        compressed: What `apply` and the methods return or `paretopress.load` reads, or a policy, which is built first.
        model: The dense model that it was made of.
        data: A `paretopress.Data`, of which the train set is used where there is one, or calibration inputs.
        steps: Gradient steps, 1,500 by default.
        time: A limit such as `"5m"`; the schedule then ends early, and the result depends on the machine's speed.
        settings: Batch size, rates, how inputs are varied and so on; the two above replace what it says of them.
        seed: Of everything that is drawn.

    Returns:
        The trained model, or the compressed one as it was where that is nearer to the dense model.

    Raises:
        ConfigError: A malformed argument.
        ArtifactError: The compressed model was made of another model. Others as `apply`.
    """
    from paretopress.applying import apply_policy, distil_further, with_time
    from paretopress.compressors.compressed_model import CompressedModel
    from paretopress.compressors.distillation import DistillationSettings

    settings = with_time(settings or DistillationSettings(), steps, time)
    if isinstance(compressed, Policy):
        return apply_policy(model, data, compressed, distillation=settings, seed=seed)
    if not isinstance(compressed, CompressedModel):
        kind = type(compressed).__name__
        raise ConfigError(f"distill: expected a compressed model or a paretopress.Policy first, got {kind}")
    return distil_further(compressed, model, data, settings, seed=seed)


def _by(
    method: Method, model: nn.Module, data: Data | Set, exclude: Sequence[str], *, refit: bool, distil: Distil,
    seed: int, importance: str = "obs", ranges: RangeMethod = "mse", rounding: RoundingMethod = "feedback",
    equalise: bool = False, schedule: str = "one-shot", rounds: int = 4,
) -> CompressedModel:
    from paretopress.applying import apply_policy, distillation_settings

    if isinstance(exclude, str):
        raise ConfigError(f"exclude: expected a list of globs, got the text {exclude!r}")
    settings = distillation_settings(distil)

    def decide(structure: Structure) -> Assignment:
        return method.assign(structure, exclude)

    return apply_policy(
        model, data, decide, refit=refit, distillation=settings, schedule=schedule, rounds=rounds,
        importance=importance, ranges=ranges, rounding=rounding, equalise=equalise, seed=seed)
