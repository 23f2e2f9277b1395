"""Short trainings of many candidates: what is learnt from them, and which finalists they lead to."""

import math
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from paretopress.compressors.distillation import DistillationSettings
from paretopress.evaluators.candidate import Limits
from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.building import BuildSettings, Workshop, build_finalists
from paretopress.search.executors import SerialExecutor
from paretopress.search.observer import Silent
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import prepare_problem
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.rehearsal import Allowance, Rehearsals, cut_away, rehearse
from paretopress.search.tasks import Construction, Rehearsal
from paretopress.search.workload import Built, Workload
from paretopress.spaces.choices import Keep
from paretopress.spaces.policy import Policy

UNITS = ("early/channels", "middle/channels", "late/channels")
GOOD = {"early/channels": -0.8, "middle/channels": 0.8, "late/channels": -0.4}   # what a cut there adds after training
LIMITS = Limits((), 0.9, "max")
DENSE = Policy.of({})


def trials(count, seed=0):
    """Networks that diverge by what is cut away in all, wherever that is."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        ratios = {unit: rng.randrange(4, 16) / 16 for unit in UNITS}
        cut = sum(1.0 - ratio for ratio in ratios.values())
        loss = 0.1 * cut * rng.uniform(0.95, 1.05)
        values = {"accuracy": 0.95 - loss / 4, "size": 300.0 - 100.0 * cut, "divergence": loss}
        policy = Policy.of({unit: Keep(ratio) for unit, ratio in ratios.items()})
        made.append(TrialRecord(number, TrialState.COMPLETE, policy, values))
    return made


def trained(record, share=1.0):
    """Divergence after the whole training, or after a share of it."""
    added = sum(GOOD[unit] * (1.0 - choice.ratio) for unit, choice in record.policy)
    return record.values["divergence"] * (0.4 * math.exp(added)) ** share


class Trainer:
    """Stands where a `Workload` does: networks recover by where they are narrow."""

    def __init__(self, records, broken=()):
        self.records, self.broken = {record.policy.hash: record for record in records}, broken
        self.rehearsed, self.constructed = [], []

    def __call__(self, task):
        record = self.records.get(task.policy.hash)
        if isinstance(task, Rehearsal):
            self.rehearsed.append(task.policy.hash)
            if task.policy.hash in self.broken:
                raise RuntimeError("it broke")
            return Evaluation(State.COMPLETE, {"divergence": trained(record, 0.6)})
        assert isinstance(task, Construction)
        self.constructed.append(task.policy.hash)
        loss = trained(record) if record else 0.0
        folder = Path(task.folder)
        folder.mkdir()
        Built("distilled", 0.9, 0.95 - loss / 4, loss, 1, "").save(folder)
        return Evaluation(State.COMPLETE, {"accuracy": 0.95 - loss / 4})


def workshop(folder, trainer):
    return Workshop(folder, SerialExecutor(trainer), Silent())


def settings_of(rehearsed, finalists=4, deadline=None):
    return BuildSettings({"accuracy": "max", "size": "min"}, LIMITS, 0, finalists, 3, deadline, True, 0.0, rehearsed)


def hypervolume(shop, records):
    """What the built ones cover of the box up to a divergence of 0.2 and the dense size, by sampling it."""
    sizes = {record.policy.hash: record.values["size"] for record in records}
    points = [(built.divergence, sizes[key]) for key, built in shop.built.items() if key in sizes]
    grid = [(loss, size) for loss in np.linspace(0.0, 0.2, 60) for size in np.linspace(75.0, 300.0, 60)]
    return sum(any(a <= loss and b <= size for a, b in points) for loss, size in grid) / len(grid)


def test_where_training_helps_is_learnt_from_a_few_candidates():
    records = trials(120)
    known = Rehearsals({record.policy.hash: trained(record, 0.6) for record in records[:16]}, begun=True)
    expected, errors = known.expected(records)
    true = [trained(record, 0.6) for record in records]
    assert expected[:16] == pytest.approx(true[:16])
    assert not errors[:16].any()
    assert (errors[16:] > 0.0).all()
    before = [record.values["divergence"] for record in records]
    assert spearmanr(expected[16:], true[16:])[0] > 0.95 > spearmanr(before[16:], true[16:])[0] + 0.05
    inside = np.abs(np.log(expected[16:]) - np.log(true[16:])) <= 2.0 * errors[16:]
    assert inside.mean() >= 0.95


def test_nothing_rehearsed_leaves_what_was_known():
    records = trials(5)
    expected, errors = Rehearsals().expected(records)
    assert expected == pytest.approx([record.values["divergence"] for record in records])
    assert not errors.any()


def test_of_two_that_diverge_alike_before_training_the_narrower_one_is_expected_to_recover_less():
    """Failed rehearsals teach nothing, so that what is usual stays."""
    (like,) = trials(1)
    patterns = [(0.5, 0.5, 0.75), (0.75, 0.75, 0.25), (0.25, 0.25, 0.25), (1.0, 1.0, 1.0)]
    policies = [Policy.of({unit: Keep(keep) for unit, keep in zip(UNITS, widths, strict=True)}) for widths in patterns]
    records = [replace(like, number=number, policy=policy) for number, policy in enumerate(policies)]
    for rehearsals in (Rehearsals(begun=True), Rehearsals({records[0].policy.hash: math.inf}, begun=True)):
        expected, _ = rehearsals.expected(records)
        narrow = -np.log([[choice.ratio for _, choice in record.policy] for record in records]).sum(axis=1)
        assert expected.argsort().tolist() == narrow.argsort().tolist()
        assert (expected <= like.values["divergence"] * (1.0 + 1e-9)).all()


def test_what_is_cut_away_is_a_column_for_each_group():
    one = Policy.of({"a/channels": Keep(0.25)})
    other = Policy.of({"b/channels": Keep(0.5)})
    assert cut_away([one, other, DENSE]).tolist() == [[0.75, 0.0], [0.0, 0.5], [0.0, 0.0]]


def test_the_same_number_of_whole_trainings_gives_a_better_front(tmp_path):
    gains = []
    for seed in range(5):
        records, fronts = trials(200, seed), []
        for rehearsed in (False, True):
            trainer = Trainer(records)
            shop = workshop(tmp_path / f"{seed}-{rehearsed}", trainer)
            build_finalists(shop, [DENSE], records, settings_of(rehearsed))
            assert len(trainer.constructed) <= 1 + 4
            assert len(trainer.rehearsed) == (8 if rehearsed else 0)
            fronts.append(hypervolume(shop, records))
        gains.append(fronts[1] - fronts[0])
    assert np.mean(gains) > 0.01
    assert sum(gain >= 0.0 for gain in gains) >= 4


def test_two_thirds_of_what_is_built_were_drawn_at_random_where_something_was(tmp_path):
    records = trials(60)
    drawn = frozenset(record.policy.hash for record in records[::6])
    counts = []
    for chosen in (frozenset(), drawn):
        trainer = Trainer(records)
        settings = replace(settings_of(True, finalists=8), drawn=chosen)
        build_finalists(workshop(tmp_path / str(len(chosen)), trainer), [DENSE], records, settings)
        counts.append([sum(one in drawn for one in found) for found in (trainer.constructed, trainer.rehearsed)])
        assert len(trainer.constructed) == 1 + 8
    assert counts[1][0] >= 5 > counts[0][0]
    assert counts[1][1] > counts[0][1]


def test_no_candidate_is_rehearsed_twice_and_failures_are_left_out(tmp_path):
    records = trials(30)
    trainer = Trainer(records, broken={record.policy.hash for record in records[::2]})
    shop = workshop(tmp_path / "shop", trainer)
    chosen = build_finalists(shop, [DENSE], records, settings_of(True))
    assert len(trainer.rehearsed) == len(set(trainer.rehearsed))
    assert set(trainer.rehearsed) == set(shop.rehearsals.losses)
    assert any(math.isinf(loss) for loss in shop.rehearsals.losses.values())
    assert len(chosen) == 4


def test_no_time_means_no_rehearsals(tmp_path):
    records = trials(30)
    trainer = Trainer(records)
    build_finalists(workshop(tmp_path / "shop", trainer), [DENSE], records, settings_of(True, deadline=0.0))
    assert trainer.rehearsed == []
    assert len(trainer.constructed) == 1 + 3


def test_slow_rehearsals_end_after_the_first(monkeypatch):
    allowance = Allowance.of(4, time.monotonic() + 1000.0, 2)
    assert allowance.most == 16
    assert allowance.seconds == pytest.approx(1000.0 * 0.25 * 2 / 12, rel=1e-3)
    begin = time.monotonic()
    assert not allowance.hurried(begin, 0.2)
    monkeypatch.setattr(time, "monotonic", lambda: begin + 51.0)
    assert allowance.hurried(begin, 0.2)
    assert allowance.in_time()
    monkeypatch.setattr(time, "monotonic", lambda: begin + 251.0)
    assert not allowance.in_time()
    found, trainer = Rehearsals(), Trainer(trials(3))
    assert rehearse(SerialExecutor(trainer), [record.policy for record in trials(3)], allowance, found) == 0
    assert found.losses == {}


def test_a_rehearsal_trains_a_little_and_always_the_same(tiny, tiny_settings):
    problem = prepare_problem(tiny.module.model(), tiny.module.data(), replace(tiny_settings, distil="calibration"))
    torch.set_num_threads(1)
    work = Workload.of(problem, prepare_evaluator(problem, Silent()))
    work = replace(work, distillation=DistillationSettings(steps=240, batch_size=16))
    keeps = {unit: next(choice for choice in options if isinstance(choice, Keep) and choice.ratio <= 0.3)
             for unit, options in problem.space.options.items() if unit.endswith("/channels")}
    policy = problem.policy(keeps)
    before = work(policy).values["divergence"]
    losses = [work(Rehearsal(policy, steps)).values["divergence"] for steps in (40, 40)]
    assert losses[0] == losses[1] < before
    assert work(Rehearsal(policy, 40, seconds=0.0)).values["divergence"] > losses[0]
    assert replace(work, training=())(Rehearsal(policy, 40)).values["divergence"] == pytest.approx(before)
