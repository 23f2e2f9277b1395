"""What a user wants of single units when a run is solved again: pinned choices, and units that choose alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paretopress.spaces.choices import Choice, choice_from_plain, describe
from paretopress.spaces.documents import parse_yaml
from paretopress.spaces.errors import ConfigError, nearest, unknown_name
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace

DENSE_WORD = "dense"


@dataclass(frozen=True)
class Conditions:
    """Pins and groups of units.

    Attributes:
        pins: The one choice that a unit may take, None for dense.
        shared: Groups of units that take the same choice, without a unit in common.
    """

    pins: Mapping[str, Choice | None] = field(default_factory=dict)
    shared: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def parse(cls, pins: Sequence[str], shares: Sequence[str], space: SearchSpace) -> Conditions:
        """Read what was given on the command line.

        Args:
            pins: `UNIT=CHOICE` each: `dense`, the words that tables use (`keep 0.5`, `8-bit weights`), or plain data
                as in a policy file (`{keep: 0.5}`).
            shares: `UNIT,UNIT,...` each.
            space: Where the units and choices are.

        Raises:
            ConfigError: A malformed text, an unknown unit, a choice that is not offered, or units with no choice in
                common besides dense; the message names what is allowed.
        """
        found: dict[str, Choice | None] = {}
        for text in pins:
            unit, equals, choice = (part.strip() for part in text.partition("="))
            if not equals or not unit or not choice:
                raise ConfigError(f"--pin {text}: write UNIT=CHOICE, such as 'conv1/channels=keep 0.5'")
            if unit in found:
                raise ConfigError(f"--pin {text}: unit {unit!r} is pinned twice")
            _check_unit(unit, f"--pin {text}", space)
            found[unit] = _choice_of(choice, unit, f"--pin {text}", space)
        groups = []
        for text in shares:
            units = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
            if len(units) < 2 or not all(units):
                raise ConfigError(f"--share {text}: write two units or more, such as a/weights,b/weights")
            for unit in units:
                _check_unit(unit, f"--share {text}", space)
            groups.append(units)
        conditions = cls(found, _joined(groups))
        for group in conditions.shared:
            _check_group(group, conditions, space)
        return conditions

    def offered(self, space: SearchSpace, runnable: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Return the option numbers that every unit keeps; those of units that choose alike belong together in order.

        Args:
            space: The space.
            runnable: Option numbers that every target can execute.

        Raises:
            ConfigError: Nothing is left for some unit, because no target executes what was asked for.
        """
        found: dict[str, tuple[int, ...]] = {unit: tuple(numbers) for unit, numbers in runnable.items()}
        for unit, choice in self.pins.items():
            number = space.options[unit].index(choice)
            found[unit] = tuple(one for one in found[unit] if one == number)
        for group in self.shared:
            first, *others = ({space.options[unit][number]: number for number in found[unit]} for unit in group)
            common = [choice for choice in first if all(choice in other for other in others)]
            for unit, by_choice in zip(group, (first, *others), strict=True):
                found[unit] = tuple(by_choice[choice] for choice in common)
        for unit, numbers in found.items():
            if not numbers:
                raise ConfigError(f"unit {unit!r}: no choice is left that every target can execute and that the pins "
                                  "and shared units allow")
        return found

    def met_by(self, policy: Policy) -> bool:
        """Return whether a policy keeps to the pins and to the groups."""
        chosen = policy.choices
        return all(chosen.get(unit) == choice for unit, choice in self.pins.items()) and all(
            len({chosen.get(unit) for unit in group}) == 1 for group in self.shared
        )

    def to_plain(self) -> dict[str, object]:
        """Return the conditions as plain data, choices in words."""
        return {"pins": {unit: words(choice) for unit, choice in self.pins.items()},
                "shared": [list(group) for group in self.shared]}


NO_CONDITIONS = Conditions()


def words(choice: Choice | None) -> str:
    """Return a choice in the words of tables."""
    return DENSE_WORD if choice is None else describe(choice)


def _check_unit(unit: str, where: str, space: SearchSpace) -> None:
    if unit not in space.options:
        reasons = [why for name, choice, why in space.dropped if name == unit and choice == "*"]
        if reasons:
            raise ConfigError(f"{where}: unit {unit!r} is not offered: {reasons[0]}")
        raise ConfigError(f"{where}: {unknown_name('unit', unit, space.options)}")


def _choice_of(text: str, unit: str, where: str, space: SearchSpace) -> Choice | None:
    """The option of a unit that a text means."""
    options = {words(choice): choice for choice in space.options[unit]}
    if text in options:
        return options[text]
    if text.startswith("{"):
        choice = choice_from_plain(parse_yaml(text, where), where)
        if choice in space.options[unit]:
            return choice
        text = describe(choice)
    for name, choice_words, why in space.dropped:
        if name == unit and choice_words == text:
            raise ConfigError(f"{where}: {text!r} is not offered: {why}")
    close = nearest(text, options)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{where}: unknown choice {text!r}{hint} (allowed: {'; '.join(options)})")


def _joined(groups: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Groups with a unit in common are one group."""
    found: list[dict[str, None]] = []
    for group in groups:
        touching = [one for one in found if not one.keys().isdisjoint(group)]
        merged = dict.fromkeys([*(unit for one in touching for unit in one), *group])
        found = [one for one in found if one not in touching] + [merged]
    return tuple(tuple(group) for group in found)


def _check_group(group: Sequence[str], conditions: Conditions, space: SearchSpace) -> None:
    """Refuse a group whose units can never agree, or only on staying dense without anyone asking for that."""
    options = [{conditions.pins[unit]} if unit in conditions.pins else set(space.options[unit]) for unit in group]
    common = set.intersection(*options)
    if not common or (common == {None} and not any(unit in conditions.pins for unit in group)):
        shown = "; ".join(f"{unit}: {', '.join(words(one) for one in space.options[unit])}" for unit in group)
        raise ConfigError(f"--share {','.join(group)}: the units have no choice in common besides dense ({shown})")
