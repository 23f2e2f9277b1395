"""The problem of a run: model, devices, space, budgets and baseline, all checked before anything is spent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paretopress.compressors.distillation import DistillationSettings
from paretopress.compressors.distillation_loss import LEAST_SPREAD
from paretopress.compressors.program import Program
from paretopress.compressors.quantisation import RangeMethod
from paretopress.evaluators.anchors import anchored
from paretopress.evaluators.batches import Batches
from paretopress.evaluators.budgets import Budget, parse_budget
from paretopress.evaluators.candidate import Limits
from paretopress.evaluators.construction import EXAMPLE_SAMPLES, captured, flat_inputs
from paretopress.evaluators.costs import (
    ROBUST,
    CostModel,
    drop_slower_ranks,
    drop_slower_twins,
    drop_what_cannot_run,
    drop_what_does_not_pay,
    integer_policy,
    uniform_width,
)
from paretopress.evaluators.data import Data, PreparedData, prepare
from paretopress.evaluators.pricing import PolicyPricer
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.search.option_space import OptionSpace
from paretopress.search.policy_library import read_source
from paretopress.search.worker_resources import WorkerResources
from paretopress.spaces.choices import INTEGER_LEVEL, Choice, Weights, choice_to_plain
from paretopress.spaces.documents import fingerprint
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.plan import Plan, plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.recipe import Recipe
from paretopress.spaces.space import SearchSpace, SpaceSettings, build_space

EVEN_WIDTHS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


@dataclass(frozen=True)
class SearchSettings:
    """What a user may set about a search.

    Attributes:
        targets: Profile ids or YAML paths.
        budgets: Limits on costs and on the loss of accuracy.
        seconds: Time for everything, verification included; None where `trials` is given.
        trials: Number of trials; None where `seconds` is given.
        seed: Seed of everything random.
        workers: Parallel evaluations.
        ray: Address of a Ray cluster, `"auto"` or `"local"`; None without Ray.
        executor: `"serial"`, `"process"`, `"ray"` or `"tune"`.
        resources: What a worker takes of its node; with Ray and Tune.
        scheduler: Tune's, one of `tune_executor.SCHEDULERS`.
        storage_path: Where Tune writes its results, None for the run directory.
        tune_callbacks: Tune's callbacks, from Python only; they do not change results and are not recorded.
        sampler: One of `samplers.SAMPLERS`.
        encoding: One of `samplers.ENCODINGS`: what the sampler proposes.
        importance: How channels are ranked, one of `compressors.ranking.IMPORTANCES`.
        ranges: How ranges of quantised activations are chosen.
        proxy: What choices are judged by before anything is scored: `"auto"` or one of `evaluators.proxies.PROXIES`.
        subsets: Whether candidates that are clearly worse than others are scored on a part of the samples only.
        distil: What finalists are distilled on: `"train"` or `"calibration"` inputs, `"off"`, or `"auto"`:
            on the train set where the data has one.
        distillation: How they are; the time that is left for each decides when it ends.
        finalists: How many candidates are verified, beside the baseline and the comparisons.
        space: What the space offers.
        timing_runs: Counted runs of each timing.
        warm_start: What the search starts from, as `policy_library.read_source` takes it; `""` for nothing.
        library: The same as recipes that are read already; they go before `warm_start`.
        name: Part of the default run directory's name.
    """

    targets: tuple[str, ...] = ("local",)
    budgets: tuple[Budget, ...] = ()
    seconds: float | None = None
    trials: int | None = None
    seed: int = 0
    workers: int = 1
    ray: str | None = None
    executor: str = "serial"
    resources: WorkerResources = field(default_factory=WorkerResources)
    scheduler: str = "fifo"
    storage_path: str | None = None
    tune_callbacks: tuple[Any, ...] = field(default=(), compare=False)
    sampler: str = "pareto"
    encoding: str = "auto"
    importance: str = "obs"
    ranges: RangeMethod = "mse"
    proxy: str = "auto"
    subsets: bool = True
    distil: str = "auto"
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    finalists: int = 22
    space: SpaceSettings = field(default_factory=SpaceSettings)
    timing_runs: int = 200
    warm_start: str = ""
    library: tuple[Recipe, ...] = field(default=(), hash=False)
    name: str = "search"

    def to_plain(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        plain = asdict(replace(self, library=(), tune_callbacks=()))
        del plain["tune_callbacks"]
        plain["library"] = [one.name for one in self.library]
        plain["budgets"] = [{"objective": b.objective, "limit": b.text} for b in self.budgets]
        plain["space"]["pin"] = {unit: choice_to_plain(choice) for unit, choice in self.space.pin.items()}
        plain["targets"] = list(self.targets)
        plain["space"] = {name: list(value) if isinstance(value, tuple) else value
                          for name, value in plain["space"].items()}
        return plain


@dataclass(frozen=True)
class Problem:
    """Everything that is fixed before the search.

    Attributes:
        model: The dense model; never changed.
        program: Its capture.
        data: Checked data.
        costs: Target devices.
        space: Legal choices that pay.
        size_only: Choices that save only bytes.
        baseline: Predicted costs of the dense model; infinite where a device cannot execute it.
        settings: The user's settings.
        library: What is known of other models.
    """

    model: nn.Module
    program: Program
    data: PreparedData
    costs: CostModel
    space: SearchSpace
    size_only: Mapping[str, str]
    baseline: Mapping[str, float]
    settings: SearchSettings
    library: tuple[Recipe, ...] = ()

    @property
    def objectives(self) -> dict[str, str]:
        """Objective names with their directions."""
        first = self.data.metrics[0]
        return {first.name: first.direction, **dict.fromkeys(self.cost_objectives, "min")}

    @property
    def cost_objectives(self) -> tuple[str, ...]:
        """Cost names that are objectives: time on every target, and stored bytes."""
        budgeted = [name for budget in self.settings.budgets if budget.on_cost
                    for name in self.costs.resolve(budget.objective)]
        return tuple(dict.fromkeys((*self.costs.latency_names, "size", *budgeted)))

    def plan(self, policy: Policy) -> Plan:
        """The plan of a policy."""
        return plan(self.program.structure, policy)

    def limits(self, accuracy: float) -> Limits:
        """Budgets as numbers, given the dense model's accuracy on the search set."""
        budgets = self.settings.budgets
        costs = tuple(
            (f"{name} {budget.text}", name, budget.resolve(self.baseline[name]))
            for budget in budgets if budget.on_cost for name in self.costs.resolve(budget.objective)
        ) + self.costs.capacities(self.baseline)
        worst = [budget.resolve(accuracy) for budget in budgets if not budget.on_cost]
        return Limits(costs, worst[-1] if worst else None, self.data.metrics[0].direction)

    def limits_without_accuracy(self) -> Limits:
        """Budgets on costs alone: they are checked before anything is scored."""
        return Limits(self.limits(0.5).costs, None, self.data.metrics[0].direction)

    def comparisons(self) -> dict[str, Policy]:
        """Policies people would try by hand: uniform int8 and uniform half width, where they are legal."""
        options = self.space.options
        integer = {unit: Weights(8) for unit, choices in options.items() if Weights(8) in choices}
        half = uniform_width(self.space, 0.5).choices
        found: dict[str, Mapping[str, Any]] = {"uniform int8": integer, "uniform half width": half}
        return {name: self.policy(choices) for name, choices in found.items() if choices}

    def even_widths(self) -> list[Policy]:
        """Narrower networks of even width, in 8-bit weights that compute in floats, then in integers.

        The table adds up what single choices lose and prefers a few narrow layers to many. Distillation recovers
        the more the more evenly a network is narrowed.
        """
        found: dict[Policy, None] = {}
        for activations in (32, 8):
            formats = self.eight_bit_weights(activations)
            for ratio in EVEN_WIDTHS:
                found.setdefault(self.policy({**uniform_width(self.space, ratio).choices, **formats}))
        return list(found)

    def eight_bit_weights(self, activations: int) -> dict[str, Choice]:
        """For every layer that has one the plain 8-bit format whose activations are nearest to so many bits."""
        found: dict[str, Choice] = {}
        for unit, options in self.space.options.items():
            plain = [one for one in options if isinstance(one, Weights) and one.bits == 8 and one.is_plain]
            if plain:
                found[unit] = min(plain, key=lambda one: abs(one.activations - activations))
        return found

    def units_inside_branches(self) -> dict[str, tuple[str, ...]]:
        """Per unit that may drop a branch the units inside, which decide nothing without it."""
        structure = self.program.structure
        found = {}
        for name, branch in structure.branches.items():
            groups = [group.name for group in structure.coupling.groups
                      if group.name != name and group.producers and set(group.producers) <= branch.layers.keys()]
            units = [f"{layer}/{kind}" for layer in branch.layers
                      for kind in ("rank", "sparsity", "weights")]
            found[f"{name}/channels"] = (*(f"{group}/channels" for group in groups), *units)
        return found

    @cached_property
    def option_space(self) -> OptionSpace:
        """The options as genomes are numbered in."""
        return OptionSpace.of(self.space.options, model=self.model_fingerprint, space=self.space.fingerprint,
                              inside=self.units_inside_branches())

    @cached_property
    def pricer(self) -> PolicyPricer:
        """Prices many genomes of `option_space` at once."""
        space = self.option_space
        return PolicyPricer(self.program.structure, dict(zip(space.units, space.options, strict=True)), self.costs)

    def distillation_samples(self) -> Batches | None:
        """What finalists are distilled on, None where they are not."""
        data, wanted = self.data, self.settings.distil
        if wanted == "calibration":
            return data.calibration
        return None if wanted == "off" else data.train

    def policy(self, choices: Mapping[str, Any]) -> Policy:
        """A policy of this model and space."""
        return Policy.of(choices, model=self.model_fingerprint, space=self.space.fingerprint)

    @cached_property
    def model_fingerprint(self) -> str:
        """Of the model's operators and weights."""
        return fingerprint([self.program.structure.fingerprint, state_hash(self.program.state)])

    def fingerprints(self) -> dict[str, str]:
        """What the results of a run depend on."""
        settings = self.settings
        evaluator: list[Any] = [
            settings.importance, settings.ranges, settings.distil, asdict(settings.distillation), settings.sampler,
            settings.encoding, settings.finalists, settings.executor == "serial",
            [[b.objective, b.text] for b in settings.budgets], settings.trials is None, settings.subsets, INTEGER_LEVEL,
            LEAST_SPREAD,   # of scores that divergences are measured between
        ]
        if settings.proxy != "auto":
            evaluator.append(settings.proxy)
        library = {"library": fingerprint([one.fingerprint for one in self.library])} if self.library else {}
        if settings.scheduler != "fifo":   # it stops candidates that would have been scored
            evaluator.append(settings.scheduler)
        return {
            "model": self.model_fingerprint,
            "data": self.data.fingerprint,
            "space": self.space.fingerprint,
            "profile": fingerprint([device.fingerprint for device in self.costs.devices]),
            "evaluator": fingerprint(evaluator),
            "seed": str(settings.seed),
            **library,
        }


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a model's tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def prepare_problem(model: nn.Module, data: Data, settings: SearchSettings) -> Problem:
    """Check and capture everything a search needs.

    Raises:
        UnsupportedModelError: The model cannot be captured.
        DataError: The data is unusable.
        ConfigError: A setting is wrong, asks for milliseconds on a device that only ranks, or for a
            fraction of what the dense model takes on a device that cannot execute it.
        ProfileError: An unknown or malformed device profile.
    """
    prepared = prepare(data)
    library = settings.library or (read_source(settings.warm_start) if settings.warm_start else ())
    if settings.distil == "train" and prepared.train is None:
        raise ConfigError("distil: train: the data has no train set (allowed: auto, calibration, off)")
    settings = replace(settings, budgets=_with_directions(settings.budgets, prepared.metrics[0].direction))
    program = captured(model, prepared.calibration)
    devices = tuple(load_profile(target) for target in settings.targets)
    _refuse_times_without_basis(CostModel(devices), settings.budgets)
    space = build_space(program.structure, [device.capabilities() for device in devices], settings.space)
    flat = list(flat_inputs(program, prepared.calibration.first(EXAMPLE_SAMPLES)))
    costs = CostModel(tuple(anchored(device, program, space, flat) for device in devices))
    space = drop_what_cannot_run(program.structure, space, costs)
    space = drop_slower_ranks(program.structure, space, costs)
    space = drop_slower_twins(program.structure, space, costs)
    space, size_only = drop_what_does_not_pay(program.structure, space, costs)
    if len(devices) > 1 or any(budget.objective == ROBUST for budget in settings.budgets):
        costs = costs.relative_to(program.structure)
    baseline = costs.predict(plan(program.structure, DENSE))
    problem = Problem(model, program, prepared, costs, space, size_only, baseline, settings, library)
    _refuse_fractions_of_nothing(problem)
    return problem


