"""The project's error tree: every error a user can cause is one line and carries an exit code.

The line says what is wrong, where, what is allowed, and the nearest match. Exit codes follow the
command line's contract: 2 usage or configuration, 3 nothing meets the budgets, 74 disk, 75 storage,
130 and 143 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 4000   # characters of a message


class ParetopressError(Exception):
    """Base of all errors that are reported to the user as one line.

    What a file or an argument put into the message cannot break the line, control a terminal, or fill it.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Return a text with characters that cannot be printed escaped, and no longer than a screen or two."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ConfigError(ParetopressError, ValueError):
    """A setting, file or argument is wrong."""


class DataError(ParetopressError, ValueError):
    """The user's data is empty, not finite, of a wrong shape, or overlaps where it must not."""


class UnsupportedModelError(ParetopressError, ValueError):
    """The model cannot be captured; the message names the place in the user's code."""


class PolicyError(ParetopressError, ValueError):
    """A policy names units or choices that this model or search space does not have."""


class ProfileError(ParetopressError, ValueError):
    """A device profile is unknown, malformed, or lacks a figure that was asked for."""


class InfeasibleError(ParetopressError):
    """No candidate can meet the budgets; the message states the best reachable values."""

    exit_code = 3


class ArtifactError(ParetopressError):
    """A stored artefact is missing, truncated, altered, or belongs to something else."""


class DiskError(ParetopressError):
    """Writing failed: disk full, quota, or an input/output error. Nothing half-written is left."""

    exit_code = 74


class StorageError(ParetopressError):
    """The trial storage is unavailable or locked by another process."""

    exit_code = 75


class InterruptedSearch(ParetopressError):  # noqa: N818 - an event, not an error
    """A signal ended the search; what was finished is stored, and the same command continues.

    Attributes:
        exit_code: 130 after SIGINT, 143 after SIGTERM: 128 plus the signal's number, as shells report it.
    """

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(name: str, allowed: Iterable[str], count: int = 1) -> list[str]:
    """Return up to `count` members of `allowed` that look most like `name`, best first."""
    return difflib.get_close_matches(name, sorted(allowed), n=count, cutoff=0.4)


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return the one-line message for an unknown name: what, the nearest match, what is allowed."""
    names = sorted(allowed)
    close = nearest(name, names)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"unknown {kind} {name!r}{hint} (allowed: {shown or 'none'})"
