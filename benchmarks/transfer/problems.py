"""The models, data and runs that the benchmarks of policy reuse share.

Every evaluation is counted in images forwarded, which does not depend on how busy a machine is: a choice of the table
is one pass over the tuning samples, a candidate one over these and, where it is not screened, one over the search
samples.
Evaluations of one (model, seed, data, device) are kept in a file and not repeated; they count whether they are repeated
or not.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.data import Data
from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import SerialExecutor
from paretopress.search.observer import Silent
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import Problem, SearchSettings, prepare_problem
from paretopress.search.table import measure_table
from paretopress.search.tasks import Substitution, Task
from paretopress.search.warm_start import features_of
from paretopress.search.workload import Workload
from paretopress.spaces.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
for folder in ("cifar", "kws"):
    sys.path.append(str(ROOT / "examples" / folder))

TARGET = "x86-zen4-vnni-onnxruntime"
CIFAR_CALIBRATION, CIFAR_SEARCH = 128, 320   # images: few, as these networks compute long; what counts are ratios


@dataclass
class Counted:
    """Does a run's tasks, counts images, and keeps what came of each task.

    Attributes:
        workload: Does what is not known yet; made when it is first needed.
        file: Where evaluations are kept, one JSON line each.
        images: Forwarded so far.
    """

    workload: Callable[[], Workload]
    file: Path
    images: int = 0
    known: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry["key"]] = entry

    def __call__(self, task: Task) -> Evaluation:
        """Do a task, or remember what came of it."""
        policy = task.policy if isinstance(task, Substitution) else task
        key = f"{'table' if isinstance(task, Substitution) else 'trial'}/{policy.hash}"
        if key not in self.known:
            found = self.workload()(task)
            entry = {"key": key, "state": found.state.value, "values": dict(found.values),
                     "constraints": dict(found.constraints), "reason": found.reason, "images": found.images}
            self.known[key] = entry
            with self.file.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
        entry = self.known[key]
        self.images += entry["images"]
        return Evaluation(State(entry["state"]), entry["values"], entry["constraints"], entry["reason"])


@dataclass
class Case:
    """A model with its data, prepared for one seed.

    Attributes:
        name: Of the model.
        problem: What is searched.
        counted: Does and counts the evaluations.
        seed: Of data, calibration and search.
        holder: The evaluator, once it is made.
    """

    name: str
    problem: Problem
    counted: Counted
    seed: int
    holder: list[CandidateEvaluator]

    @property
    def evaluator(self) -> CandidateEvaluator:
        """The evaluator, made when it is first needed."""
        if not self.holder:
            self.holder.append(prepare_evaluator(self.problem, Silent()))
        return self.holder[0]

    def executor(self) -> SerialExecutor:
        """An executor that counts."""
        return SerialExecutor(self.counted)


def case(name: str, seed: int, cache: Path, target: str = TARGET) -> Case:
    """Prepare a model for one seed."""
    torch.set_num_threads(1)
    model, data = MODELS[name]
    settings = SearchSettings(targets=(target,), trials=1, seed=seed, distil="off")
    problem = prepare_problem(model(), data(seed), settings)
    cache.mkdir(parents=True, exist_ok=True)
    ready: list[Workload] = []

    def workload() -> Workload:
        if not ready:
            ready.append(Workload.of(problem, made.evaluator))
        return ready[0]

    digest = hashlib.sha256(json.dumps(problem.fingerprints(), sort_keys=True).encode()).hexdigest()[:8]
    made = Case(name, problem, Counted(workload, cache / f"{name}-{target}-{seed}-{digest}.jsonl"), seed, [])
    return made


def measured(one: Case) -> Recipe:
    """The recipe of a case: its table, measured whole; policies are added by whoever searches."""
    table, failures = measure_table(one.problem.space, one.executor())
    for failure in failures:
        print(failure, file=sys.stderr)
    provenance = {"model": one.problem.model_fingerprint, "devices": [d.id for d in one.problem.costs.devices],
                  "seed": one.seed, "model_name": one.name}
    return Recipe(one.name, provenance, features_of(one.problem), dict(one.problem.space.options),
                  dict(table.losses), table.estimated)


def cifar_data(seed: int) -> Data:
    """Calibration on other training images for each seed, search on other ones of the first 2,500 validation images."""
    import cifar

    train, (pixels, labels) = cifar.images("train"), cifar.images("validation")
    rows = torch.randperm(cifar.SEARCH, generator=torch.Generator().manual_seed(seed))[:CIFAR_SEARCH]
    start = seed * CIFAR_CALIBRATION % (len(train[0]) - CIFAR_CALIBRATION)
    return Data(
        calibration=train[0][start:start + CIFAR_CALIBRATION], search=(pixels[rows], labels[rows]),
        holdout=(pixels[cifar.SEARCH:], labels[cifar.SEARCH:]),
    )


def kws_data(seed: int) -> Data:
    """The example's data, its calibration set in another order for each seed: which half is fitted to changes."""
    import kws

    data = kws.data()
    rows = torch.randperm(len(data.calibration[1]), generator=torch.Generator().manual_seed(seed))
    seen = (data.calibration[0][rows], data.calibration[1][rows])
    return replace(data, calibration=seen, search=seen)


def _cifar(depth: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import cifar

        return getattr(cifar, f"resnet{depth}")()

    return build


def _kws() -> nn.Module:
    import kws

    return kws.model()


def _wide_kws() -> nn.Module:
    from wider import wide_ds_cnn

    return wide_ds_cnn()


def _plain() -> nn.Module:
    from plain_cnn import plain_net

    return plain_net()


def _text(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import text

        return getattr(text, name)()

    return build


def text_data(seed: int) -> Data:
    """Other passages for each seed."""
    import text

    return text.data(seed)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Data]]] = {
    "resnet20": (_cifar(20), cifar_data),
    "resnet32": (_cifar(32), cifar_data),
    "resnet56": (_cifar(56), cifar_data),
    "plain_cnn": (_plain, cifar_data),
    "ds_cnn": (_kws, kws_data),
    "ds_cnn_wide": (_wide_kws, kws_data),
    "text_small": (_text("small"), text_data),
    "text_large": (_text("large"), text_data),
}
