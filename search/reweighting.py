"""Reweighted tables, decoded by the exact solver: the whole space in a few dimensions (as in SPDY, Frantar 2022).

A policy is what minimises

    sum over units of m_u L_u(choice) + price * (sum over costs of mix_c C_c / C_c(dense))

with multipliers m for what the table gets wrong, a mix of the costs (the split of the budget), and a price. Terms over
several units are eliminated exactly (`elimination.minimise`), so that a decoded policy is the best one for its
multipliers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from paretopress.search.elimination import Factor, elimination_order, minimise
from paretopress.search.factors import CostTerm
from paretopress.search.option_space import Genome, OptionSpace

Array = NDArray[np.float64]
MOST_CELLS = 1 << 16    # of a joined table: beyond it the solver bounds instead of joining, and stays fast
PRICES = np.geomspace(1e-5, 1e3, 17)   # in units of a hopeless loss
LEAST_SHARE = 1e-3      # of a hopeless loss: what loses less is as good as dense


class Decoder:
    """Turns multipliers, a mix and a price into a genome."""

    def __init__(
        self, space: OptionSpace, losses: Mapping[str, Sequence[float]], terms: Mapping[str, Sequence[CostTerm]],
        hopeless: float = 1.0,
    ) -> None:
        """Prepare the solver.

        Args:
            space: The options.
            losses: The table.
            terms: Per cost the terms whose sum it is.
            hopeless: The loss from which on a policy is not worth decoding.
        """
        self._hopeless = hopeless
        self.space = space
        self.costs = tuple(terms)
        self._options = {unit: len(choices) for unit, choices in zip(space.units, space.options, strict=True)}
        self._losses = [np.maximum(np.asarray(losses[unit], dtype=np.float64), 0.0) for unit in space.units]
        self._terms: list[tuple[tuple[str, ...], int, Array]] = []
        for number, one in enumerate(terms.values()):
            dense = sum(float(term.table[(0,) * term.table.ndim]) for term in one)
            self._terms += [(term.units, number, term.table / (abs(dense) or 1.0)) for term in one]
        scopes = [(unit,) for unit in space.units] + [units for units, _, _ in self._terms]
        self._order, _ = elimination_order(self._options, scopes)
        self.prices = self._range_of_prices()

    def decode(self, multipliers: Array, mix: Array, price: float) -> Genome:
        """The best genome for multipliers, shape (units,), a mix of costs, shape (costs,), and a price."""
        factors = [
            Factor((unit,), multiplier * loss, np.zeros_like(loss))
            for unit, multiplier, loss in zip(self.space.units, multipliers, self._losses, strict=True)
        ]
        joined: dict[tuple[str, ...], Array] = {}
        for units, number, table in self._terms:
            part = price * mix[number] * table
            joined[units] = joined[units] + part if units in joined else part
        factors += [Factor(units, table, np.zeros_like(table)) for units, table in joined.items()]
        _, assignment = minimise(self._options, factors, self._order, MOST_CELLS)
        return self.space.canonical(tuple(assignment[unit] for unit in self.space.units))

    def loss(self, genome: Genome) -> float:
        """The table's losses added up."""
        return float(sum(row[option] for row, option in zip(self._losses, genome, strict=True)))

    def _range_of_prices(self) -> tuple[float, float]:
        """The prices between which the plain table's policies go from nearly dense to hopeless."""
        if not self.costs:
            return 1.0, 1.0
        units, mix = np.ones(len(self.space.units)), np.full(len(self.costs), 1.0 / len(self.costs))
        prices = self._hopeless * PRICES
        found = [self.loss(self.decode(units, mix, float(price))) for price in prices]
        least, most = LEAST_SHARE * self._hopeless, self._hopeless
        low = max((price for price, loss in zip(prices, found, strict=True) if loss <= least), default=prices[0])
        high = min((price for price, loss in zip(prices, found, strict=True) if loss >= most), default=prices[-1])
        return float(low), float(max(low, high))

    def price_at(self, share: float) -> float:
        """The price at a share, 0 to 1, of the way from the lowest to the highest, by its logarithm."""
        low, high = (math.log(price) for price in self.prices)
        return math.exp(low + share * (high - low))
