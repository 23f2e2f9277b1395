"""A reinforcement-learning agent in the spirit of AMC and HAQ, to compare with.

As in AMC (He et al. 2018, "AutoML for Model Compression") and HAQ (Wang et al. 2019), an episode walks through the
units; the agent sees where it is and what it chose before, and answers with a number between 0 (dense) and 1 (the
strongest choice). It learns by deep deterministic policy gradients (Lillicrap et al. 2016): every transition of an
episode gets the episode's reward, less a moving average of rewards. For a front instead of a point, a preference over
the objectives is drawn for every episode, is part of what the agent sees, and weighs the reward; an episode is learnt
again under another preference, as in hindsight. Being off-policy, it learns from seeds and from what others proposed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paretopress.search.additive_model import method_of
from paretopress.search.cost_tables import CostTables
from paretopress.search.executors import torch_threads
from paretopress.search.option_space import Genome, OptionSpace
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.surrogate import Guide

Array = NDArray[np.float64]
EPISODES = 128        # kept to learn from, the latest
WARM_UP = 25          # episodes of random actions (AMC: 100 of 400)
NOISE, DECAY = 0.5, 0.99   # of actions, and by how much it shrinks in every episode after the warm-up
HIDDEN = 64           # units of both hidden layers (AMC: 300)
UPDATES = 16          # after every episode
BATCH = 64
ACTOR_RATE, CRITIC_RATE = 1e-3, 3e-3
SOFT = 0.01           # of a network goes into its target with every update
AVERAGE = 0.95        # of the moving average of rewards stays with every episode (HAQ)
WORST_LOSS = 0.2      # of a share, or of the dense value: what a unit of the metric's part of the reward is
SMALLEST = 1e-6
PREFERENCES = 2       # under which every episode is learnt


@dataclass(frozen=True)
class _Episode:
    states: Tensor    # one per unit, and once more the last
    actions: Tensor
    reward: float


class PolicyGradient:
    """DDPG over one action per unit, conditioned on a preference."""

    def __init__(self, space: OptionSpace, objectives: Mapping[str, str], guide: Guide, seed: int) -> None:
        """Args are the options, the objectives with their directions, the table and cost terms, and the seed."""
        self._space, self._seed = space, seed
        self._signs = {name: -1.0 if direction == "max" else 1.0 for name, direction in objectives.items()}
        self._last = np.array([len(choices) - 1 for choices in space.options])
        self._facts = _facts(space, guide)
        width = self._facts.shape[1] + 2 + len(self._signs)
        generator = torch.Generator().manual_seed(seed)
        self._actor, self._actor_target = (_network(width, generator, bounded=True) for _ in range(2))
        self._critic, self._critic_target = (_network(width + 1, generator, bounded=False) for _ in range(2))
        self._actor_target.load_state_dict(self._actor.state_dict())
        self._critic_target.load_state_dict(self._critic.state_dict())
        self._actor_steps = torch.optim.Adam(self._actor.parameters(), lr=ACTOR_RATE)
        self._critic_steps = torch.optim.Adam(self._critic.parameters(), lr=CRITIC_RATE)
        self._episodes: deque[_Episode] = deque(maxlen=EPISODES)
        self._told = 0
        self._base: Array | None = None
        self._average: float | None = None

    @property
    def informed(self) -> bool:
        """Always: the warm-up is the agent's own."""
        return True

    def ask(self, seed: int, seen: set[Genome]) -> Genome:  # noqa: ARG002 - a known one is asked for again
        """Return an episode's choices: the actor's actions with noise, or random ones in the warm-up."""
        generator = np.random.default_rng(seed)
        preference = generator.dirichlet(np.ones(len(self._signs)))
        if self._told < WARM_UP:
            actions = np.full(len(self._last), generator.random())
            actions = np.clip(actions + 0.3 * generator.standard_normal(len(actions)), 0.0, 1.0)
            return self._space.canonical(self._genome(actions))
        spread = NOISE * DECAY ** (self._told - WARM_UP)
        chosen: list[float] = []
        with torch_threads(1), torch.inference_mode():
            for _ in self._last:
                state = torch.from_numpy(self._state(chosen, preference)[None]).float()
                noisy = float(self._actor(state)) + spread * float(generator.standard_normal())
                chosen.append(min(max(noisy, 0.0), 1.0))
        return self._space.canonical(self._genome(np.array(chosen)))

    def learn(self, genome: Genome, record: TrialRecord, violations: Mapping[str, float]) -> None:
        """Remember an episode under some preferences, and update both networks."""
        if record.state is not TrialState.COMPLETE:
            return
        values = np.array([sign * record.values[name] for name, sign in self._signs.items()])
        if self._base is None:   # the first trial of a search is the dense model
            self._base = values
        self._told += 1
        over = sum(value for value in violations.values() if value > 0.0)
        generator = np.random.default_rng([self._seed, self._told])
        for _ in range(PREFERENCES):
            preference = generator.dirichlet(np.ones(len(values)))
            self._episodes.append(self._episode(genome, preference, self._reward(values, preference) - over))
        if self._told >= WARM_UP:
            with torch_threads(1):
                for _ in range(UPDATES):
                    self._update(generator)

    def forget(self, genome: Genome) -> None:
        """Nothing is pending here."""

    def _genome(self, actions: Array) -> Genome:
        return tuple(np.rint(actions * self._last).astype(int).tolist())

    def _reward(self, values: Array, preference: Array) -> float:
        """Minus the weighted objectives: the metric's loss in units of the worst, costs relative to the first trial."""
        assert self._base is not None
        scales = np.where(self._base == 0.0, 1.0, np.abs(self._base))
        first = scales[0] if scales[0] > 1.0 else 1.0
        parts = values / scales
        parts[0] = (values[0] - self._base[0]) / (WORST_LOSS * first)
        return -float(preference @ parts)

    def _state(self, chosen: list[float], preference: Array) -> Array:
        """What the agent sees at the unit after those that it chose for."""
        place = min(len(chosen), len(self._last) - 1)
        before = [chosen[-1] if chosen else 0.0, sum(chosen) / len(self._last)]
        return np.concatenate([self._facts[place], before, preference])

    def _episode(self, genome: Genome, preference: Array, reward: float) -> _Episode:
        actions = (np.array(genome) / np.maximum(self._last, 1)).tolist()
        states = np.stack([self._state(actions[:count], preference) for count in range(len(actions) + 1)])
        self._average = reward if self._average is None else AVERAGE * self._average + (1.0 - AVERAGE) * reward
        return _Episode(torch.from_numpy(states).float(), torch.tensor(actions)[:, None], reward)

    def _update(self, generator: np.random.Generator) -> None:
        """One step of both networks on a random batch of transitions."""
        assert self._average is not None
        picked = [self._episodes[index] for index in generator.integers(len(self._episodes), size=BATCH)]
        steps = generator.integers(len(self._last), size=BATCH).tolist()
        states = torch.stack([one.states[step] for one, step in zip(picked, steps, strict=True)])
        following = torch.stack([one.states[step + 1] for one, step in zip(picked, steps, strict=True)])
        actions = torch.stack([one.actions[step] for one, step in zip(picked, steps, strict=True)])
        rewards = torch.tensor([[one.reward - self._average] for one in picked])
        going_on = torch.tensor([[float(step + 1 < len(self._last))] for step in steps])
        with torch.no_grad():
            ahead = self._critic_target(torch.cat([following, self._actor_target(following)], dim=1))
            targets = rewards + going_on * ahead
        loss = nn.functional.mse_loss(self._critic(torch.cat([states, actions], dim=1)), targets)
        _step(self._critic_steps, loss)
        _step(self._actor_steps, -self._critic(torch.cat([states, self._actor(states)], dim=1)).mean())
        with torch.no_grad():
            for network, target in ((self._actor, self._actor_target), (self._critic, self._critic_target)):
                for one, other in zip(network.parameters(), target.parameters(), strict=True):
                    other.lerp_(one, SOFT)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _network(width: int, generator: torch.Generator, *, bounded: bool) -> nn.Sequential:
    """Two hidden layers; the actor's output lies between 0 and 1."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        for inputs, outputs in ((width, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)):
            linear = nn.Linear(inputs, outputs)
            nn.init.uniform_(linear.weight, -1.0 / math.sqrt(inputs), 1.0 / math.sqrt(inputs), generator=generator)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
    layers[-1] = nn.Sigmoid() if bounded else nn.Identity()
    return nn.Sequential(*layers)


def _facts(space: OptionSpace, guide: Guide) -> Array:
    """What the agent knows of every unit: place, stage, method, options; what its strongest choice loses and saves."""
    methods = sorted({method_of(unit) for unit in space.units})
    tables = CostTables(space, guide.terms)
    dense = tables.at(np.array([space.dense], dtype=np.int64))[0]
    rows = []
    for place, (unit, choices) in enumerate(zip(space.units, space.options, strict=True)):
        losses = guide.losses.get(unit) or [0.0] * len(choices)
        strongest = np.zeros((1, len(space.units)), dtype=np.int64)
        strongest[0, place] = len(choices) - 1
        saved = 1.0 - tables.at(strongest)[0] / np.where(dense > 0.0, dense, 1.0)
        rows.append([
            place / len(space.units), guide.stages.get(unit, 0) / 4.0, *(method_of(unit) == one for one in methods),
            len(choices) / 10.0, math.log10(losses[-1] + SMALLEST) / 6.0,
            math.log10(losses[len(losses) // 2] + SMALLEST) / 6.0, *saved.tolist(),
        ])
    return np.array(rows, dtype=np.float64)
