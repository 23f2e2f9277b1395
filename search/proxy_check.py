"""How well proxies order candidates, against the truth that a run has measured; and which one to go by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paretopress.search.correlation import kendall, spearman

FEWEST = 16         # candidates that a correlation is believed from
GOOD = 0.6          # Kendall's tau from which on a proxy need not be replaced
CLOSE = 0.03        # of a share: candidates this near to the dense model are looked at apart
MARGIN = 0.05       # of tau by which another proxy must be better


@dataclass(frozen=True)
class ProxyReport:
    """A proxy on a run's candidates.

    Attributes:
        name: Of the proxy.
        candidates: How many it was compared on.
        kendall: Kendall's tau-b between less predicted loss and better truth; None where it cannot be said.
        spearman: Spearman's rank correlation, likewise.
        close: How many of them are close to the dense model.
        kendall_close: Tau among those.
        seconds: That the proxy's table took, None where it is not known.
        used: Whether the search went by it.
    """

    name: str
    candidates: int
    kendall: float | None
    spearman: float | None
    close: int
    kendall_close: float | None
    seconds: float | None = None
    used: bool = False

    def to_plain(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


def assess(
    name: str, predicted: Sequence[float], drops: Sequence[float], *, close: float = CLOSE,
    seconds: float | None = None, used: bool = False,
) -> ProxyReport:
    """Compare a proxy's predictions with measured losses of accuracy.

    Args:
        name: Of the proxy.
        predicted: Predicted loss per candidate.
        drops: Measured loss of the metric against the dense model, larger is worse.
        close: Loss up to which a candidate is close to the dense model.
        seconds: That the proxy's table took.
        used: Whether the search went by it.
    """
    pairs = [(p, d) for p, d in zip(predicted, drops, strict=True) if math.isfinite(p) and math.isfinite(d)]
    near = [(p, d) for p, d in pairs if d <= close]
    guesses, truth = [p for p, _ in pairs], [d for _, d in pairs]
    return ProxyReport(
        name, len(pairs), kendall(guesses, truth), spearman(guesses, truth), len(near),
        kendall([p for p, _ in near], [d for _, d in near]), seconds, used,
    )


def preferred(reports: Mapping[str, ProxyReport], current: str) -> str:
    """Return the proxy to go by: the current one where it orders well enough, else the best if it is clearly better.

    With fewer than 16 candidates nothing is changed.

    Args:
        reports: By name, the current one among them.
        current: What the search goes by.
    """
    own = reports[current]
    if own.candidates < FEWEST or (own.kendall is not None and own.kendall >= GOOD):
        return current
    known = {name: report.kendall for name, report in reports.items()
             if report.kendall is not None and report.candidates >= FEWEST}
    best = max(known, key=known.__getitem__, default=current)
    if best == current or known[best] < (own.kendall or 0.0) + MARGIN:
        return current
    return best
