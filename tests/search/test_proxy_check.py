"""How proxies are compared with the truth, and when a search turns to another one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.search import proxy_tables
from paretopress.search.observer import Silent
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import prepare_problem
from paretopress.search.proxy_check import FEWEST, assess, preferred
from paretopress.search.proxy_tables import CHECKED, in_nats, proxy_reports, trusted_table
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.session import run_search
from paretopress.spaces.policy import Policy


def test_correlations_are_those_of_the_pairs_by_hand():
    """Of six pairs five agree: tau (5 - 1) / 6; within 3pp two of three do."""
    found = assess("x", [1.0, 3.0, 2.0, 4.0], [0.0, 0.01, 0.03, 0.2], seconds=2.0)
    assert (found.candidates, found.close) == (4, 3)
    assert found.kendall == pytest.approx(4 / 6)
    assert found.kendall_close == pytest.approx(1 / 3)
    assert found.spearman == pytest.approx(0.8)
    assert found.to_plain()["seconds"] == 2.0


def test_what_is_not_finite_is_left_out_and_few_candidates_say_nothing():
    found = assess("x", [1.0, float("nan"), 2.0], [0.0, 0.1, 0.2])
    assert (found.candidates, found.kendall) == (2, None)


def reports(**taus):
    return {name: replace(assess(name, [], []), candidates=FEWEST, kendall=tau) for name, tau in taus.items()}


@pytest.mark.parametrize(
    ("taus", "chosen"),
    [
        ({"divergence": 0.7, "snr": 0.9}, "divergence"),        # good enough: nothing is measured for it
        ({"divergence": 0.4, "snr": 0.5}, "snr"),
        ({"divergence": 0.4, "snr": 0.43}, "divergence"),       # not clearly better
        ({"divergence": 0.4, "snr": 0.3, "fisher": 0.6}, "fisher"),
        ({"divergence": None, "snr": 0.3}, "snr"),
        ({"divergence": 0.1, "snr": None}, "divergence"),
    ],
)
def test_a_clearly_better_proxy_takes_the_place_of_a_bad_one(taus, chosen):
    assert preferred(reports(**taus), "divergence") == chosen


def test_too_few_candidates_change_nothing():
    found = reports(divergence=0.0, snr=1.0)
    found["divergence"] = replace(found["divergence"], candidates=FEWEST - 1)
    assert preferred(found, "divergence") == "divergence"


def test_a_table_is_scaled_to_nats_in_the_geometric_mean(tiny, tiny_settings):
    space = prepare_problem(tiny.module.model(), tiny.module.data(), tiny_settings).space
    table = SensitivityTable({unit: tuple(map(float, range(len(options)))) for unit, options in space.options.items()})
    scaled = in_nats(table, space, lambda policy: 0.25 * table.losses[next(iter(policy.choices))][
        space.options[next(iter(policy.choices))].index(next(iter(policy.choices.values())))])
    for unit, row in table.losses.items():
        assert scaled.losses[unit] == pytest.approx([0.25 * loss for loss in row])


@pytest.fixture(scope="module")
def judged(tiny, tiny_settings):
    """The tiny problem with its evaluator, and candidates whose accuracy falls with their number of choices."""
    problem = prepare_problem(tiny.module.model(), tiny.module.data(), replace(tiny_settings, distil="off"))
    return problem, prepare_evaluator(problem, Silent())


def records_of(problem, score):
    rng = np.random.default_rng(3)
    policies = [Policy.of({})]
    while len(policies) < CHECKED:
        chosen = {unit: options[int(rng.integers(1, len(options)))] for unit, options in problem.space.options.items()
                  if rng.random() < len(policies) / CHECKED}
        policies.append(Policy.of(chosen))
    return [TrialRecord(number, TrialState.COMPLETE, policy, {"accuracy": score(policy), "divergence": 0.1})
            for number, policy in enumerate(policies)]


def test_a_misleading_table_is_replaced_once_and_the_decision_is_kept(judged, tmp_path, monkeypatch):
    problem, evaluator = judged
    records = records_of(problem, lambda policy: 1.0 - min(0.9, evaluator.build(policy)[1]))
    # What orders candidates the wrong way round is the worst that there is.
    backwards = SensitivityTable({unit: tuple(-1.0 * (index > 0) for index in range(len(options)))
                                  for unit, options in problem.space.options.items()})
    chosen = trusted_table(problem, evaluator, backwards, records, tmp_path, {"run": "a"}, Silent())
    assert chosen != backwards
    document = json.loads((tmp_path / "proxies.json").read_text())
    assert document["used"] in ("output_error", "snr", "taylor", "fisher", "hessian")
    assert len(document["proxies"]) == 6
    monkeypatch.setattr(proxy_tables, "local_tables", lambda *_, **__: pytest.fail("measured again"))
    assert trusted_table(problem, evaluator, backwards, records, tmp_path, {"run": "a"}, Silent()) == chosen
    plain = proxy_reports(problem, chosen, records, tmp_path)
    assert [one["name"] for one in plain if one["used"]] == [document["used"]]
    assert {"divergence of the candidate", "divergence"} <= {one["name"] for one in plain}


def test_a_good_table_stays_and_costs_nothing(judged, tmp_path, monkeypatch):
    problem, evaluator = judged
    monkeypatch.setattr(proxy_tables, "local_tables", lambda *_, **__: pytest.fail("not needed"))
    table = SensitivityTable({unit: tuple(0.1 * index for index in range(len(options)))
                              for unit, options in problem.space.options.items()})
    by_table = {unit: dict(zip(options, table.losses[unit], strict=True))
                for unit, options in problem.space.options.items()}
    records = records_of(problem, lambda policy: 1.0 - 0.01 * sum(by_table[unit][one] for unit, one in policy))
    assert trusted_table(problem, evaluator, table, records, tmp_path, {}, Silent()) is table
    useless = SensitivityTable({unit: (0.0,) * len(row) for unit, row in table.losses.items()})
    few = records[:FEWEST]   # one of them is the dense model
    assert trusted_table(problem, evaluator, useless, few, tmp_path, {}, Silent()) is useless
    assert not (tmp_path / "proxies.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fisher", "interactions"])
def test_a_search_by_a_named_proxy_reports_on_it(tiny, tiny_settings, tmp_path, name):
    settings = replace(tiny_settings, proxy=name, trials=8, distil="off")
    path = run_search(tiny.module.model(), tiny.module.data(), settings, tmp_path / "run")
    front = json.loads((path / "front.json").read_text())
    used = [one for one in front["proxies"]["measured"] if one["used"]]
    assert [one["name"] for one in used] == [name]
    assert used[0]["candidates"] > 0
    assert json.loads((path / "sensitivity.json").read_text())["losses"]


def test_every_run_reports_on_its_proxies(tiny_run):
    measured = json.loads((tiny_run.path / "front.json").read_text())["proxies"]["measured"]
    assert [one["name"] for one in measured][:2] == ["divergence", "divergence of the candidate"]
    assert measured[0]["used"]
    assert all(one["candidates"] > 0 for one in measured)

