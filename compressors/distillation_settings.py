"""How a network is distilled."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from paretopress.compressors.augmentation import Augmentation
from paretopress.spaces.errors import ConfigError


@dataclass(frozen=True)
class DistillationSettings:
    """How a network is distilled.

    Attributes:
        steps: Gradient steps.
        batch_size: Samples per step; models captured for one batch size use that.
        learning_rate: Peak step of the optimiser, relative to the size of each row of weights, for a network whose
            layers' outputs start as far off as `distillation_schedule.FAR`; one that starts nearer takes smaller
            steps. It rises over the first twentieth of the steps and falls to zero along a cosine.
        temperature: Softens both distributions where outputs are class scores.
        features: Weight of the mean relative squared error of the layers' outputs.
        narrowed: Whether the outputs of layers that lost outputs are among these, compared with those that stayed. It
            guides a short training; a long one finds better features where nothing holds them.
        augmentation: How inputs are varied.
        held_out: Fraction of the samples that training does not see; before and after are compared on variations
            of them.
        blocks: Fraction of the steps, and of the time, in which the blocks of the network are trained one after the
            other (`block_reconstruction`), before all layers are trained together.
        seconds: Time limit; the schedule then ends early, and the result depends on the machine's speed.
        bfloat16: Whether products are computed in bfloat16 (`torch.autocast`) where that is faster on the CPU, which is
            tried once, else in 32 bits as everything else is. What is stored is trained in 32 bits either way.
    """

    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 0.03
    temperature: float = 4.0
    features: float = 10.0
    narrowed: bool = True
    augmentation: Augmentation = field(default_factory=Augmentation)
    held_out: float = 0.125
    blocks: float = 0.0
    seconds: float | None = None
    bfloat16: bool = False

    def __post_init__(self) -> None:
        """Raise `ConfigError` for what cannot be trained with."""
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distillation: {name}: got {getattr(self, name)!r} (allowed: from 1)")
        for name in ("learning_rate", "temperature"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"distillation: {name}: got {getattr(self, name)!r} (allowed: above 0)")
        if not 0.0 <= self.features < math.inf:
            raise ConfigError(f"distillation: features: got {self.features!r} (allowed: from 0)")
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"distillation: held_out: got {self.held_out!r} (allowed: from 0 to below 1)")
        if not 0.0 <= self.blocks <= 1.0:
            raise ConfigError(f"distillation: blocks: got {self.blocks!r} (allowed: from 0 to 1)")
