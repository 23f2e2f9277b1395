"""The real evaluator gives the same evaluations in this process, in other processes and on a Ray cluster."""

import random
from types import SimpleNamespace

import pytest
import torch

WORKERS = 2


@pytest.fixture(scope="module")
def prepared(tiny, tiny_settings):
    """The tiny problem with its evaluator, under a budget that screens some policies by their cost."""
    from dataclasses import replace

    from paretopress.evaluators.budgets import parse_budget
    from paretopress.search.observer import Silent
    from paretopress.search.preparation import prepare_evaluator
    from paretopress.search.problem import prepare_problem

    budgets = (*tiny_settings.budgets, parse_budget("-20%", "size"))
    problem = prepare_problem(tiny.module.model(), tiny.module.data(), replace(tiny_settings, budgets=budgets))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return SimpleNamespace(problem=problem, evaluator=prepare_evaluator(problem, Silent()))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def policies(prepared):
    """The dense policy, both comparisons, and random ones from the whole space."""
    problem = prepared.problem
    rng = random.Random(3)
    drawn = [
        problem.policy({u: c for u, o in problem.space.options.items() if (c := rng.choice(o)) is not None})
        for _ in range(12)
    ]
    mild = [problem.policy({unit: options[1]}) for unit, options in problem.space.options.items()]
    return [problem.policy({}), *problem.comparisons().values(), *mild, *drawn]


def evaluations(executor, policies):
    found = {}
    waiting = list(enumerate(policies))
    with executor:
        while waiting or executor.pending:
            while waiting and executor.pending < executor.capacity:
                executor.submit(*waiting.pop(0))
            outcome = executor.next_result(timeout_seconds=60.0)
            assert outcome is not None
            found[outcome.number] = outcome.evaluation
    return [found[number] for number in range(len(policies))]


@pytest.fixture(scope="module")
def serial(prepared, policies):
    from paretopress.search.executors import SerialExecutor

    return evaluations(SerialExecutor(prepared.evaluator), policies)


def test_the_policies_end_in_different_ways(serial):
    from paretopress.evaluators.evaluation import State

    states = [evaluation.state for evaluation in serial]
    assert State.COMPLETE in states
    assert State.SCREENED in states
    assert State.FAILED not in states
    assert serial[0].state is State.SCREENED   # the dense model does not meet the budget on bytes
    assert max(one.values.get("accuracy", 0.0) for one in serial) > 0.85
    assert len({evaluation.values["size"] for evaluation in serial}) > len(serial) // 2


def test_evaluations_do_not_depend_on_what_was_evaluated_before(prepared, policies, serial):
    """Entries are memoised; another order, and memory emptied by a copy, change nothing."""
    from paretopress.search.executors import SerialExecutor, from_payload, to_payload

    copied = from_payload(to_payload(prepared.evaluator))
    backwards = evaluations(SerialExecutor(copied), policies[::-1])
    assert backwards[::-1] == serial


def test_a_fresh_evaluator_agrees_with_one_that_has_memory(tiny, prepared, policies, serial):
    from dataclasses import replace

    from paretopress.compressors.entries import Entries
    from paretopress.search.executors import SerialExecutor

    entries = prepared.evaluator.entries
    empty = replace(prepared.evaluator, entries=Entries(entries.program, entries.calibration, entries.importance))
    assert evaluations(SerialExecutor(empty), policies) == serial


def test_the_evaluator_travels_small(prepared):
    """To every worker once: the model has 15 kB of weights, calibration values and memory come on top."""
    from paretopress.search.executors import to_payload

    assert len(to_payload(prepared.evaluator)) < 20_000_000


def test_two_processes_agree_with_serial(prepared, policies, serial):
    from paretopress.search.process_executor import ProcessExecutor

    assert evaluations(ProcessExecutor(prepared.evaluator, WORKERS), policies) == serial


@pytest.mark.slow
def test_a_ray_cluster_and_tune_agree_with_serial(prepared, policies, serial, ray_nodes, tmp_path):
    from paretopress.search.ray_executor import RayExecutor
    from paretopress.search.tune_executor import TuneExecutor
    from paretopress.search.workload import Workload

    assert evaluations(RayExecutor(prepared.evaluator, 3, address=ray_nodes.address), policies) == serial
    workload = Workload.of(prepared.problem, prepared.evaluator)
    tune = TuneExecutor(workload, 3, ray_nodes.address, storage=tmp_path)
    assert evaluations(tune, policies) == serial
    assert len(list(tmp_path.glob("search-*/*/result.json"))) == len(policies)   # what Tune's loggers write


@pytest.mark.slow
def test_a_search_with_two_workers_evaluates_alike(tiny, tiny_settings, tiny_run, tmp_path, monkeypatch):
    """Which policies are proposed depends on who finishes first; what a policy is worth does not."""
    from dataclasses import replace

    from paretopress.search import session
    from paretopress.search.ledger import read_run

    monkeypatch.setattr(session, "verify_finalists", lambda *_: [])
    settings = replace(tiny_settings, workers=WORKERS, executor="process")
    path = session.run_search(tiny.module.model(), tiny.module.data(), settings, tmp_path / "run")
    ours, theirs = read_run(path)[1], read_run(tiny_run.path)[1]
    assert sorted(record.number for record in ours) == list(range(settings.trials))
    expected = {record.policy.hash: record for record in theirs}
    shared = [record for record in ours if record.policy.hash in expected]
    assert len(shared) >= 5
    for record in shared:
        twin = expected[record.policy.hash]
        assert (record.state, record.values, record.constraints) == (twin.state, twin.values, twin.constraints)
