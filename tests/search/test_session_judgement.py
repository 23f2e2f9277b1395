"""Judging hand-made verified candidates: feasible, on the front or why not, the knee, the CSV files."""

import csv
import io
import itertools
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from paretopress.evaluators.budgets import parse_budget
from paretopress.evaluators.metrics import Metric
from paretopress.evaluators.timing import Timing
from paretopress.evaluators.verification import Parity, Verified
from paretopress.search.correlation import kendall, spearman
from paretopress.search.finalists import Finalist
from paretopress.search.judgement import Candidate, judge
from paretopress.spaces.choices import Keep
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.policy import Policy

HERE, ELSEWHERE = "x86-zen4-vnni-onnxruntime", "stm32-h7a3"
SOUND = Parity(True, 0.0, 1.0, False)


@pytest.fixture(scope="module")
def base(tiny, tiny_settings):
    from paretopress.search.problem import prepare_problem

    return prepare_problem(tiny.module.model(), tiny.module.data(), tiny_settings)


@pytest.fixture
def problem_of(base, monkeypatch):
    """Make a problem with other budgets and targets; `HERE` runs on this machine whatever its CPU."""
    from paretopress.evaluators.costs import CostModel
    from paretopress.hardware_profiles.catalogue import load_profile
    from paretopress.hardware_profiles.profile import DeviceProfile

    monkeypatch.setattr(DeviceProfile, "runs_here", lambda device: device.id == HERE)

    def make(*budgets, targets=(HERE,)):
        parsed = tuple(parse_budget(text, objective) for objective, text in budgets)
        costs = CostModel(tuple(load_profile(target) for target in targets))
        return replace(base, costs=costs, settings=replace(base.settings, budgets=parsed, targets=targets))

    return make


def candidate(number, accuracy, milliseconds, size, targets=(HERE,), **changes):
    """A candidate: measured on `HERE`, predicted elsewhere at ten times that, plus or minus a fifth."""
    predicted = {"size": float(size), "macs": 1000.0 * size}
    interval = {}
    for target in targets:
        middle = milliseconds * (1.0 if target == HERE else 10.0)
        predicted[f"latency@{target}"] = middle
        predicted[f"peak_memory@{target}"] = 4096.0
        interval[f"latency@{target}"] = (0.8 * middle, 1.2 * middle)
    timing = Timing(milliseconds, (milliseconds, milliseconds), 10.0, (10.0, 10.0), 5) if HERE in targets else None
    correct = tuple(index < accuracy * 100 for index in range(100))
    verified = Verified({"accuracy": accuracy}, size, size + 500, size + 1000, SOUND, timing, correct)
    name = changes.pop("name", "dense" if number == 0 else None)
    policy = Policy.of({"unit/channels": Keep(1.0 / (number + 1))} if number else {})
    return Candidate(
        Finalist(number, policy, name, accuracy, accuracy, "refit"), predicted, interval,
        changes.pop("failure", None) or replace(verified, **changes),
    )


DENSE = (0, 0.95, 10.0, 1000)


def reasons(verdict):
    return {point.candidate.finalist.number: point.why_not for point in verdict.points}


def test_the_front_is_what_nothing_dominates(problem_of):
    verdict = judge(problem_of(), [
        candidate(*DENSE),
        candidate(1, 0.94, 5.0, 500),
        candidate(2, 0.93, 6.0, 600),    # worse than 1 in everything
        candidate(3, 0.90, 2.0, 700),    # faster
        candidate(4, 0.90, 8.0, 100),    # smaller
    ])
    assert reasons(verdict) == {0: None, 1: None, 2: "dominated by #1", 3: None, 4: None}
    assert all(point.feasible for point in verdict.points)
    assert sum(point.knee for point in verdict.points) == 1


def test_dominance_agrees_with_brute_force(problem_of):
    rng = random.Random(0)
    for _ in range(8):
        rows = [(n, rng.choice([0.5, 0.7, 0.9]), rng.choice([1.0, 2.0, 4.0]), rng.choice([100, 200, 400]))
                for n in range(1, 8)]
        points = [candidate(*DENSE), *(candidate(*row) for row in rows)]
        verdict = judge(problem_of(), points)
        costs = {row[0]: (-row[1], row[2], row[3]) for row in (DENSE, *rows)}
        for number, reason in reasons(verdict).items():
            better = [
                other for other, theirs in costs.items()
                if other != number and all(a <= b for a, b in zip(theirs, costs[number], strict=True))
                and (theirs != costs[number] or other < number)
            ]
            assert (reason is None) == (not better or number == 0)
            if reason is not None:
                assert int(reason.removeprefix("dominated by #")) in better


