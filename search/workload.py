"""What a run's workers hold, and how they do each kind of task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from paretopress.compressors.distillation import DistillationSettings, Distilled, distil
from paretopress.compressors.network import Network, dense_network
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit
from paretopress.evaluators.batches import Batches
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.evaluators.sensitivity import substitution_loss
from paretopress.evaluators.verification import PARITY_SAMPLES, add_onnx, output_digest
from paretopress.search.problem import Problem
from paretopress.search.tasks import Construction, Substitution, Task
from paretopress.spaces.documents import read_document, write_json
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

REFIT_SAMPLES = 512
TRAINING_SAMPLES = 10_000   # every worker holds them


@dataclass(frozen=True, slots=True)
class Built:
    """A finalist as it was built and stored.

    Attributes:
        tier: `"dense"`, `"entries"`, `"refit"` or `"distilled"`: which build is stored.
        stitched: Accuracy on the search set before the refit.
        refitted: Accuracy on the search set of what is stored.
        divergence: Divergence from the dense model on the search set of what is stored.
        size_bytes: Its tensor payload.
        digest: Of its outputs on the first holdout samples, to compare with after reloading.
    """

    tier: str
    stitched: float
    refitted: float
    divergence: float
    size_bytes: int
    digest: str

    def save(self, folder: Path) -> None:
        """Write the record beside an artefact. Raises `DiskError`."""
        write_json(_record_of(folder), asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Built:
        """Read the record beside an artefact."""
        return cls(**read_document(_record_of(folder)))


def _record_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


@dataclass(frozen=True)
class Workload:
    """Does every task of a run; ships to workers as one value.

    Attributes:
        evaluator: Evaluates candidates; its memory of compressed layers serves all tasks.
        model: The user's dense model, to realise finalists with.
        inputs: Calibration samples of the refit as one batch, one tensor per model input.
        check: The first holdout samples: what an artefact computes on them must survive reloading.
        seed: Seed of the refit's sampled positions and of the distillation.
        training: Inputs that finalists are distilled on, as one batch; empty where they are not.
        trains_on_search: Whether these are search samples too.
        distillation: How they are distilled.
    """

    evaluator: CandidateEvaluator
    model: nn.Module
    inputs: tuple[Tensor, ...]
    check: Batches
    seed: int
    training: tuple[Tensor, ...] = ()
    trains_on_search: bool = False
    distillation: DistillationSettings = DistillationSettings()   # noqa: RUF009 - frozen

    @classmethod
    def of(cls, problem: Problem, evaluator: CandidateEvaluator) -> Workload:
        """The workload of a run."""
        batch = problem.data.fitted.first(REFIT_SAMPLES).whole
        inputs = tuple(problem.program.flatten_inputs(batch.args, batch.kwargs))
        check = problem.data.holdout.first(PARITY_SAMPLES)
        samples = problem.distillation_samples()
        if samples is None:
            return cls(evaluator, problem.model, inputs, check, problem.settings.seed)
        samples = samples.first(TRAINING_SAMPLES)
        training = tuple(problem.program.flatten_inputs(samples.whole.args, samples.whole.kwargs))
        shared = not set(samples.row_hashes()).isdisjoint(evaluator.samples.row_hashes())
        return cls(evaluator, problem.model, inputs, check, problem.settings.seed, training, shared)

    def __call__(self, task: Task) -> Evaluation:
        """Do one task: `Policy`, `Substitution` (`loss`) or `Construction` (see `Built`)."""
        match task:
            case Substitution(policy):
                return Evaluation(State.COMPLETE, {"loss": substitution_loss(self.evaluator.entries, policy)})
            case Construction():
                built = self.construct(task)
                return Evaluation(State.COMPLETE, {"accuracy": built.refitted, "divergence": built.divergence})
            case _:
                return self.evaluator(task)

    def construct(self, task: Construction) -> Built:
        """Build a finalist and store it in the task's folder, with its record beside it.

        The dense model gets its ONNX file too: times of the others are paired with it.
        """
        program, policy, folder = self.evaluator.entries.program, task.policy, Path(task.folder)
        network, tier, before, after = build(self.evaluator, policy, self.inputs, self.seed, task.evaluated)
        if self.training:
            settings = replace(self.distillation, seconds=task.seconds)
            distilled = distil(program, network, self.training, settings, seed=self.seed)
            if distilled.network is not network:
                network, tier, after = distilled.network, "distilled", self._scored(distilled, after)
        if policy.is_dense:
            network = dense_network(program, plan(program.structure, policy))
        compressed = realise(self.model, program, network)
        compressed.save(folder, overwrite=True)
        if policy.is_dense:
            add_onnx(compressed, folder)
        built = Built(
            tier, before["accuracy"], after["accuracy"], after["divergence"], compressed.size_bytes,
            output_digest(compressed, self.check),
        )
        built.save(folder)
        return built

    def _scored(self, distilled: Distilled, before: dict[str, float]) -> dict[str, float]:
        """Scores of a distilled network; where it was trained on the search samples, their divergence flatters it.

        What it gained on the samples that were held out stands in for what it gained there.
        """
        after = self.evaluator.score(distilled.network)
        if self.trains_on_search and distilled.before > 0.0:
            after["divergence"] = before["divergence"] * distilled.after / distilled.before
        return after


def build(
    evaluator: CandidateEvaluator,
    policy: Policy,
    inputs: Sequence[Tensor],
    seed: int,
    evaluated: tuple[float, float] | None = None,
) -> tuple[Network, str, dict[str, float], dict[str, float]]:
    """Build a finalist by the refit pass; keep the stitched build where that one diverges less.

    Args:
        evaluator: Scores networks on the search set.
        policy: What to build.
        inputs: Calibration samples as one batch.
        seed: Seed of the refit's sampled positions.
        evaluated: `(accuracy, divergence)` of the stitched build where they are known: it is made only if it is
            better than the refit then.

    Returns:
        The network, which build it is, the scores of the stitched and of the stored build on the search set.
    """
    entries = evaluator.entries
    stitched: Network | None = None
    if evaluated is None or policy.is_dense:
        stitched, _ = evaluator.build(policy)
        before = evaluator.score(stitched)
    else:
        before = dict(zip(("accuracy", "divergence"), evaluated, strict=True))
    if stitched is not None and policy.is_dense:
        return stitched, "dense", before, before
    with torch.inference_mode():
        refitted = refit(entries.program, entries, plan(entries.program.structure, policy), inputs, seed=seed)
    after = evaluator.score(refitted)
    if after["divergence"] <= before["divergence"]:
        return refitted, "refit", before, after
    return stitched or evaluator.build(policy)[0], "entries", before, before
