"""Choices and policies as a report holds them: numbered options per unit, a policy as one character per unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paretopress.spaces.choices import Choice, choice_to_plain, describe
from paretopress.spaces.documents import canonical_json
from paretopress.spaces.policy import Policy

FIRST_CHARACTER = 48    # "0": the dense choice of every unit
DIGITS = 4              # of a loss
Option = tuple[int, int, float | None, float | None, int]
"""Number of the choice and of its family, amount, loss, and 1: estimated, 2: not measurable."""


@dataclass
class ChoiceTable:
    """Options by unit, each the number of a choice that several units may share.

    Attributes:
        choices: `(words, plain choice)` by number.
        families: Names by number.
        units: Per unit its axis (`removed`, `bits` or none) and its options; the dense choice, number 0, is left out.
    """

    choices: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    families: list[str] = field(default_factory=list)
    units: dict[str, tuple[str, list[Option]]] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)
    _places: dict[tuple[str, int], int] = field(default_factory=dict)
    _known: dict[Choice, int] = field(default_factory=dict)   # the same few choices come thousands of times

    @classmethod
    def of(cls, anatomy: Mapping[str, Any]) -> ChoiceTable:
        """Return the table of a run's sensitivity curves; policies may add to it."""
        table = cls()
        for curve in anatomy.get("curves") or []:
            if curve["family"] not in table.families:
                table.families.append(curve["family"])
            family = table.families.index(curve["family"])
            for point in curve["points"]:
                number = table._number(point["text"], point["choice"])
                loss = None if point["failed"] else float(f"{point['loss']:.{DIGITS}g}")
                mark = 2 if point["failed"] else 1 if point["estimated"] else 0
                option = (number, family, float(f"{point['amount']:.{DIGITS}g}"), loss, mark)
                table._add(curve["unit"], curve["axis"], option)
        return table

    def row(self, policy: Policy) -> str:
        """Return a policy as text: per unit, in order, the character of its option; what follows is dense."""
        places = {unit: self._place(unit, choice) for unit, choice in policy}
        text = "".join(chr(FIRST_CHARACTER + places.get(unit, 0)) for unit in self.units)
        return text.rstrip(chr(FIRST_CHARACTER))

    def to_plain(self) -> dict[str, Any]:
        """Return the table as plain data."""
        return {
            "choices": [list(choice) for choice in self.choices], "families": self.families,
            "units": [[unit, axis, [list(option) for option in options]]
                      for unit, (axis, options) in self.units.items()],
        }

    def _number(self, text: str, plain: Mapping[str, Any]) -> int:
        key = canonical_json(dict(plain))
        if key not in self._numbers:
            self._numbers[key] = len(self.choices)
            self.choices.append((text, dict(plain)))
        return self._numbers[key]

    def _add(self, unit: str, axis: str, option: Option) -> int:
        _, options = self.units.setdefault(unit, (axis, []))
        options.append(option)
        self._places[unit, option[0]] = len(options)
        return len(options)

    def _place(self, unit: str, choice: Choice) -> int:
        number = self._known.get(choice)
        if number is None:
            number = self._known[choice] = self._number(describe(choice), choice_to_plain(choice))
        known = self._places.get((unit, number))
        return known if known is not None else self._add(unit, "", (number, -1, None, None, 0))