def test_equal_points_keep_the_first(problem_of):
    verdict = judge(problem_of(), [
        candidate(*DENSE), candidate(1, 0.94, 5.0, 500), candidate(2, 0.94, 5.0, 500), candidate(3, 0.95, 10.0, 1000),
    ])
    assert reasons(verdict) == {0: None, 1: None, 2: "dominated by #1", 3: "dominated by #0"}


def test_the_dense_model_stays_where_it_is_dominated(problem_of):
    verdict = judge(problem_of(), [candidate(*DENSE), candidate(1, 0.96, 5.0, 500)])
    assert reasons(verdict) == {0: None, 1: None}
    assert [point.knee for point in verdict.points] == [False, True]


def test_points_within_five_percent_of_a_neighbour_are_thinned_out(problem_of):
    verdict = judge(problem_of(), [
        candidate(*DENSE),
        candidate(1, 0.940, 5.00, 500),
        candidate(2, 0.939, 4.90, 495),   # a little faster and smaller, a little worse
        candidate(3, 0.934, 4.85, 490),   # as near, but 0.6 points worse
        candidate(4, 0.938, 4.85, 470),   # 6% smaller
    ])
    assert reasons(verdict)[2] == "within 5% of #1 in every objective"
    assert reasons(verdict)[4] is None


def test_budgets_are_judged_on_measured_values(problem_of):
    problem = problem_of(("accuracy", "2pp"), ("latency", "-50%"), ("size", "<=600B"))
    verdict = judge(problem, [
        candidate(*DENSE),
        candidate(1, 0.94, 4.0, 500),
        candidate(2, 0.92, 4.0, 400),
        candidate(3, 0.94, 6.0, 300),
        candidate(4, 0.94, 4.0, 700),
        candidate(5, 0.93, 5.0, 600),     # at every limit exactly
        candidate(6, 0.90, 7.0, 800),
    ])
    found = reasons(verdict)
    assert found[1] is None
    assert found[2] == "accuracy drop 3.00pp exceeds 2pp"
    assert found[3] == f"latency@{HERE} 6.00 ms exceeds -50%"
    assert found[4] == "size 700 B exceeds <=600B"
    assert found[6].count(";") == 2
    assert {n: p.feasible for n, p in enumerate(verdict.points)} == {
        0: False, 1: True, 2: False, 3: False, 4: False, 5: True, 6: False
    }
    assert found[5] == "dominated by #1"


@pytest.fixture
def errors_of(problem_of):
    """Make a problem of which the first metric is an error that is no share: less is better."""

    def make(*budgets):
        problem = problem_of()
        metric = Metric(lambda *_: 0.0, "min", label="mse")
        parsed = tuple(parse_budget(text, "accuracy", "min") for text in budgets)
        settings = replace(problem.settings, budgets=parsed)
        return replace(problem, data=replace(problem.data, metrics=(metric,)), settings=settings)

    return make


def test_a_relative_budget_of_a_share_says_what_was_lost_relatively(problem_of):
    verdict = judge(problem_of(("accuracy", "2%")), [candidate(*DENSE), candidate(1, 0.912, 4.0, 500)])
    assert reasons(verdict)[1] == "accuracy drop 3.80pp (4.00%) exceeds 2%"


def test_a_metric_that_is_no_share_is_told_in_its_own_unit(errors_of):
    verdict = judge(errors_of("5%"), [
        candidate(0, 0.20, 10.0, 1000), candidate(1, 0.2089, 4.0, 500), candidate(2, 0.22, 4.0, 500),
    ])
    assert reasons(verdict) == {0: None, 1: None, 2: "mse rise 0.02 (10.00%) exceeds 5%"}
    assert verdict.points[1].measured["accuracy_drop"] == pytest.approx(0.0089)


