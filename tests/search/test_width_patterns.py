"""Random widths that just meet the budgets, and candidates of which no two keep nearly the same channels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from paretopress.compressors.distillation import DistillationSettings
from paretopress.evaluators.budgets import parse_budget
from paretopress.evaluators.candidate import DROP, Limits
from paretopress.evaluators.data import FEWEST_APART, Data
from paretopress.search import width_patterns
from paretopress.search import workload as workloads
from paretopress.search.finalists import ALIKE, least_divergent, least_divergent_apart, surest, unlike
from paretopress.search.observer import Silent
from paretopress.search.outlook import outlook
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import prepare_problem
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.rehearsal import cut_away
from paretopress.search.tasks import Rehearsal
from paretopress.search.width_patterns import LEAST_SHARE, PATTERNS, finer_formats, scattered_widths
from paretopress.search.workload import Workload
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.policy import Policy

UNITS = ("early/channels", "middle/channels", "late/channels")


def problem_of(tiny, tiny_settings, **options):
    return prepare_problem(tiny.module.model(), tiny.module.data(), replace(tiny_settings, **options))


@pytest.mark.parametrize("budget", ["-78%", "-84%"])
def test_patterns_meet_the_budget_barely_and_differ(tiny, tiny_settings, budget):
    problem = problem_of(tiny, tiny_settings, budgets=(parse_budget(budget, "size"),))
    (limit,) = problem.limits_without_accuracy().costs
    policies = scattered_widths(problem)
    shares = np.array([problem.costs.predict(problem.plan(one))[limit[1]] / limit[2] for one in policies])
    assert (shares <= 1.0 + 1e-9).all()
    assert np.median(shares) > LEAST_SHARE - 0.1   # there are only so many widths
    assert 4 <= len(set(policies)) == len(policies) <= PATTERNS
    assert len({tuple(row) for row in cut_away(policies)}) > len(policies) / 2
    assert all(choice.bits == 8 for policy in policies for _, choice in policy if isinstance(choice, Weights))
    assert scattered_widths(problem) == policies
    other = problem_of(tiny, tiny_settings, budgets=(parse_budget(budget, "size"),), seed=1)
    assert scattered_widths(other) != policies


def test_the_patterns_that_are_narrowed_least_come_first_and_are_apart():
    widths = np.random.default_rng(0).integers(2, 9, (600, 4)) / 8
    fits = np.arange(0, 600, 2)
    first = width_patterns._least_narrowed(widths, fits, [1, 3], 10)
    assert first[:2] == [1, 3]
    assert len(first) == len(set(first)) == 12
    assert set(first[2:]) <= set(fits.tolist())
    products = widths.prod(axis=1)
    best = np.sort(products[fits])[-len(fits) // width_patterns.BEST:]
    assert (products[first[2:]] >= best[0]).all()
    apart = np.abs(widths[first][:, None] - widths[first][None]).sum(axis=2)
    assert (apart[2:][~np.eye(12, dtype=bool)[2:]] >= width_patterns.APART).all()
    assert width_patterns._least_narrowed(widths, fits[:0], [1], 10) == [1]


def test_wider_budgets_leave_wider_networks(tiny, tiny_settings):
    cut = []
    for budget in ("-77%", "-84%"):
        problem = problem_of(tiny, tiny_settings, budgets=(parse_budget(budget, "size"),))
        cut.append(cut_away(scattered_widths(problem)).mean())
    assert cut[0] < cut[1]


def test_patterns_are_nearly_even(tiny_settings, monkeypatch):
    layers = [layer for _ in range(5) for layer in (torch.nn.Linear(64, 64), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 4)).eval()
    inputs, labels = torch.randn(384, 64), torch.randint(4, (384,))
    data = Data(calibration=inputs[:128], search=(inputs[128:256], labels[128:256]),
                holdout=(inputs[256:], labels[256:]))
    problem = prepare_problem(model, data, replace(tiny_settings, budgets=(parse_budget("-85%", "size"),)))
    unevenness = []
    for spread in (width_patterns.SPREAD, 0.4):
        monkeypatch.setattr(width_patterns, "SPREAD", spread)
        policies = scattered_widths(problem)
        assert len(policies) >= PATTERNS // 2
        unevenness.append(np.log(1.0 - cut_away(policies)).std(axis=1).mean())
    assert unevenness[0] < 0.22
    assert unevenness[0] < 0.8 * unevenness[1]


@pytest.mark.parametrize("options", [{}, {"budgets": (parse_budget("2pp", "max_drop"),)}])
def test_without_budgets_on_costs_there_is_nothing_to_meet(tiny, tiny_settings, options):
    assert scattered_widths(problem_of(tiny, tiny_settings, **options)) == []


def test_what_keeps_few_bits_without_need_is_tried_with_eight(tiny, tiny_settings):
    budgets = (parse_budget("-60%", "size"),)
    problem = problem_of(tiny, tiny_settings, budgets=budgets, distil="calibration")
    keeps = [unit for unit in problem.space.options if unit.endswith("/channels")]
    formats = {unit: [one for one in options if isinstance(one, Weights) and one.activations == 32]
               for unit, options in problem.space.options.items() if unit.endswith("/weights")}
    coarse = {unit: min(options, key=lambda one: one.bits) for unit, options in formats.items()}
    assert min(one.bits for one in coarse.values()) < 8

    def record(number, position, divergence, formats=coarse, **changes):
        widths = {unit: [one for one in problem.space.options[unit] if isinstance(one, Keep) and one.ratio][position]
                  for unit in keeps}
        policy = problem.policy({**widths, **formats})
        return TrialRecord(number, TrialState.COMPLETE, policy, {"divergence": divergence}, **changes)

    worse, better, other = record(0, 0, 0.5, {}), record(1, 0, 0.4), record(2, 1, 0.3)
    over = record(3, 2, 0.1, constraints={"size <= -60%": 5.0})
    dropped = record(4, 2, 0.2, constraints={f"{DROP} <= 1pp": 0.1})
    found = finer_formats(problem, [worse, better, over, other])
    assert [dict(policy)[keeps[0]] for policy in found] == [dict(one.policy)[keeps[0]] for one in (other, better)]
    for policy in found:
        chosen = [choice for _, choice in policy if isinstance(choice, Weights)]
        assert len(chosen) == len(coarse)
        assert all(one.bits == 8 and one.activations == 32 for one in chosen)
    assert len(finer_formats(problem, [over])) == 0
    assert len(finer_formats(problem, [dropped])) == 1   # training decides about the accuracy
    assert finer_formats(problem, [replace(better, policy=found[1])]) == []
    assert finer_formats(problem_of(tiny, tiny_settings, budgets=budgets), [better]) == []
    narrower = problem_of(tiny, tiny_settings, budgets=(parse_budget("-99%", "size"),), distil="calibration")
    assert finer_formats(narrower, [better]) == []


def trial(number, widths, divergence, bits=8):
    keeps = {unit: Keep(ratio) for unit, ratio in zip(UNITS, widths, strict=True)}
    policy = Policy.of({**keeps, "late/weights": Weights(bits, 32)})
    values = {"accuracy": 0.9, "divergence": divergence, "size": 10.0 * sum(widths)}
    return TrialRecord(number, TrialState.COMPLETE, policy, values)


def prospects(records):
    return list(outlook(records, {}, Limits((), None, "max")).prospects)


def test_no_two_keep_nearly_the_same_channels():
    generator = np.random.default_rng(0)
    records = [trial(number, generator.integers(2, 9, 3) / 8, float(generator.uniform(0.1, 1.0)))
               for number in range(120)]
    known = prospects(records)
    picked = least_divergent_apart(known, 12, known[:2])
    cut = cut_away([one.record.policy for one in (*known[:2], *picked)])
    apart = np.abs(cut[:, None] - cut[None]).sum(axis=2)[2:]
    assert len(picked) == 12
    assert (apart[~np.eye(14, dtype=bool)[2:]] >= ALIKE).all()
    assert [one.promise for one in picked] == sorted(one.promise for one in picked)
    every = cut_away([one.record.policy for one in known])
    far = np.abs(every[:, None] - cut[None, :2]).sum(axis=2).min(axis=1) >= ALIKE
    assert picked[0].promise == min(one.promise for one, good in zip(known, far, strict=True) if good)


def test_of_the_same_channels_the_one_that_loses_least_before_training_stands():
    """Short trainings tell formats apart by chance alone; what coarse weights lose before it they go on losing."""
    widths = (0.5, 0.75, 0.5)
    coarse, fine, wide = trial(0, widths, 0.30, bits=2), trial(1, widths, 0.28), trial(2, (1.0, 1.0, 0.5), 0.29)
    lucky = [replace(one, promise=promise) for one, promise in zip(prospects([coarse, fine, wide]), (0.1, 0.3, 0.2),
                                                                   strict=True)]
    assert [one.record for one in least_divergent(lucky, 1)] == [coarse]
    assert [one.record for one in least_divergent_apart(lucky, 3, [])] == [wide, fine]


def test_where_no_channels_are_cut_formats_differ():
    records = [trial(number, (1.0, 1.0, 1.0), 0.1 * (number + 1), bits) for number, bits in enumerate((8, 4, 3))]
    assert [one.record for one in least_divergent_apart(prospects(records), 2, [])] == records[:2]


def test_the_surest_are_apart_where_they_are_trained():
    records = [trial(number, (0.5, 0.5, 0.5 + number / 64), 0.2 + number / 100) for number in range(8)]
    records.append(trial(8, (0.5, 0.75, 0.25), 0.4))
    limits = Limits((("size", "size", 20.0),), None, "max")
    known = list(outlook(records, {}, limits).prospects)
    objectives = {"accuracy": "max", "size": "min"}
    assert records[8] not in [one.record for one in surest(known, [], objectives, limits, 1)[:2]]
    assert [one.record for one in surest(known, [], objectives, limits, 1, apart=True)[:2]] == [records[0], records[8]]


def test_a_rehearsal_is_scored_on_what_it_was_not_trained_on(tiny, tiny_settings, monkeypatch):
    inputs, labels = tiny.module.samples(2 * FEWEST_APART, 2)
    data = Data(inputs, (inputs, labels), tiny.module.samples(100, 4))
    problem = prepare_problem(tiny.module.model(), data, replace(tiny_settings, distil="calibration"))
    torch.set_num_threads(1)
    work = replace(Workload.of(problem, prepare_evaluator(problem, Silent())),
                   distillation=DistillationSettings(steps=4, batch_size=16))
    assert work.trains_on_search
    (trained,), scored = work.rehearsing, work.evaluator.samples.whole.args[0]
    assert len(trained) == len(scored) == FEWEST_APART
    assert not {row.tobytes() for row in trained.numpy()} & {row.tobytes() for row in scored.numpy()}
    assert len(work.training[0]) == 2 * FEWEST_APART   # finalists are trained on everything
    seen, real = [], workloads.distil
    monkeypatch.setattr(workloads, "distil", lambda *arguments, **options: (
        seen.append(arguments[2]), real(*arguments, **options))[1])
    loss = work.rehearse(Rehearsal(problem.even_widths()[2], 4))
    assert math.isfinite(loss)
    assert seen == [work.rehearsing]

    varied = []
    real_divergence = workloads.output_divergence
    monkeypatch.setattr(workloads, "output_divergence", lambda *arguments: (
        varied.append(arguments[2]), real_divergence(*arguments))[1])
    assert work.rehearse(Rehearsal(problem.even_widths()[2], 4)) == loss
    ((few,),) = varied                      # few samples are scored in variations, always the same
    assert len(few) == workloads.VARIED
    assert not {row.tobytes() for row in few.numpy()} & {row.tobytes() for row in scored.numpy()}
    monkeypatch.setattr(workloads, "FEWEST_SCORED", len(scored))
    assert work.rehearse(Rehearsal(problem.even_widths()[2], 4)) != loss
    assert len(varied) == 1                 # many as they are


def test_what_keeps_nearly_the_same_channels_is_left_out():
    near, far = trial(0, (0.5, 0.5, 0.5), 0.3), trial(1, (0.5, 0.75, 0.5), 0.3)
    known = prospects([near, far, trial(2, (0.5, 0.5, 0.625), 0.4)])
    assert [one.record for one in unlike(known[:2], known[2:])] == [far]
    assert unlike(known, []) == tuple(known)
    assert unlike([], known) == ()
    even = prospects([trial(number, (1.0, 1.0, 1.0), 0.1, bits) for number, bits in enumerate((8, 4))])
    assert unlike(even[:1], even[1:]) == tuple(even[:1])
