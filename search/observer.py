"""Who hears how a run goes on."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Hears how a run goes on."""

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage of `total` steps."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Finish `n` steps of the stage."""

    def message(self, text: str) -> None:
        """Show one line."""

    def warning(self, text: str) -> None:
        """Show one line that the user should read."""


class Silent:
    """An observer that shows nothing."""

    def stage(self, name: str, total: int | None) -> None:
        """Show nothing."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""

    def warning(self, text: str) -> None:
        """Show nothing."""
