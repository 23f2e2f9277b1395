"""Variants of one model as networks that a device is measured on, in turn with those of the general prior."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx
from paretopress.compressors.program import Program
from paretopress.compressors.refit import settle
from paretopress.hardware_profiles.networks import Network
from paretopress.hardware_profiles.priors import GENERAL
from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import Choice, Factorised, Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace, build_space

SAMPLES = 32                # of the data, for ranges of activations
STEP = 4                    # of channels and ranks: what measured profiles allow
QUANTISED = {"float32": 0.0, "int8": 1.0, "mixed": 0.6}      # share of the layers in 8 bits
RANKED = 0.25               # share of the layers with a low rank
SPREAD = 0.15               # of the widths of a variant's groups around a common one


@dataclass(frozen=True)
class ModelPrior:
    """Random policies of a model's search space, realised and exported as searches do it.

    Attributes:
        program: The captured model.
        space: What is legal on a processor that executes floats and int8.
        entries: Its compressed layers.
        shape: Of its input, with batch 1.
        drawn: Networks drawn for each that is timed: variants take long to make.
    """

    program: Program
    space: SearchSpace
    entries: Entries
    shape: tuple[int, ...]
    drawn: int = 1

    @classmethod
    def of(cls, program: Program, inputs: Sequence[Tensor]) -> ModelPrior:
        """Return the prior of a captured model.

        Args:
            program: The capture.
            inputs: A few samples, one tensor per model input.

        Raises:
            ConfigError: The model has several inputs, or one that holds no floats.
        """
        if len(inputs) != 1 or not inputs[0].is_floating_point():
            raise ConfigError("--model: kernels are measured for models with one input of floats; leave --model out")
        device = Capabilities("measured", formats=((8, 8),), channel_step=STEP, rank_step=STEP)
        entries = Entries(program, calibrate(program, [list(inputs)]), "l1")   # which channels stay does not matter
        batch = 1 if program.graph.dynamic_batch else program.graph.batch
        shape = (batch, *inputs[0].shape[1:])
        return cls(program, build_space(program.structure, [device]), entries, shape)

    @property
    def name(self) -> str:
        """Name in files of raw samples: the model's fingerprint."""
        return f"model {self.program.structure.fingerprint}"

    def network(self, seed: int, mode: str) -> Network:
        """Draw a variant, or a network of the general prior: half of each."""
        random = np.random.default_rng([seed, *mode.encode()])
        if random.random() < 0.5:
            return GENERAL.network(seed, mode)
        planned = plan(self.program.structure, self._policy(random, mode))
        with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(self.program, settle(self.entries, planned)[0], path)
            return Network(path.read_bytes(), cost_view(planned), self.shape, named=False)

    def _policy(self, random: np.random.Generator, mode: str) -> Policy:
        found: dict[str, Choice] = {}
        level = random.uniform(0.3, 1.0)
        for unit, options in self.space.options.items():
            kind = unit.rpartition("/")[2]
            if kind == "channels":
                kept = [choice for choice in options if isinstance(choice, Keep) and choice.ratio > 0]
                wanted = float(np.clip(level + random.normal(0.0, SPREAD), 0.1, 1.0))
                if kept and wanted < 0.97:
                    found[unit] = min(kept, key=lambda choice: abs(choice.ratio - wanted))
            elif kind == "rank" and random.random() < RANKED:
                ranks = [choice for choice in options if isinstance(choice, Factorised)]
                if ranks:
                    found[unit] = ranks[int(random.integers(len(ranks)))]
            elif kind == "weights" and Weights(8) in options and random.random() < QUANTISED[mode]:
                found[unit] = Weights(8)
        return Policy.of(found)
