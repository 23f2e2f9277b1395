"""The problem of a run: best reachable values, directions of metrics, and the clean process."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from paretopress.evaluators.budgets import parse_budget
from paretopress.evaluators.metrics import Metric
from paretopress.search.clean_process import call_in_clean_process
from paretopress.search.problem import prepare_problem
from paretopress.search.reachability import check_feasible, reachable
from paretopress.spaces.errors import ArtifactError, ConfigError, DiskError, InfeasibleError
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings

TARGET = "x86-zen4-vnni-onnxruntime"


def problem_of(tiny, settings, *budgets, **changes):
    parsed = tuple(parse_budget(text, objective) for objective, text in budgets)
    return prepare_problem(tiny.module.model(), tiny.module.data(), replace(settings, budgets=parsed, **changes))


@pytest.fixture(scope="module")
def priced(tiny, tiny_settings):
    """A thousand policies of the whole space with their predicted costs."""
    import random

    problem = problem_of(tiny, tiny_settings)
    rng = random.Random(0)
    found = []
    for _ in range(400):
        chosen = {unit: rng.choice(options[-3:]) for unit, options in problem.space.options.items()}
        policy = Policy.of({unit: choice for unit, choice in chosen.items() if choice is not None})
        found.append(problem.costs.predict(problem.plan(policy)))
    return found


@pytest.mark.parametrize("name", ["size", "macs", f"peak_memory@{TARGET}", f"latency@{TARGET}"])
def test_no_policy_is_below_the_best_reachable(tiny, tiny_settings, priced, name):
    """What a budget asks for in vain is searched for: nothing that was drawn is lower."""
    tiny_limit = {"size": "<=1B", "macs": "<=1", "peak_memory": "<=1B", "latency": "<=1ns"}[name.partition("@")[0]]
    problem = problem_of(tiny, tiny_settings, (name, tiny_limit))
    lowest = reachable(problem)
    assert lowest[name] <= min(costs[name] for costs in priced)
    with pytest.raises(InfeasibleError, match="best reachable") as raised:
        check_feasible(problem, lowest)
    assert "\n" not in str(raised.value)


def test_a_budget_at_the_best_reachable_is_accepted_and_one_below_is_not(tiny, tiny_settings):
    problem = problem_of(tiny, tiny_settings, ("macs", "<=1"))
    best = reachable(problem)["macs"]
    for limit, feasible in ((best, True), (best - 1, False)):
        problem = problem_of(tiny, tiny_settings, ("macs", f"<={limit:.0f}"))
        if feasible:
            check_feasible(problem, reachable(problem))
        else:
            with pytest.raises(InfeasibleError):
                check_feasible(problem, reachable(problem))


def error(outputs, targets):
    return float((outputs.argmax(1) != targets).double().mean()) + 0.5


def test_a_budget_on_a_metric_that_is_minimised_allows_more_of_it(tiny, tiny_settings):
    data = replace(tiny.module.data(), metric=Metric(error, "min"))
    settings = replace(tiny_settings, budgets=(parse_budget("10%", "accuracy"),))   # as the command line parses it
    problem = prepare_problem(tiny.module.model(), data, settings)
    assert problem.objectives["accuracy"] == "min"
    assert problem.limits(2.0).accuracy == pytest.approx(2.2)
    assert problem.limits(2.0).check({}, 2.1)["max_drop"] < 0 < problem.limits(2.0).check({}, 2.3)["max_drop"]
    with pytest.raises(ConfigError, match="percentage points belong to metrics that are maximised"):
        prepare_problem(tiny.module.model(), data, tiny_settings)


def test_policies_of_the_run_are_equal_to_those_of_its_trials(tiny, tiny_settings, tiny_run):
    """They carry the same fingerprints, so that what is verified anyway is not picked again."""
    from paretopress.search.ledger import read_run

    problem = prepare_problem(tiny.module.model(), tiny.module.data(), tiny_settings)
    policies = [record.policy for record in read_run(tiny_run.path)[1]]
    for policy in (problem.policy({}), *problem.comparisons().values()):
        assert policy in policies


def test_a_model_with_nothing_to_compress_still_gives_its_verified_baseline(tiny_settings, tmp_path):
    import json

    from paretopress.evaluators.data import Data
    from paretopress.search.session import run_search

    class Fixed(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x)

    def labelled(seed):
        inputs = torch.rand(32, 4, generator=torch.Generator().manual_seed(seed))
        return inputs, inputs.argmax(1)

    data = Data(labelled(1)[0], labelled(2), labelled(3))
    path = run_search(Fixed().eval(), data, tiny_settings, tmp_path / "run")
    document = json.loads((path / "front.json").read_text())
    assert [point["name"] for point in document["points"]] == ["dense"]
    assert document["points"][0]["why_not"] is None
    assert document["points"][0]["measured"]["accuracy"] == 1.0


def test_targets_that_cannot_run_here_are_judged_on_predictions(tiny, tiny_settings, tmp_path):
    """A phone (predicted milliseconds) and a GPU that only ranks: nothing is timed, nothing claims to be."""
    import json

    from paretopress.search.session import run_search

    phone, gpu = "cortex-a76-tflite", "h200-sxm"
    budgets = (parse_budget("-5%", "latency"),)
    settings = replace(tiny_settings, targets=(phone, gpu), budgets=budgets, space=SpaceSettings(bits=()))
    path = run_search(tiny.module.model(), tiny.module.data(), settings, tmp_path / "run")
    document = json.loads((path / "front.json").read_text())
    assert document["latency_error"]["device"] is None
    for point in document["points"]:
        assert point["measured"]["latency_ms"] is point["measured"]["host"] is point["measured"]["speedup"] is None
        predicted = point["predicted"]
        low, high = (predicted[f"latency_{side}@{phone}"] for side in ("lower", "upper"))
        assert low <= predicted[f"latency@{phone}"] <= high
        assert f"latency@{gpu}" not in predicted
        baseline = document["baseline"]["predicted"]
        meets = (high <= 0.95 * baseline[f"latency_upper@{phone}"] + 1e-12
                 and predicted[f"relative@{gpu}"] <= 0.95 * baseline[f"relative@{gpu}"] + 1e-12)
        assert point["feasible"] == meets
    assert any(point["feasible"] for point in document["points"])
    assert not document["points"][0]["feasible"]


def answer(report, text):
    report("half way")
    return text * 2, os.getpid()


def refuse(_report, error):
    raise error


def die(_report):
    os._exit(7)


def sleep_and_write(report, path):
    report(str(os.getpid()))
    time.sleep(3.0)
    path.write_text("still here")


def test_the_clean_process_answers_reports_and_raises():
    heard = []
    result, pid = call_in_clean_process(answer, ("ab",), heard.append)
    assert result == "abab"
    assert pid != os.getpid()
    assert heard == ["half way"]
    with pytest.raises(DiskError, match=r"^cannot write x: the disk is full$"):
        call_in_clean_process(refuse, (DiskError("cannot write x: the disk is full"),))
    with pytest.raises(ArtifactError, match=r"^verification failed: ZeroDivisionError: a b$"):
        call_in_clean_process(refuse, (ZeroDivisionError("a\nb"),))
    with pytest.raises(ArtifactError, match=r"the verifying process died \(exit code 7\)"):
        call_in_clean_process(die, ())


def test_the_clean_process_goes_with_its_parent(tmp_path):
    """A parent that is killed leaves nobody behind who writes into the run's folders."""
    pid = os.fork()
    if pid == 0:
        try:
            call_in_clean_process(sleep_and_write, (tmp_path / "late",), (tmp_path / "child").write_text)
        finally:
            os._exit(0)
    end = time.monotonic() + 60
    while not (tmp_path / "child").exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    time.sleep(4.0)
    assert (tmp_path / "child").exists()
    assert not (tmp_path / "late").exists()


