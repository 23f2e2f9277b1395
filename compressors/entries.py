"""Entries: every (layer, level, rank, bits) compressed once, with the dense statistics, and memoised.

The order inside a layer is prune, refit, factorise, sparsify, then the format of the weights. Entries hold all output
rows of the dense layer where rows are independent, so that one entry serves every level of the output group; factorised
and sparse layers and shared weights depend on the output level too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from paretopress.compressors.calibration import Calibration
from paretopress.compressors.channel_selection import kept_from_order
from paretopress.compressors.curvature import relative_curvature
from paretopress.compressors.folding import pruned_state
from paretopress.compressors.least_squares import refit_consumer
from paretopress.compressors.matrices import (
    Matrix,
    factorise,
    in_format,
    quantise_matrix,
    real_parts,
    table_in_format,
)
from paretopress.compressors.network import (
    Network,
    Part,
    Selection,
    axis_index,
    kept_columns,
    layer_columns,
    select,
)
from paretopress.compressors.program import Program
from paretopress.compressors.quantisation import RoundingMethod
from paretopress.compressors.ranking import IMPORTANCES, Importance, Ranking, rank_channels
from paretopress.spaces.choices import WEIGHT_BITS, Binary, Factorised, Weights
from paretopress.spaces.coupling import Axis, ChannelGroup
from paretopress.spaces.layer_formats import in_floats
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.plan import LayerPlan, Plan

__all__ = ["IMPORTANCES", "Entries", "Importance"]


@dataclass
class Entries:
    """Memoised compressed layers of one model under one calibration.

    Attributes:
        program: The captured dense model.
        calibration: Dense statistics.
        importance: How channels are ranked.
        compensate: Whether consumers are refitted by least squares after pruning.
        seed: Of the random vectors of the Hessian importance.
        gone: By group the blocks that are zero in the dense network already: they go first.
        rounding: How weights find their integers.
        widths: Bits of plain integers that one sweep of a layer gives; fewer take less time.
    """

    program: Program
    calibration: Calibration
    importance: Importance = "obs"
    compensate: bool = True
    seed: int = 0
    gone: Mapping[str, Tensor] = field(default_factory=dict)
    rounding: RoundingMethod = "feedback"
    widths: tuple[int, ...] = WEIGHT_BITS
    _rankings: dict[str, Ranking] = field(default_factory=dict, repr=False)
    _curvature: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _refitted: dict[tuple[object, ...], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _formed: dict[tuple[object, ...], Matrix] = field(default_factory=dict, repr=False)
    _quantised: dict[tuple[object, ...], dict[int, Matrix]] = field(default_factory=dict, repr=False)
    _factored: dict[tuple[object, ...], tuple[tuple[Matrix, ...], tuple[Tensor, ...], Tensor]] = field(
        default_factory=dict, repr=False
    )

    def selection(self, plan: Plan) -> Selection:
        """Kept channels of every pruned group of a plan."""
        groups = plan.structure.coupling.groups
        return {
            group.name: kept_from_order(self.order(group), plan.kept[group.name] // group.step, group.step)
            for group in groups
            if 0 < plan.kept[group.name] < group.size
        }

    def stitch(self, plan: Plan) -> Network:
        """Return the network of a plan: every layer from its entry, no ranges yet."""
        selection = self.selection(plan)
        parts = {layer.layer.node: self.parts(layer, selection) for layer in plan.layers}
        state = pruned_state(self.program.under(plan.structure), selection)
        equalised = self.calibration.base.equalised
        return Network(plan, parts, state, {}, selection, folded=True, equalised=equalised)

    def parts(self, layer_plan: LayerPlan, selection: Selection) -> tuple[Part, ...]:
        """The real layers of one layer plan, from the dense statistics."""
        layer = layer_plan.layer
        if layer.frozen:
            return (Part(*self.calibration.folded[layer.node]),)
        axes = self._axes(layer)
        if layer.kind is LayerKind.EMBEDDING:
            table = select(self.calibration.folded[layer.node][0], axes, selection)
            return (table_in_format(table, layer_plan.form, layer_plan.sparse).part(layer_plan.shape),)
        key: tuple[object, ...] = (layer.name, self._level(axes[1], selection))
        if layer_plan.factors is not None:
            key = (*key, self._level(axes[0], selection), layer_plan.factors)
            matrices, read, moments = self._factors(key, layer, axes, selection, layer_plan.factors)
            formed = [self._in_format((*key, index), layer_plan, matrix, inputs)
                      for index, (matrix, inputs) in enumerate(zip(matrices, read, strict=True))]
            return real_parts(layer_plan, formed, moments)
        weight, bias, moments = self._refit(key, layer, axes, selection)
        dense, rows = Matrix(weight, bias), axis_index(axes[0], selection)
        if layer_plan.form is None and layer_plan.sparse is None:
            matrix = dense.rows(rows)
        elif isinstance(layer_plan.form, Weights) and layer_plan.form.is_plain and layer_plan.sparse is None:
            matrix = self._quantise(key, dense, moments, layer_plan.form).rows(rows)
        else:   # what rows share, or which of all are kept, depends on which rows there are
            key = (*key, self._level(axes[0], selection))
            moments = moments if rows is None or layer.groups == 1 else _of_groups(moments, rows, layer)
            matrix = self._in_format(key, layer_plan, dense.rows(rows), moments)
        return real_parts(layer_plan, [matrix], moments)

    def float_matrix(self, layer_plan: LayerPlan, selection: Selection) -> tuple[Tensor, Tensor]:
        """Weight matrix and bias of a layer at its pruned size, refitted, neither factorised nor quantised."""
        layer = layer_plan.layer
        axes = self._axes(layer)
        weight, bias, _ = self._refit((layer.name, self._level(axes[1], selection)), layer, axes, selection)
        rows = axis_index(axes[0], selection)
        return (weight, bias) if rows is None else (weight[rows], bias[rows])

    def order(self, group: ChannelGroup) -> Tensor:
        """Blocks of a group's channels from least to most important."""
        return self.ranking(group).order

    def ranking(self, group: ChannelGroup) -> Ranking:
        """Order and importance of a group's blocks of channels."""
        if group.name not in self._rankings:
            found = rank_channels(self.program, self.calibration, self.importance, group, self.curvature)
            gone = self.gone.get(group.name)
            if gone is not None:
                found = replace(found, order=torch.cat([gone, found.order[~torch.isin(found.order, gone)]]))
            self._rankings[group.name] = found
        return self._rankings[group.name]

    def curvature(self) -> Mapping[str, Tensor]:
        """The curvature of the loss along the weights of every output of a layer, one estimate for all groups.

        Workers that get it with the entries need not estimate it again.
        """
        if not self._curvature:
            found = relative_curvature(self.program, self.calibration, seed=self.seed)
            self._curvature.update({node: layer_columns(curved).sum(dim=1) for node, curved in found.items()})
        return self._curvature

    def _axes(self, layer: Layer) -> tuple[Axis, ...]:
        return self.program.structure.weight_axes(layer)

    @staticmethod
    def _level(axis: Axis, selection: Selection) -> tuple[tuple[str, int], ...]:
        groups = dict.fromkeys(segment.group for segment in axis or ())
        return tuple((name, len(selection[name])) for name in groups if name in selection)

    def _refit(
        self, key: tuple[object, ...], layer: Layer, axes: tuple[Axis, ...], selection: Selection
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weight matrix and bias refitted to the kept inputs, and the moments of those inputs."""
        if key not in self._refitted:
            weight, bias = self.calibration.folded[layer.node]
            matrix, moments = layer_columns(weight), self.calibration.layers[layer.node].moments
            columns = kept_columns(layer, axes[1], selection)
            if columns is not None:
                with_intercept = torch.cat([columns, torch.tensor([matrix.shape[1]])])
                if self.compensate and layer.mixes_all:
                    matrix, bias = refit_consumer(matrix, bias, moments, columns)
                else:   # the same channels of every group of a grouped convolution
                    matrix = matrix[:, columns]
                moments = moments[..., with_intercept, :][..., with_intercept]
            self._refitted[key] = (matrix, bias, moments)
        return self._refitted[key]

    def _quantise(self, key: tuple[object, ...], dense: Matrix, moments: Tensor, form: Weights) -> Matrix:
        """The matrix at one width; one error-feedback sweep gives all that are offered, learning each costs its own."""
        alone = self.rounding == "learned" or form.bits not in self.widths
        widths = (form.bits,) if alone else self.widths
        key = (*key, widths, form.highest)
        if key not in self._quantised:
            self._quantised[key] = quantise_matrix(dense, moments, widths, self.rounding, form.highest)
        return self._quantised[key][form.bits]

    def _in_format(self, key: tuple[object, ...], layer_plan: LayerPlan, dense: Matrix, moments: Tensor) -> Matrix:
        """A matrix in the format of its plan; all widths of integers come from one sweep."""
        form, sparse = layer_plan.form, layer_plan.sparse
        if form is None and sparse is None:
            return dense
        if isinstance(form, Weights) and form.is_plain and sparse is None:
            return self._quantise(key, dense, moments, form)
        if isinstance(form, Binary) or (isinstance(form, Weights) and form.activations != 8):   # equal weights
            form = in_floats(form)
        whole = (*key, form, sparse)
        if whole not in self._formed:
            self._formed[whole] = in_format(dense, moments, form, sparse, self.rounding)
        return self._formed[whole]

    def _factors(
        self, key: tuple[object, ...], layer: Layer, axes: tuple[Axis, ...], selection: Selection, form: Factorised
    ) -> tuple[tuple[Matrix, ...], tuple[Tensor, ...], Tensor]:
        """The factors of a layer, the moments of what each reads, and those of the layer's input."""
        if key not in self._factored:
            rows = axis_index(axes[0], selection)
            weight, bias, moments = self._refit((layer.name, self._level(axes[1], selection)), layer, axes, selection)
            if rows is not None:
                weight, bias = weight[rows], bias[rows]
            self._factored[key] = (*factorise(layer, Matrix(weight, bias), moments, form), moments)
        return self._factored[key]

    @property
    def identity(self) -> Mapping[str, object]:
        """What the entries depend on besides model and data."""
        return {"importance": self.importance, "compensate": self.compensate, "seed": self.seed,
                "ranges": self.calibration.ranges, "rounding": self.rounding,
                "equalised": self.calibration.base.equalised}


def _of_groups(moments: Tensor, rows: Tensor, layer: Layer) -> Tensor:
    """The moments of the groups that kept rows belong to."""
    return moments[torch.unique(rows // (layer.out_channels // layer.groups))]