def test_a_metric_that_is_no_share_is_compared_by_ratios(errors_of):
    """The same points with errors a thousand times larger or smaller are judged alike."""
    verdicts = [
        judge(errors_of(), [
            candidate(0, 0.2 * unit, 10.0, 1000),
            candidate(1, 0.21 * unit, 5.0, 500),
            candidate(2, 0.2108 * unit, 4.90, 495),   # 0.4% of the dense error worse: the same but for rounding
            candidate(3, 0.2112 * unit, 4.85, 490),   # 0.6% worse
        ])
        for unit in (1e-3, 1.0, 1e3)
    ]
    for verdict in verdicts:
        assert reasons(verdict) == {0: None, 1: None, 2: "within 5% of #1 in every objective", 3: None}
    volumes = [verdict.hypervolume for verdict in verdicts]
    # Against the dense model and an error 10% larger: point 1 loses 5% of the dense error, point 3 5.6%.
    assert volumes == pytest.approx([0.5 * 0.5 * 0.5 + 0.44 * (0.515 * 0.51 - 0.25)] * 3)


def test_a_dense_error_of_zero_is_judged(errors_of):
    verdict = judge(errors_of("5%"), [candidate(0, 0.0, 10.0, 1000), candidate(1, 0.02, 4.0, 500)])
    assert reasons(verdict) == {0: None, 1: "mse rise 0.02 exceeds 5%"}


def test_nothing_feasible_leaves_an_empty_front_without_a_knee(problem_of):
    verdict = judge(problem_of(("size", "<=10B")), [candidate(*DENSE), candidate(1, 0.94, 5.0, 500)])
    assert all(point.why_not and not point.feasible and not point.knee for point in verdict.points)
    assert verdict.hypervolume == 0.0


def test_a_relative_latency_is_judged_against_the_baseline_timed_beside_it(problem_of):
    slow = Timing(8.0, (8.0, 8.0), 20.0, (20.0, 20.0), 5)   # the machine was busy: both took twice as long
    verdict = judge(problem_of(("latency", "-50%")), [candidate(*DENSE), candidate(1, 0.94, 4.0, 500, timing=slow)])
    assert verdict.points[1].feasible


def test_a_failed_candidate_is_a_reason_and_a_failed_baseline_an_error(problem_of):
    points = [candidate(*DENSE), candidate(1, 0.9, 1.0, 100, failure="DataError: it broke")]
    verdict = judge(problem_of(), points)
    assert reasons(verdict)[1] == "verification failed: DataError: it broke"
    assert not verdict.points[1].feasible
    assert verdict.points[1].measured == {}
    with pytest.raises(ArtifactError, match="the dense baseline cannot be verified: it broke"):
        judge(problem_of(), [candidate(*DENSE, failure="it broke")])


@pytest.mark.parametrize(
    ("parity", "text"),
    [
        (Parity(False, 0.0, 1.0, False), "reloaded model does not equal"),
        (Parity(True, 2e-4, 1.0, False), "ONNX outputs differ by 0.0002"),
        (Parity(True, float("inf"), 1.0, False), "ONNX outputs differ by inf"),
        (Parity(True, 0.3, 0.98, True), "ONNX agrees on 98.0%"),
    ],
)
def test_a_candidate_out_of_parity_is_not_on_the_front(problem_of, parity, text):
    verdict = judge(problem_of(), [candidate(*DENSE), candidate(1, 0.95, 1.0, 100, parity=parity)])
    assert text in reasons(verdict)[1]
    assert not verdict.points[1].feasible


def test_a_target_that_cannot_run_here_uses_the_predicted_upper_bound(problem_of):
    problem = problem_of(("latency", "<=50ms"), targets=(ELSEWHERE,))
    verdict = judge(problem, [
        candidate(*DENSE, targets=(ELSEWHERE,)),
        candidate(1, 0.94, 4.0, 500, targets=(ELSEWHERE,)),    # predicted 40 ms, at most 48
        candidate(2, 0.94, 4.5, 400, targets=(ELSEWHERE,)),    # predicted 45 ms, at most 54
    ])
    assert reasons(verdict)[1] is None
    assert reasons(verdict)[2] == f"latency@{ELSEWHERE} 54.0 ms exceeds <=50ms"
    assert verdict.points[1].costs[1] == pytest.approx(48.0)
    assert all(point.measured["latency_ms"] is None and point.measured["speedup"] is None for point in verdict.points)
    assert verdict.latency_error == {"device": None, "points": 0, "spearman": None, "median_abs_pct": None}


