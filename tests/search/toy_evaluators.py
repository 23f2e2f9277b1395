"""Evaluators for tests: cheap ones with a known front, real tensor work, and faulty ones."""

import math
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.errors import DiskError
from paretopress.spaces.policy import Policy

BITS = (None, Weights(8), Weights(4), Weights(2))
WIDTHS = (None, Keep(0.75), Keep(0.5), Keep(0.25))
SAVED = {None: 0, BITS[1]: 4, BITS[2]: 6, BITS[3]: 7, WIDTHS[1]: 2, WIDTHS[2]: 4, WIDTHS[3]: 6}
LOST = {None: 0, BITS[1]: 1, BITS[2]: 4, BITS[3]: 20, WIDTHS[1]: 3, WIDTHS[2]: 8, WIDTHS[3]: 25}


def toy_options(layers=3):
    options = {}
    for index in range(layers):
        options[f"layer{index}/channels"] = WIDTHS
        options[f"layer{index}/weights"] = BITS
    return options


@dataclass
class ToyEvaluator:
    """Additive loss and savings with weights per layer, and a bonus for equal widths of neighbours."""

    budget: float = 1e9
    delay: float = 0.0

    def __call__(self, policy: Policy) -> Evaluation:
        time.sleep(self.delay)
        saved = lost = 0.0
        for name, choice in policy:
            layer = int(name[5:name.index("/")])
            saved += SAVED[choice] * (layer + 1)
            lost += LOST[choice] * (1 + (7 * layer) % 3)
        size = 100.0 - saved
        violations = {"size": size - self.budget, "drop": lost - 1e6}
        return Evaluation(State.COMPLETE, {"accuracy": -lost, "size": size}, violations)


class TensorEvaluator:
    """Float sums whose last bits depend on the number of threads."""

    def __init__(self):
        import torch

        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(600, 600, generator=generator)
        self.vector = torch.randn(2_000_000, generator=generator)

    def __call__(self, policy):
        import torch

        scale = 1.0 + sum(float(getattr(choice, "ratio", 0.3)) for _, choice in policy)
        product = torch.softmax(self.matrix @ (self.matrix * scale), dim=1)
        accuracy = float(product.std()) + float((self.vector * scale).sum())
        return Evaluation(State.COMPLETE, {"accuracy": accuracy, "threads": float(torch.get_num_threads())})


@dataclass
class FaultyEvaluator:
    """Does what the policy's bit width names; the log counts how often each was tried."""

    log: str
    faults: dict = field(default_factory=dict)

    def __call__(self, policy):
        fault = self.faults.get(policy.hash, "")
        with Path(self.log).open("a") as stream:
            stream.write(fault + "\n")
        match fault:
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "kill once":
                if Path(self.log).read_text().splitlines().count(fault) == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(600)
            case "raise":
                raise KeyError("no\nsuch layer")
            case "nan":
                return Evaluation(State.COMPLETE, {"accuracy": math.nan})
            case "nothing":
                return None
            case "disk":
                raise DiskError("cannot write memo: the disk is full")
        return Evaluation(State.COMPLETE, {"accuracy": 1.0})


class Unloadable:
    def __reduce__(self):
        return int, ("not a number",)


class StagedEvaluator:
    """Two stages: a divergence that grows with what is pruned, then the accuracy."""

    def __call__(self, policy):
        *_, (evaluation, _) = self.stages(policy)
        return evaluation

    def stages(self, policy):
        lost = 1.0 - policy.items[0][1].ratio
        yield Evaluation(State.SCREENED, {"divergence": lost, "size": 1.0 - lost}, {}, "not scored"), False
        yield Evaluation(State.COMPLETE, {"accuracy": 1.0 - lost, "divergence": lost, "size": 1.0 - lost}), True
