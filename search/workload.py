"""What a run's workers hold, and how they do each kind of task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from paretopress.compressors.augmentation import Augmenter
from paretopress.compressors.distillation import DistillationSettings, Distilled, distil, output_divergence
from paretopress.evaluators.batches import Batches
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.construction import (
    REFIT_SAMPLES,
    TRAINING_SAMPLES,
    Scores,
    build,
    flat_inputs,
    realised,
    stitched,
)
from paretopress.evaluators.data import FEWEST_APART
from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.evaluators.sensitivity import substitution_loss
from paretopress.evaluators.verification import PARITY_SAMPLES, add_onnx, output_digest
from paretopress.search.problem import Problem
from paretopress.search.tasks import Challenge, Construction, Rehearsal, Substitution, Task
from paretopress.spaces.documents import read_document, write_json
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.policy import Policy

FEWEST_SCORED = 256   # samples that tell by themselves how networks compare after a rehearsal
VARIED = 512          # variations that do where there are fewer


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
        """Read the record beside an artefact. Raises `ConfigError` or `ArtifactError`."""
        plain = read_document(_record_of(folder))
        names = [field.name for field in fields(cls)]
        texts = ("tier", "digest")
        if not isinstance(plain, dict) or sorted(plain) != sorted(names) or not all(
            isinstance(plain[name], str if name in texts else int | float) for name in names
        ):
            raise ArtifactError(f"{_record_of(folder)}: damaged: not the record of a finalist")
        return cls(**plain)


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
        rehearsing: Those of the training inputs that are not scored, where these are enough; else all of them.
        distillation: How they are distilled.
    """

    evaluator: CandidateEvaluator
    model: nn.Module
    inputs: tuple[Tensor, ...]
    check: Batches
    seed: int
    training: tuple[Tensor, ...] = ()
    trains_on_search: bool = False
    rehearsing: tuple[Tensor, ...] = ()
    distillation: DistillationSettings = DistillationSettings()   # noqa: RUF009 - frozen

    @classmethod
    def of(cls, problem: Problem, evaluator: CandidateEvaluator) -> Workload:
        """The workload of a run."""
        inputs = flat_inputs(problem.program, problem.data.fitted.first(REFIT_SAMPLES))
        check, settings = problem.data.holdout.first(PARITY_SAMPLES), problem.settings
        samples = problem.distillation_samples()
        if samples is None:
            return cls(evaluator, problem.model, inputs, check, settings.seed)
        samples = samples.first(TRAINING_SAMPLES)
        training = flat_inputs(problem.program, samples)
        scored = set(evaluator.samples.row_hashes())
        apart = [row for row, digest in enumerate(samples.row_hashes()) if digest not in scored]
        shared = len(apart) < samples.count
        rehearsing = tuple(tensor[apart] for tensor in training) if len(apart) >= FEWEST_APART else training
        return cls(evaluator, problem.model, inputs, check, settings.seed, training, shared, rehearsing,
                   settings.distillation)

    def __call__(self, task: Task) -> Evaluation:
        """Do one task: a policy, a challenge, a substitution (`loss`), a rehearsal (`divergence`) or a construction."""
        match task:
            case Challenge(policy, rivals):
                return self.evaluator(policy, rivals)
            case Substitution(policy):
                entries = self.evaluator.entries
                loss, images = substitution_loss(entries, policy), len(entries.calibration.inputs[0])
                return Evaluation(State.COMPLETE, {"loss": loss}, images=images)
            case Rehearsal():
                return Evaluation(State.COMPLETE, {"divergence": self.rehearse(task)})
            case Construction():
                built = self.construct(task)
                return Evaluation(State.COMPLETE, {"accuracy": built.refitted, "divergence": built.divergence})
            case _:
                return self.evaluator(task)

    def rehearse(self, task: Rehearsal) -> float:
        """Divergence of a candidate after a few steps of training, on the search set.

        Where this set is all there is to train on, it is trained on the half that is not scored: what was trained on
        flatters those candidates most that have the most to fit. Few samples are scored in variations: on the dense
        model's own few mistakes and doubts hangs most of a divergence on a hundred samples. Nine networks of DS-CNN
        that were trained for 160 steps were ranked as on unseen inputs with a correlation of 0.23 by 128 scored
        samples, and of 0.70 by 512 variations of these (one seed, standard error 0.35).
        """
        network, _ = stitched(self.evaluator.entries, task.policy)
        if not self.training:
            return self.evaluator.score(network)["divergence"]
        program = self.evaluator.entries.program
        settings = replace(self.distillation, steps=min(task.steps, self.distillation.steps), seconds=task.seconds)
        inputs = self.rehearsing or self.training
        network = distil(program, network, inputs, settings, seed=self.seed).network
        if self.evaluator.samples.count >= FEWEST_SCORED:
            return self.evaluator.score(network)["divergence"]
        return output_divergence(program, network, self._variations())

    def _variations(self) -> list[Tensor]:
        """Variations of the scored samples, always the same ones, one tensor per model input."""
        samples = self.evaluator.samples
        inputs = flat_inputs(self.evaluator.entries.program, samples)
        generator = torch.Generator().manual_seed(self.seed)
        augmenter = Augmenter(inputs, self.distillation.augmentation, generator)
        batches = [augmenter.batch(samples.count) for _ in range(-(-VARIED // samples.count))]
        return [torch.cat(column) for column in zip(*batches, strict=True)]

    def stages(self, task: Task) -> Iterator[tuple[Evaluation, bool]]:
        """Do one task in the stages that it has; the last one, marked so, is what calling returns."""
        match task:
            case Policy():
                yield from self.evaluator.stages(task)
            case Challenge(policy, rivals):
                yield from self.evaluator.stages(policy, rivals)
            case _:
                yield self(task), True

    def construct(self, task: Construction) -> Built:
        """Build a finalist and store it in the task's folder, with its record beside it.

        The dense model gets its ONNX file too: times of the others are paired with it.
        """
        program, policy, folder = self.evaluator.entries.program, task.policy, Path(task.folder)
        known = dict(zip(("accuracy", "divergence"), task.evaluated, strict=True)) if task.evaluated else None
        entries, score = self.evaluator.entries, self.evaluator.score
        network, tier, before, after = build(entries, policy, self.inputs, score, self.seed, known)
        if self.training:
            settings = replace(self.distillation, seconds=task.seconds)
            distilled = distil(program, network, self.training, settings, seed=self.seed)
            if distilled.network is not network:
                network, tier, after = distilled.network, "distilled", self._scored(distilled, after)
        compressed = realised(self.model, program, network)
        compressed.save(folder, overwrite=True)
        if policy.is_dense:
            add_onnx(compressed, folder)
        built = Built(
            tier, before["accuracy"], after["accuracy"], after["divergence"], compressed.size_bytes,
            output_digest(compressed, self.check),
        )
        built.save(folder)
        return built

    def _scored(self, distilled: Distilled, before: Scores) -> Scores:
        """Scores of a distilled network; where it was trained on the search samples, their divergence flatters it.

        What it gained on the samples that were held out stands in for what it gained there.
        """
        after = self.evaluator.score(distilled.network)
        if self.trains_on_search and distilled.before > 0.0:
            after["divergence"] = before["divergence"] * distilled.after / distilled.before
        return after
