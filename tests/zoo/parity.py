"""Exact parity: a model with channels removed against the dense graph with the same channels absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from zoo.reference import ConflictError, NoRuleError, Partial, evaluate
from zoo.registry import build

from paretopress.compressors.channel_selection import kept_from_order
from paretopress.compressors.network import Selection, axis_index
from paretopress.compressors.probe import selected
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.realise import realise
from paretopress.spaces.choices import Keep
from paretopress.spaces.coupling import Axis, ChannelGroup
from paretopress.spaces.errors import ParetopressError
from paretopress.spaces.plan import Plan, plan
from paretopress.spaces.policy import Policy

RATIOS = (0.25, 0.5, 0.75)
TOLERANCE = 1e-8  # of the output's standard deviation
ALIVE = 1e-3  # of it: what zeroing one kept channel must change
TRIES = 8  # kept channels of which one must be alive: behind a ReLU some are dead
DRAWS = 6  # keep sets of which one must be alive


class InDouble(TorchFunctionMode):
    """Casts to float32 that are written in a model's code become casts to float64, in captures and runs alike."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        swap = lambda value: torch.float64 if value is torch.float32 else value  # noqa: E731
        if func is torch.Tensor.float:
            return args[0].double()
        return func(*map(swap, args), **{name: swap(value) for name, value in (kwargs or {}).items()})


@contextmanager
def double(casts: bool = True) -> Iterator[None]:
    """Everything in float64, without gradients; `casts` says whether the code that runs casts to float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InDouble() if casts else nullcontext(), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class Subject:
    """A model of the zoo in float64 with its program."""

    name: str
    model: nn.Module
    args: tuple[Tensor, ...]
    program: Program

    @cached_property
    def casts(self) -> bool:
        """Whether the model's code names a type of floats to compute in."""
        arguments = (value for node in self.program.graph.operators() for value in node.arguments.values())
        return any(value is torch.float64 for value in arguments)

    @cached_property
    def free(self) -> tuple[ChannelGroup, ...]:
        """Channel groups that can be pruned."""
        units = self.program.structure.units
        return tuple(
            g for g in self.program.structure.coupling.groups if not units[f"{g.name}/channels"] and g.size > g.step
        )


@dataclass(frozen=True)
class Verdict:
    """What one removal showed: `problem` is empty where it is exact and alive; no groups where none lost a channel."""

    model: str
    groups: tuple[str, ...]
    ratio: float
    problem: str = ""


@cache
def subject(name: str) -> Subject:
    """The model of that name, captured in float64."""
    example = build(name)
    model = example.model.double()
    args = tuple(x.double() if x.is_floating_point() else x for x in example.args)
    with double():
        return Subject(name, model, args, build_program(model, args))


