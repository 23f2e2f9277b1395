"""How large the steps of a training are, over its course and for how far off it starts."""

from __future__ import annotations

import math

FAR = 0.1   # mean relative squared error of the layers' outputs from which on steps are of full size


def relative_step(distance: float) -> float:
    """Size of the steps of a network that starts at a relative squared error from the dense model, at most 1.

    Weights that are nearly right are lost by steps as large as those that wrong ones need, and a short schedule
    does not find them again. The root makes it a ratio of values, as steps are.
    """
    return min(1.0, math.sqrt(distance / FAR)) if math.isfinite(distance) else 1.0


def schedule(done: float, warm_up: float = 0.05) -> float:
    """Fraction of the peak learning rate: a linear rise, then a cosine to zero.

    Args:
        done: Fraction of the steps done.
        warm_up: Fraction of the steps that the rise takes.
    """
    if done < warm_up:
        return done / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (done - warm_up) / (1.0 - warm_up)))