def test_several_targets_are_all_budgets_and_all_objectives(problem_of):
    targets = (HERE, ELSEWHERE)
    problem = problem_of(("latency", "-50%"), targets=targets)
    assert list(problem.objectives) == ["accuracy", f"latency@{HERE}", f"latency@{ELSEWHERE}", "size"]
    slow_there = candidate(2, 0.94, 4.0, 500, targets=targets)
    slow_there = replace(slow_there, interval={**slow_there.interval, f"latency@{ELSEWHERE}": (50.0, 90.0)})
    verdict = judge(problem, [
        candidate(*DENSE, targets=targets), candidate(1, 0.94, 4.0, 500, targets=targets), slow_there,
    ])
    assert reasons(verdict)[1] is None
    assert reasons(verdict)[2] == f"latency@{ELSEWHERE} 90.0 ms exceeds -50%"
    # Against the dense model and a drop of 10 points: (1 - 0.1)(1 - 0.4)(1 - 0.5), time of the first target.
    assert verdict.hypervolume == pytest.approx(0.9 * 0.6 * 0.5)


def test_predicted_and_measured_latency_are_compared_where_the_target_runs(problem_of):
    points = [candidate(*DENSE)]
    for number, (measured, predicted) in enumerate([(5.0, 5.5), (4.0, 3.8), (2.0, 2.0)], start=1):
        one = candidate(number, 0.9, measured, 100 * number)
        points.append(replace(one, predicted={**one.predicted, f"latency@{HERE}": predicted}))
    error = judge(problem_of(), points).latency_error
    assert error["device"] == HERE
    assert error["points"] == 4
    assert error["spearman"] == pytest.approx(1.0)
    assert error["median_abs_pct"] == pytest.approx(2.5)   # of 0, 10, 5 and 0 percent
    assert error["within_15_pct"] == 1.0


@pytest.mark.parametrize("slower", [1.0, 1.3])
def test_errors_of_predicted_speedups_do_not_depend_on_the_speed_of_the_machine(problem_of, slower):
    points = []
    for number, (measured, predicted) in enumerate([(10.0, 10.0), (5.0, 5.5), (4.0, 3.8), (2.0, 2.0)]):
        one = candidate(number, 0.9, slower * measured, 1000 - 100 * number, name="dense" if number == 0 else None)
        timing = replace(one.verified.timing, baseline=slower * 10.0)
        points.append(replace(one, predicted={**one.predicted, f"latency@{HERE}": predicted},
                              verified=replace(one.verified, timing=timing)))
    error = judge(problem_of(), points).latency_error
    assert error["speedup_median_abs_pct"] == pytest.approx(100 / 0.95 - 100)   # of -9.1, 5.3 and 0 percent
    assert (error["median_abs_pct"] == pytest.approx(2.5)) == (slower == 1.0)


def test_the_knee_beats_what_people_would_try_by_hand_where_a_point_does(problem_of):
    """By ratios alone the small and slow point is the knee; it is slower than uniform int8."""
    problem = problem_of(("accuracy", "10pp"))
    dense = candidate(0, 0.95, 10.0, 1000, name="dense")
    uniform = candidate(1, 0.93, 5.0, 300, name="uniform int8")
    slow, fast = candidate(2, 0.93, 6.5, 10), candidate(3, 0.93, 4.5, 250)
    assert [point.knee for point in judge(problem, [dense, slow, fast]).points] == [False, True, False]
    assert [point.knee for point in judge(problem, [dense, uniform, slow, fast]).points] == [False, False, False, True]


def test_the_knee_compares_times_and_bytes_by_ratios(problem_of):
    verdict = judge(problem_of(), [
        candidate(*DENSE),
        candidate(1, 0.94, 2.0, 200),    # a fifth of both for one point
        candidate(2, 0.80, 1.8, 150),    # hardly less for fifteen
    ])
    assert [point.knee for point in verdict.points] == [False, True, False]