def draw(planned: Plan, groups: Sequence[ChannelGroup], seed: int) -> dict[str, Tensor]:
    """A random legal keep set of every group that loses channels."""
    generator = torch.Generator().manual_seed(seed)
    selection = {}
    for group in groups:
        if 0 < planned.kept[group.name] < group.size:
            order = torch.randperm(group.size // group.step, generator=generator)
            selection[group.name] = kept_from_order(order, planned.kept[group.name] // group.step, group.step)
    return selection


def presence(program: Program, selection: Selection) -> dict[str, Tensor]:
    """Which entries of every parameter are left."""
    result = {}
    for name, axes in program.structure.coupling.parameters.items():
        if not any(segment.group in selection for axis in axes for segment in axis or ()):
            continue
        mask = torch.ones(program.state[name].shape, dtype=torch.float64)
        for dimension, axis in enumerate(axes):
            index = axis_index(axis, selection)
            if index is not None:
                gone = torch.ones(mask.shape[dimension], dtype=torch.bool)
                gone[index] = False
                mask.index_fill_(dimension, gone.nonzero().flatten(), 0.0)
        result[name] = mask
    return result


def check(item: Subject, groups: Sequence[ChannelGroup], ratio: float, seed: int) -> Verdict:
    """Remove a random keep set of some groups and compare with the reference.

    A set of which no kept channel is alive proves nothing (a few ReLUs can die together): another one is drawn,
    `DRAWS` times at most. Every set that is drawn must be exact.
    """
    names = tuple(group.name for group in groups)
    with double(item.casts):
        for attempt in range(DRAWS):
            try:
                problem, live = _try(item, groups, ratio, seed + 10_000 * attempt)
            except (ParetopressError, ConflictError, NoRuleError) as error:
                problem, live = f"{type(error).__name__}: {error}", 0.0
            except Exception as error:  # noqa: BLE001 - a crash is one more failure to list
                reason = str(error).splitlines()[0] if str(error) else ""
                problem, live = f"crash: {type(error).__name__}: {reason}", 0.0
            if problem is None:
                return Verdict(item.name, (), ratio)
            if problem or live > ALIVE:
                return Verdict(item.name, names, ratio, problem)
    return Verdict(item.name, names, ratio, f"no kept channel changes the output by more than {live:.2g} of its spread")


def _try(item: Subject, groups: Sequence[ChannelGroup], ratio: float, seed: int) -> tuple[str | None, float]:
    """What is wrong with one keep set (None where no channel goes), and how much one kept channel matters."""
    program = item.program
    policy = Policy.of({f"{group.name}/channels": Keep(ratio) for group in groups})
    planned = plan(program.structure, policy)
    selection = draw(planned, groups, seed)
    if not selection:
        return None, 0.0
    wanted = _tensors(evaluate(program, item.args, presence(program, selection)))
    realised = realise(item.model, program, selected(program, planned, selection))
    found = _tensors(pytree.tree_leaves(realised(*item.args)))
    return _difference(wanted, found), _liveness(item, selection, wanted)


def _tensors(outputs: Sequence[Any]) -> list[Tensor]:
    if any(isinstance(one, Partial) for one in outputs):
        raise ConflictError("channels of the model's output are removed")
    return [one for one in outputs if isinstance(one, Tensor)]


def _difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> str:
    for one, other in zip(wanted, found, strict=True):
        if one.shape != other.shape:
            return f"an output of {tuple(other.shape)} instead of {tuple(one.shape)}"
        off, spread = float((one - other).abs().max()), _spread(one)
        if not off <= TOLERANCE * spread:
            return f"differs by {off / spread:.2g} of the output's standard deviation"
    return ""


def _spread(output: Tensor) -> float:
    return float(output.std(correction=0)) if output.numel() > 2 else float(output.abs().max())


def zeros_of(program: Program, group: str, channels: Tensor) -> dict[str, list[tuple[int, Tensor]]]:
    """Where some channels of a group are in every floating-point value that has them."""
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for name, axes in program.structure.coupling.values.items():
        for dimension, axis in enumerate(axes):
            mine = any(segment.group == group for segment in axis or ())
            if mine and program.graph.by_name[name].dtype.startswith("float"):
                found.setdefault(name, []).append((dimension, positions_of(axis, group, channels)))
    return found


def positions_of(axis: Axis, group: str, channels: Tensor) -> Tensor:
    """Positions of some channels of one group along a dimension."""
    others = {segment.group: torch.arange(0) for segment in axis or ()}
    return axis_index(axis, {**others, group: channels})


def _liveness(item: Subject, selection: Selection, wanted: Sequence[Tensor]) -> float:
    """How much the output changes, in standard deviations, when one kept channel is zero wherever it is.

    Of several groups the last and the first are tried: three quarters of all channels away, a random net without
    normalisation may have no way left from its first layers to its output.
    """
    best, steps = 0.0, {group.name: group.step for group in item.program.structure.coupling.groups}
    present = presence(item.program, selection)
    for name in dict.fromkeys((list(selection)[-1], next(iter(selection)))):
        kept = selection[name]
        for start in range(0, len(kept), steps[name])[:TRIES]:
            zeros = zeros_of(item.program, name, kept[start : start + steps[name]])
            changed = _tensors(evaluate(item.program, item.args, present, zeros))
            best = max(best, *(float((a - b).abs().max()) / _spread(a) for a, b in zip(wanted, changed, strict=True)))
            if best > ALIVE:
                return best
    return best


def single_checks(item: Subject, ratios: Sequence[float] = RATIOS) -> Iterator[Verdict]:
    """Every free group alone."""
    for index, group in enumerate(item.free):
        for place, ratio in enumerate(ratios):
            yield check(item, [group], ratio, 10 * index + place)


def joint_checks(item: Subject, ratios: Sequence[float] = RATIOS) -> Iterator[Verdict]:
    """Two random groups at once, and all at once."""
    free = item.free
    generator = torch.Generator().manual_seed(7)
    for place, ratio in enumerate(ratios):
        if len(free) > 2:
            pair = torch.randperm(len(free), generator=generator)[:2].tolist()
            yield check(item, [free[index] for index in pair], ratio, 1000 + place)
        if len(free) > 1:
            yield check(item, free, ratio, 2000 + place)


def weights_of(model: nn.Module) -> dict[str, int]:
    """Elements of every weight of a convolution or linear layer by its first name, attention projections included."""
    found, seen = {}, set()
    for path, module in model.named_modules():
        linear = isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or type(module).__name__ == "Conv1D"
        name = "weight" if linear else "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else ""
        if name and parametrize.is_parametrized(module, name):
            originals = dict(module.parametrizations[name].named_parameters())
            name = f"parametrizations.weight.{max(originals, key=lambda key: originals[key].numel())}"
        weight = module.get_parameter(name) if name and dict(module.named_parameters()).get(name) is not None else None
        if weight is not None and id(weight) not in seen:
            seen.add(id(weight))
            found[f"{path}.{name}".removeprefix(".")] = weight.numel()
    return found


def fixed_weights(model: nn.Module, program: Program) -> dict[str, str]:
    """Convolution and linear weights without a dimension in a free group, with the first reason."""
    structure = program.structure
    read = {node.target for node in program.graph.nodes if program.graph.users[node.name]}
    found = {}
    for name in weights_of(model):
        known = structure.aliases.get(name, name)
        groups = [segment.group for axis in structure.coupling.parameters.get(known) or () for segment in axis or ()]
        reasons = [structure.units[f"{group}/channels"] for group in groups]
        if all(reasons):
            found[name] = reasons[0] if reasons else "no channels" if known in read else "no output depends on it"
    return found


def prunable_share(model: nn.Module, program: Program) -> float:
    """Share of the bytes of convolution and linear weights with at least one dimension in a free group."""
    sizes, fixed = weights_of(model), fixed_weights(model, program)
    total = sum(sizes.values())
    return sum(size for name, size in sizes.items() if name not in fixed) / total if total else 0.0


def share_at_half(model: nn.Module, program: Program) -> float:
    """Share of the same bytes that is left when every free group keeps half of its channels."""
    structure = program.structure
    free = [
        name.removesuffix("/channels")
        for name, why in structure.units.items()
        if name.endswith("/channels") and not why
    ]
    planned = plan(structure, Policy.of({f"{name}/channels": Keep(0.5) for name in free}))
    total = left = 0
    for name, size in weights_of(model).items():
        known = structure.aliases.get(name, name)
        axes, shape = structure.coupling.parameters.get(known), program.state[known].shape
        total += size
        sizes = [planned.size(axis, length) for axis, length in zip(axes or (None,) * len(shape), shape, strict=True)]
        left += torch.Size(sizes).numel()
    return left / total if total else 1.0


def frozen_reasons(program: Program) -> Mapping[str, str]:
    """Frozen groups with their reasons."""
    units = program.structure.units
    found = {g.name: units[f"{g.name}/channels"] for g in program.structure.coupling.groups}
    return {name: reason for name, reason in found.items() if reason}
