"""How predicted losses agree with measured ones, per pair of models: `prediction.py CACHE SEED SOURCE:TARGET...`.

Reads the recipes that `tables.py` wrote. Rank correlations and the median factor between prediction and measurement are
over all choices of the target, with as many of its own losses measured as the first column says, picked as a search
picks them.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from paretopress.evaluators.sensitivity_prior import SensitivityPrior
from paretopress.search.correlation import kendall, spearman
from paretopress.search.warm_table import measurable
from paretopress.spaces.recipe import Recipe

MEASURED = (0, 8, 16, 32)


def lines(source: Recipe, target: Recipe) -> list[str]:
    """One line per number of measured choices."""
    prior = SensitivityPrior([source], target.features, target.options)
    truth = np.log([max(target.losses[unit][option], 1e-6) for unit, option in prior.cells])
    among = measurable(SimpleNamespace(options=target.options))
    found = []
    for count in MEASURED:
        if more := count - len(prior.measured):
            cells = prior.next_cells(more, among)
            prior.learn({(unit, option): target.losses[unit][option] for unit, option in cells})
        means, _ = prior.predict()
        factor = math.exp(float(np.median(np.abs(truth - means))))
        found.append(f"{source.name:>12} -> {target.name:<12} {count:3} of {len(truth):3} measured: Spearman "
                     f"{spearman(list(means), list(truth)):.3f}, Kendall {kendall(list(means), list(truth)):.3f}, "
                     f"median factor {factor:.2f}")
    return found


if __name__ == "__main__":
    cache, seed = Path(sys.argv[1]), sys.argv[2]
    for pair in sys.argv[3:]:
        names = pair.split(":")
        print("\n".join(lines(*(Recipe.load(cache / f"{name}-{seed}.recipe.json") for name in names))))