def _with_directions(budgets: Sequence[Budget], direction: Literal["max", "min"]) -> tuple[Budget, ...]:
    """Budgets on the metric, read for its direction: whoever parses them does not know the data yet."""
    return tuple(
        budget if budget.on_cost else parse_budget(budget.text, budget.objective, direction) for budget in budgets
    )


def _refuse_times_without_basis(costs: CostModel, budgets: Sequence[Budget]) -> None:
    for budget in budgets:
        if not budget.on_cost:
            continue
        names = costs.resolve(budget.objective)
        for name in names:
            if name.startswith("relative@") and budget.kind == "absolute":
                device = name.partition("@")[2]
                raise ConfigError(
                    f"budget {budget.objective}={budget.text}: {device} is a T0 profile, which ranks candidates but "
                    "states no milliseconds (allowed: a relative budget such as -50%)"
                )


def _refuse_fractions_of_nothing(problem: Problem) -> None:
    """Refuse relative budgets on costs that the dense model does not have. Raises `ConfigError`."""
    for budget in problem.settings.budgets:
        if budget.objective == ROBUST and not problem.costs.dense:
            names = problem.costs.latency_names
            device = next(name for name in names if not math.isfinite(problem.baseline[name])).partition("@")[2]
            raise ConfigError(
                f"budget robust={budget.text}: {device} cannot run the dense model, so there is nothing to be "
                f"relative to (allowed: a limit for each target, such as latency@{device}=5ms)"
            )
        if not budget.on_cost or budget.kind == "absolute":
            continue
        for name in problem.costs.resolve(budget.objective):
            if math.isfinite(problem.baseline[name]):
                continue
            base, _, device = name.partition("@")
            example = "a number such as '<=5ms'"
            integer = problem.costs.predict(problem.plan(integer_policy(problem.space)))[name]
            if math.isfinite(integer) and base in ("latency", "energy"):
                unit = "ms" if base == "latency" else "uJ"
                example = f"a number such as '<={integer:.3g}{unit}', which all layers at 8 bits take"
            raise ConfigError(
                f"budget {budget.objective}={budget.text}: {device} cannot run the dense model, so there is "
                f"nothing to be relative to (allowed: {example})"
            )


def default_run_path(problem: Problem) -> Path:
    """`runs/NAME-FINGERPRINT`: the same command finds the same run."""
    identity = fingerprint(problem.fingerprints())
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in problem.settings.name)[:48] or "search"
    return Path("runs") / f"{name}-{identity[:10]}"
