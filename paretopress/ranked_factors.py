"""Ranks that follow from the layers' singular values: by a share of their energy, or by a budget of weights for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from paretopress.compressors.entries import Entries
from paretopress.compressors.factors import position_matrix, position_moments
from paretopress.compressors.low_rank import Spectrum, budget_ranks, energy_rank, whitened_svd
from paretopress.compressors.network import layer_columns
from paretopress.spaces.choices import Choice, Factorised
from paretopress.spaces.errors import ConfigError, DataError, unknown_name
from paretopress.spaces.factor_forms import break_even
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.methods import Assignment, factorisation
from paretopress.spaces.policy import Policy

RankScope = Literal["each", "energy", "budget"]
RANK_SCOPES: tuple[RankScope, ...] = ("each", "energy", "budget")


def ranked_factors(level: float, scope: str, kind: str, exclude: Sequence[str]) -> Callable[[Entries], Assignment]:
    """What decides about ranks, once the singular values are known.

    Args:
        level: `"energy"`: share of each layer's energy (variance of its outputs) that its factors keep; `"budget"`:
            fraction that is kept of the weights of all layers that can be factorised, those that lose least first.
        scope: Either of them.
        kind: Kind of the factors; singular values say something of `"svd"` alone.
        exclude: Globs of layers that stay as they are.

    Raises:
        ConfigError: A scope that there is not, a level out of range, or another kind of factors.
    """
    if scope not in RANK_SCOPES:
        raise ConfigError(f"factorize: {unknown_name('scope', str(scope), RANK_SCOPES)}")
    if kind != "svd":
        raise ConfigError(f"factorize: scope {scope!r} goes by singular values, which {kind!r} factors have none of "
                          "(allowed: kind 'svd')")
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0.0 < level < 1.0:
        raise ConfigError(f"factorize: rank {level!r} is none of scope {scope!r} (allowed: a fraction in (0, 1), for "
                          "all layers)")

    def decide(entries: Entries) -> Assignment:
        structure = entries.program.structure
        offered = factorisation(0.5, kind).assign(structure, exclude)
        dense = dict(offered.left_dense)
        layers = [layer for layer in structure.layers if f"{layer.name}/rank" in offered.policy.choices]
        choices: dict[str, Choice] = {}
        for layer, rank in zip(layers, _ranks(entries, layers, float(level), scope), strict=True):
            if rank is None or rank >= break_even(kind, layer):
                dense[f"{layer.name}/rank"] = _why_whole(layer, rank, float(level))
            else:
                choices[f"{layer.name}/rank"] = Factorised(kind, rank)
        return Assignment(Policy.of(choices), tuple(dense.items()))

    return decide


def _ranks(entries: Entries, layers: Sequence[Layer], level: float, scope: str) -> list[int | None]:
    spectra = [spectrum_of(entries, layer) for layer in layers]
    if scope == "energy":
        return [energy_rank(spectrum.sigma, level) for spectrum in spectra]
    weights = sum(spectrum.out * spectrum.columns for spectrum in spectra)
    try:
        return budget_ranks(spectra, round(level * weights))
    except DataError as error:
        raise ConfigError(f"factorize: rank {level:g} of all weights is out of reach: {error}") from None


def spectrum_of(entries: Entries, layer: Layer) -> Spectrum:
    """A layer's whitened singular values, relative to the variance of its outputs: no layer counts for its scale."""
    calibration = entries.calibration
    matrix, moments = layer_columns(calibration.folded[layer.node][0]), calibration.layers[layer.node].moments
    if layer.kind is LayerKind.TRANSPOSED:
        window = product(layer.window)
        matrix, moments = position_matrix(matrix, window), position_moments(moments, window)
    sigma = whitened_svd(matrix, moments).sigma
    total = float(sigma.square().sum())
    return Spectrum(sigma / total**0.5 if total > 0.0 else sigma, len(matrix), matrix.shape[1])


def _why_whole(layer: Layer, rank: int | None, level: float) -> str:
    if rank is None:
        return "its weights are worth more than those of other layers"
    even = break_even("svd", layer)
    return f"{level:g} of its energy takes rank {rank}, not below the break-even {even:.3g}: no fewer weights"