def test_rank_correlations_are_those_of_scipy():
    from scipy import stats

    rng = random.Random(1)
    for length, levels in itertools.product((3, 4, 10, 40), (2, 5, 1000)):
        first = [rng.randrange(levels) for _ in range(length)]
        second = [a + rng.randrange(levels) for a in first]
        for ours, theirs in ((spearman, stats.spearmanr), (kendall, stats.kendalltau)):
            found = ours(first, second)
            if len(set(first)) == 1 or len(set(second)) == 1:
                assert found is None
            else:
                assert found == pytest.approx(theirs(first, second).statistic, abs=1e-12)
    assert spearman([1, 2], [1, 2]) is None
    assert kendall([1, 2], [1, 2]) is None


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_front_csv_is_a_function_of_finalists_and_measured(tiny_run):
    finalists = {row["id"]: row for row in rows_of(tiny_run.path / "finalists.csv")}
    measured = {row["id"]: row for row in rows_of(tiny_run.path / "measured.csv")}
    front = rows_of(tiny_run.path / "front.csv")
    assert finalists.keys() == measured.keys()
    assert 1 <= len(front) <= len(finalists)
    for row in front:
        finalist, timing = finalists[row["id"]], measured[row["id"]]
        for name in ("name", "policy", "accuracy", "size_bytes"):
            assert row[name] == finalist[name]
        for name in ("latency_ms", "speedup"):
            assert row[name] == timing[name]
        assert float(row["accuracy_drop"]) == float(finalists["0"]["accuracy"]) - float(finalist["accuracy"])
        assert float(row["macs"]) == float(finalist["predicted_macs"])
    assert sum(row["knee"] == "True" for row in front) == 1


def test_what_is_timed_after_a_search_is_brought_to_one_speed(problem_of, monkeypatch):
    from paretopress.search import verified as verification
    from paretopress.search.observer import Silent

    series = [Timing(10.0, (10.0, 10.0), 10.0, (10.0, 10.0), 5), "it broke",
              Timing(6.0, (6.0, 6.0), 15.0, (15.0, 15.0), 5), Timing(5.0, (5.0, 5.0), 10.0, (10.0, 10.0), 5)]
    monkeypatch.setattr(verification, "call_in_clean_process", lambda *_, **__: series)
    results = [candidate(*DENSE).verified, candidate(1, 0.9, 5.0, 500).verified, "not built",
               candidate(2, 0.9, 5.0, 500).verified, candidate(3, 0.9, 5.0, 500).verified]
    tasks = [SimpleNamespace(folder=str(number)) for number in range(5)]
    verification._time(problem_of(), tasks, results, "dense.onnx", Silent())
    assert results[1:3] == ["it broke", "not built"]
    assert [one.timing.baseline for one in results if not isinstance(one, str)] == [10.0, 10.0, 10.0]
    assert (results[3].timing.median, results[3].timing.slowdown) == (4.0, 1.5)


def test_files_repeat_byte_for_byte_what_they_are_made_of(tiny_run, problem_of, tmp_path):
    """The same judged points give the same CSV files; times stand in `measured.csv` and `front.csv` alone."""
    from paretopress.search.run_files import write_front

    problem = problem_of(("accuracy", "5pp"))
    points = [candidate(*DENSE), candidate(1, 0.94, 4.0, 500), candidate(2, 0.93, 5.0, 600)]
    later = [replace(one, verified=replace(one.verified, timing=Timing(3.0, (2.0, 4.0), 9.0, (8.0, 9.5), 7)))
             for one in points]
    for folder, candidates in (("a", points), ("b", points), ("c", later)):
        (tmp_path / folder).mkdir()
        write_front(tmp_path / folder, problem, judge(problem, candidates), {"size": 100.0}, [])
    read = {(folder, name): (tmp_path / folder / f"{name}.csv").read_bytes()
            for folder in "abc" for name in ("finalists", "measured", "front")}
    for name in ("finalists", "measured", "front"):
        assert read["a", name] == read["b", name]
    assert read["a", "finalists"] == read["c", "finalists"]
    assert read["a", "measured"] != read["c", "measured"]


def test_the_contract_names_the_metric_and_its_direction(errors_of, tmp_path):
    from paretopress.search.run_files import contract

    problem = errors_of("5%")
    points = judge(problem, [candidate(0, 0.20, 10.0, 1000)])
    assert contract(tmp_path, problem, points, {}, [])["metric"] == {"name": "mse", "direction": "min"}


def test_every_front_is_finite_json_with_the_contract_s_keys(tiny_run):
    import json

    def refuse(text):
        raise AssertionError(text)

    document = json.loads((tiny_run.path / "front.json").read_text(), parse_constant=refuse)
    assert {"run", "baseline", "points"} <= document.keys()
    assert document["metric"] == {"name": "top1", "direction": "max"}
    keys = {"id", "policy_hash", "feasible", "knee", "predicted", "measured", "why_not"}
    for point in document["points"]:
        assert keys <= point.keys()
        assert {"accuracy", "latency_ms", "latency_ms_baseline", "size_bytes", "onnx_bytes"} <= point["measured"].keys()
        assert len(point["measured"]["accuracy_drop_interval"]) == 2
    assert document["baseline"] == document["points"][0]
