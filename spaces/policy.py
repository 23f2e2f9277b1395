"""Policy: the one thing that travels. Unit to choice, small plain data, hashable, portable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.spaces.choices import KINDS, Choice, choice_from_plain, choice_to_plain
from paretopress.spaces.documents import check_schema, fingerprint, read_document, write_json, write_yaml
from paretopress.spaces.errors import PolicyError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paretopress.spaces.policy_transfer import PolicyTransfer
    from paretopress.spaces.recipe import Recipe

SCHEMA = "paretopress-policy/1"


@dataclass(frozen=True)
class Policy:
    """What is decided about a model: a sorted tuple of (unit, choice). Units left out stay dense.

    >>> from paretopress.spaces.choices import Keep
    >>> policy = Policy.of({"layer1/channels": Keep(0.5)})
    >>> len(policy), len(policy.replace({"layer1/channels": None}))
    (1, 0)

    Attributes:
        items: `(unit name, choice)` sorted by name; a unit name is `SUBJECT/KIND` such as
            `layer1.0.conv1/channels`, `fc/rank`, `fc/sparsity` or `fc/weights`.
        model: Fingerprint of the model it was made for, `""` where none is claimed.
        space: Fingerprint of the search space it was made in, `""` where none is claimed.
    """

    items: tuple[tuple[str, Choice], ...] = ()
    model: str = ""
    space: str = ""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.items]
        if names != sorted(set(names)):
            raise PolicyError("a policy's units must be sorted and unique; use Policy.of({...})")
        for name, choice in self.items:
            kind = name.rpartition("/")[2]
            if kind not in KINDS:
                raise PolicyError(f"unit {name!r}: {unknown_name('kind', kind, KINDS)}")
            if not isinstance(choice, KINDS[kind]):
                allowed = " or ".join(one.__name__ for one in KINDS[kind])
                raise PolicyError(f"unit {name!r} takes {allowed}, got {choice!r}")

    @classmethod
    def of(cls, choices: Mapping[str, Choice], *, model: str = "", space: str = "") -> Policy:
        """Return a policy from a mapping of unit names to choices.

        Args:
            choices: What is decided, in any order.
            model: Fingerprint of the model it is made for.
            space: Fingerprint of the search space it is made in.
        """
        return cls(tuple(sorted(choices.items())), model, space)

    @cached_property
    def choices(self) -> dict[str, Choice]:
        """The choices by unit name."""
        return dict(self.items)

    @cached_property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that depend on the choices alone."""
        return fingerprint([[name, choice_to_plain(choice)] for name, choice in self.items])

    @property
    def is_dense(self) -> bool:
        """Whether nothing is changed."""
        return not self.items

    def __iter__(self) -> Iterator[tuple[str, Choice]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def replace(self, changes: Mapping[str, Choice | None]) -> Policy:
        """Return a policy with some units changed; None returns a unit to dense."""
        merged = {**self.choices, **changes}
        kept = {name: choice for name, choice in merged.items() if choice is not None}
        return Policy.of(kept, model=self.model, space=self.space)

    def to_plain(self) -> dict[str, Any]:
        """Return the policy as plain data; `from_plain` reads it back unchanged."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "space": self.space,
            "units": {name: choice_to_plain(choice) for name, choice in self.items},
        }

    @classmethod
    def from_plain(cls, value: object, source: str = "policy") -> Policy:
        """Return the policy that plain data describe, as `to_plain` writes them.

        Args:
            value: A mapping with the key `units`; `schema`, `model` and `space` may be left out.
            source: What error messages start with, such as the name of a file.

        Raises:
            PolicyError: Unknown schema, key, kind, field or value; the message starts with `source`.
        """
        if not isinstance(value, Mapping):
            raise PolicyError(f"{source}: a policy is a mapping with the key 'units'")
        allowed = ("schema", "model", "space", "units")
        for key in value:
            if key not in allowed:
                raise PolicyError(f"{source}: {unknown_name('key', str(key), allowed)}")
        check_schema(value.get("schema", SCHEMA), SCHEMA, source)
        for key in ("model", "space"):
            if not isinstance(value.get(key, ""), str):
                raise PolicyError(f"{source}: {key}: expected text, got {value[key]!r}")
        units = {} if value.get("units") is None else value["units"]
        if not isinstance(units, Mapping):
            raise PolicyError(f"{source}: units: expected a mapping of unit names to choices")
        choices = {
            str(name): choice_from_plain(plain, f"{source}: units.{name}") for name, plain in units.items()
        }
        try:
            return cls.of(choices, model=value.get("model", ""), space=value.get("space", ""))
        except PolicyError as error:
            raise PolicyError(f"{source}: {error}") from None

    def transfer(
        self, model: nn.Module, inputs: Tensor | tuple[Tensor, ...], *, source: Recipe | None = None,
        partial: bool = False,
    ) -> PolicyTransfer:
        """Carry the policy to another model; nothing is applied, and neither model is changed.

        Args:
            model: The other model.
            inputs: Two samples or more of its inputs.
            source: What is known of the model that the policy was made for: with it units are matched by what they
                are. Without it by their names, which suffices within a family.
            partial: Whether units that nothing stands for, or that nothing fits, stay dense instead of being refused.

        Returns:
            The new policy, and which units stand for which: see `spaces.policy_transfer.PolicyTransfer`.

        Raises:
            PolicyError: Nothing fits, or something does not and `partial` was not asked for.
            UnsupportedModelError: The model cannot be captured.
        """
        from paretopress.spaces.capture import capture
        from paretopress.spaces.policy_transfer import transfer_policy
        from paretopress.spaces.structure import analyse
        from paretopress.spaces.unit_features import unit_features

        structure = analyse(capture(model, inputs if isinstance(inputs, tuple) else (inputs,)), model)
        features = unit_features(structure, model.state_dict())
        known = {} if source is None else source.features
        return transfer_policy(self, structure, features, known, partial=partial, model=structure.fingerprint)

    def save(self, path: str | Path) -> None:
        """Write the policy atomically as YAML, or as JSON where the name ends in `.json`."""
        path = Path(path)
        (write_json if path.suffix == ".json" else write_yaml)(path, self.to_plain())

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Return the policy in a file. Raises `ConfigError` or `PolicyError` with the file's name."""
        return cls.from_plain(read_document(Path(path)), str(path))


DENSE = Policy()