def test_a_finalist_that_cannot_be_built_is_a_reason_and_no_crash(tiny, tiny_run, tiny_settings, tmp_path, monkeypatch):
    import json
    import shutil

    from paretopress.search import workload
    from paretopress.search.session import run_search

    real = workload.build

    def build(evaluator, policy, *arguments):
        if len(policy) and policy.hash == broken:
            raise RuntimeError("it\nbroke")
        return real(evaluator, policy, *arguments)

    earlier = json.loads((tiny_run.path / "front.json").read_text())
    broken = earlier["points"][2]["policy_hash"]
    monkeypatch.setattr(workload, "build", build)
    shutil.copytree(tiny_run.path, tmp_path / "run")
    heard = []

    class Observer:
        stage = advance = message = lambda *_: None

        def warning(self, text):
            heard.append(text)

    run_search(tiny.module.model(), tiny.module.data(), tiny_settings, tmp_path / "run", observer=Observer())
    points = json.loads((tmp_path / "run" / "front.json").read_text())["points"]
    assert [point["policy_hash"] for point in points] == [point["policy_hash"] for point in earlier["points"]]
    assert points[2]["why_not"] == "verification failed: RuntimeError: it broke"
    assert [bool(point["measured"]) for point in points] == [True, True, False, True]
    assert any("RuntimeError: it broke" in text for text in heard)
