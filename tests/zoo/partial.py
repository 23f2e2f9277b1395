"""Values of which some elements are removed, and what follows from a plain or partial value alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paretopress.spaces.graph import Node


class NoRuleError(Exception):
    """A removed element reached an operator that this reference cannot judge."""


class ConflictError(Exception):
    """The two sides of a product do not agree on what is removed."""


@dataclass(frozen=True)
class Partial:
    """A value of which some elements are removed: `present` is 1 or 0 for every element."""

    value: Tensor
    present: Tensor

    @property
    def zeroed(self) -> Tensor:
        return torch.where(self.present > 0, self.value, torch.zeros_like(self.value))


def value_of(item: Any) -> Any:
    if isinstance(item, Partial):
        return item.value
    return [value_of(one) for one in item] if isinstance(item, list | tuple) else item


def presence_of(item: Any) -> Any:
    """Presence of floats; indices, masks and numbers as they are."""
    if isinstance(item, Partial):
        return item.present
    if isinstance(item, Tensor) and item.is_floating_point():
        return torch.ones_like(item)
    return [presence_of(one) for one in item] if isinstance(item, list | tuple) else item


def is_partial(item: Any) -> bool:
    return isinstance(item, Partial) or (isinstance(item, list | tuple) and any(is_partial(one) for one in item))


def partial(value: Tensor, present: Tensor) -> Any:
    return value if bool((present > 0).all()) else Partial(value, (present > 0).to(torch.float64))


def pair(values: Any, presents: Any) -> Any:
    if isinstance(values, list | tuple):
        return [pair(value, present) for value, present in zip(values, presents, strict=True)]
    return partial(values, presents)


def call(function: Callable[..., Any], node: Node, arguments: Mapping[str, Any]) -> Any:
    return function(*arguments.values()) if node.op.startswith("python.") else function(**arguments)
