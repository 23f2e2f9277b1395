import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import SerialExecutor
from paretopress.search.exploration import ExplorationSettings, explore
from paretopress.search.ledger import Run
from paretopress.search.option_space import OptionSpace
from paretopress.search.pareto import hypervolume, non_dominated
from paretopress.search.process_executor import ProcessExecutor
from paretopress.search.records import TrialState
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.errors import ConfigError, PolicyError
from paretopress.spaces.policy import DENSE, Policy

OBJECTIVES = {"accuracy": "max", "size": "min"}
SAMPLERS = ["pareto", "nsga2", "nsga3", "tpe", "random", "evolution", pytest.param("ddpg", marks=pytest.mark.slow)]
DRIVER = Path(__file__).parent / "toy_driver.py"


def search(path, evaluate, options, settings, seeds=(DENSE,), **arguments):
    with Run.open(path, {"seed": str(settings.seed)}, {}) as run, SerialExecutor(evaluate, None) as executor:
        return explore(options, OBJECTIVES, seeds, executor, run, settings, **arguments)


def without_seconds(path):
    lines = []
    for line in (path / "trials.jsonl").read_text().splitlines():
        plain = json.loads(line)
        del plain["seconds"]
        lines.append(json.dumps(plain))
    return lines


def brute_force(toys, evaluate, layers):
    options = toys.toy_options(layers)
    space = OptionSpace.of(options)
    genomes = itertools.product(*(range(len(choices)) for choices in space.options))
    costs = costs_of([evaluate(space.policy(genome)) for genome in genomes])
    return costs, {tuple(row) for row in costs[non_dominated(costs)]}


def costs_of(found):
    return np.array([[-one.values["accuracy"], one.values["size"]] for one in found if one.feasible])


def front_of(records):
    costs = costs_of(records)
    return {tuple(row) for row in costs[non_dominated(costs)]}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_small_space_is_exhausted_each_policy_once_and_its_front_found(toys, tmp_path, sampler):
    evaluate = toys.ToyEvaluator(budget=96.0)
    records = search(tmp_path, evaluate, toys.toy_options(1), ExplorationSettings(sampler, 500, population=4))
    assert len(records) == 16
    assert len({record.policy.hash for record in records}) == 16
    assert [record.number for record in records] == list(range(16))
    assert records[0].policy.is_dense
    assert front_of(records) == brute_force(toys, evaluate, 1)[1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_policies_that_differ_inside_a_dropped_branch_alone_are_one(tmp_path, sampler):
    options = {"a/channels": (None, Keep(0.5), Keep(0.0)), "b/weights": (None, Weights(8), Weights(4)),
               "c/weights": (None, Weights(8))}

    def evaluate(policy):
        saved = sum({Keep(0.5): 3.0, Keep(0.0): 9.0, Weights(8): 2.0, Weights(4): 4.0}[choice] for _, choice in policy)
        return Evaluation(State.COMPLETE, {"accuracy": -saved, "size": -saved}, {})

    settings = ExplorationSettings(sampler, 100, population=4)
    records = search(tmp_path, evaluate, options, settings, inside={"a/channels": ("b/weights", "elsewhere/rank")})
    policies = {record.policy for record in records}
    assert len(records) == len(policies) == 3 * 3 * 2 - 2 * 2
    dropped = [policy for policy in policies if policy.choices.get("a/channels") == Keep(0.0)]
    assert not any("b/weights" in policy.choices for policy in dropped)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_most_of_the_feasible_front_is_found_in_a_part_of_the_space(toys, tmp_path, sampler):
    """4096 policies, dense far from feasible; the goal is the hypervolume of the exact front."""
    evaluate = toys.ToyEvaluator(budget=70.0)
    settings = ExplorationSettings(sampler, 250, seed=1, population=20)
    records = search(tmp_path, evaluate, toys.toy_options(3), settings, constraints=["size", "drop"])
    costs, front = brute_force(toys, evaluate, 3)
    reference = costs.max(axis=0) + 1
    reached = hypervolume(np.array(sorted(front_of(records))), reference)
    assert not records[0].feasible
    least = 0.95 if sampler == "nsga3" else 0.97   # its reference directions leave gaps on such a front
    assert reached >= least * hypervolume(np.array(sorted(front)), reference)
    assert sum(record.feasible for record in records) > 100


def test_local_moves_change_one_to_three_units_of_an_incumbent_by_one_step(toys, tmp_path):
    settings = ExplorationSettings("nsga2", 60, population=4, local_moves_every=1)
    records = search(tmp_path, toys.ToyEvaluator(), toys.toy_options(3), settings)
    space = OptionSpace.of(toys.toy_options(3))
    genomes = [np.array(space.genome(record.policy)) for record in records]
    for index in range(1, len(records)):
        front = front_of(records[:index])
        parents = [
            genome for genome, record in zip(genomes[:index], records[:index], strict=True)
            if (-record.values["accuracy"], record.values["size"]) in front
        ]
        steps = [np.abs(genomes[index] - parent) for parent in parents]
        assert any(step.max() == 1 and 1 <= step.sum() <= 5 for step in steps)


def test_seeds_come_first_in_order_and_once(toys, tmp_path):
    seeds = [DENSE, *(Policy.of({f"layer{index}/weights": Weights(4)}) for index in (2, 0, 1, 2, 0))]
    records = search(tmp_path, toys.ToyEvaluator(), toys.toy_options(), ExplorationSettings(trials=6), seeds)
    assert [record.policy.hash for record in records[:4]] == [policy.hash for policy in seeds[:4]]
    assert len({record.policy.hash for record in records}) == 6


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stopping_and_resuming_anywhere_gives_the_same_lines(toys, tmp_path, sampler):
    evaluate = Mixed(toys.ToyEvaluator(budget=80.0))
    settings = ExplorationSettings(sampler, 60, seed=5, population=6)
    search(tmp_path / "whole", evaluate, toys.toy_options(), settings, constraints=["size"])
    whole = without_seconds(tmp_path / "whole")
    states = [json.loads(line)["state"] for line in whole]
    assert len(whole) == 60
    assert all(states.count(state) >= 3 for state in TrialState)
    for step in (1, 7, 13):
        path = tmp_path / f"step{step}"
        for trials in [*range(step, 60, step), 60]:
            part = ExplorationSettings(sampler, trials, seed=5, population=6)
            search(path, evaluate, toys.toy_options(), part, constraints=["size"])
        assert without_seconds(path) == whole
    other = ExplorationSettings(sampler, 60, seed=6, population=6)
    search(tmp_path / "other", evaluate, toys.toy_options(), other, constraints=["size"])
    assert without_seconds(tmp_path / "other") != whole


class Mixed:
    """Screens and fails some policies, by their hash."""

    def __init__(self, evaluate):
        self.evaluate = evaluate

    def __call__(self, policy):
        evaluation = self.evaluate(policy)
        match int(policy.hash, 16) % 10 if policy.items else 9:
            case 0:
                raise RuntimeError("fails")
            case 1:
                return Evaluation(State.SCREENED, {}, {}, "proxy")
            case 2:
                size = evaluation.values["size"]
                return Evaluation(State.SCREENED, {"size": size}, dict(evaluation.constraints), "size")
        return evaluation


@pytest.mark.parametrize(("sampler", "kills"), [("nsga2", 6), ("tpe", 2)])
def test_a_driver_killed_at_random_points_writes_the_same_lines(tmp_path, sampler, kills):
    def start(path, delay):
        command = [sys.executable, DRIVER, path, sampler, "40", str(delay), "1"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start(tmp_path / "whole", 0) as driver:
        assert len(driver.stdout.read().splitlines()) == 40
    rng = np.random.default_rng(11)
    acknowledged = []
    for _ in range(kills):
        with start(tmp_path / "killed", 0.002) as driver:
            for _ in range(int(rng.integers(1, 8))):
                line = driver.stdout.readline()
                if line:
                    acknowledged.append(int(line))
            driver.kill()
    with start(tmp_path / "killed", 0) as driver:
        acknowledged += [int(line) for line in driver.stdout.read().splitlines()]
        assert driver.wait() == 0
    assert len(acknowledged) == len(set(acknowledged))
    assert without_seconds(tmp_path / "killed") == without_seconds(tmp_path / "whole")


def test_a_driver_with_workers_killed_at_random_points_neither_loses_nor_repeats(tmp_path):
    command = [sys.executable, DRIVER, tmp_path / "run", "nsga2", "40", "0.01", "2"]
    for count in (3, 5, 4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
            printed = [int(driver.stdout.readline()) for _ in range(count)]
            driver.kill()
        kept = {json.loads(line)["number"] for line in without_seconds(tmp_path / "run")}
        assert set(printed) <= kept
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    records = [json.loads(line) for line in without_seconds(tmp_path / "run")]
    assert sorted(record["number"] for record in records) == list(range(40))
    assert len({record["policy_hash"] for record in records}) == 40
    assert {record["state"] for record in records} == {"COMPLETE"}


def test_two_drivers_on_one_run(tmp_path):
    command = [sys.executable, DRIVER, tmp_path / "run", "random"]
    with subprocess.Popen([*command, "1000", "0.05", "1"], stdout=subprocess.PIPE, text=True) as driver:
        driver.stdout.readline()
        second = subprocess.run([*command, "1000", "0", "1"], capture_output=True, text=True, check=False)
        driver.kill()
    assert second.returncode == 75
    assert second.stderr == f"{tmp_path / 'run'}: another process is working on this run\n"
    assert second.stdout == ""


def test_processes_evaluate_the_same_policies_alike_and_stop_at_the_number_of_trials(toys, tmp_path):
    evaluate = toys.ToyEvaluator(budget=70.0)
    with Run.open(tmp_path, {}, {}) as run, ProcessExecutor(evaluate, 2) as executor:
        settings = ExplorationSettings("tpe", 31)
        records = explore(toys.toy_options(), OBJECTIVES, [DENSE], executor, run, settings)
    assert sorted(record.number for record in records) == list(range(31))
    for record in records:
        expected = evaluate(record.policy)
        assert (dict(record.values), dict(record.constraints)) == (expected.values, expected.constraints)


def test_failures_and_incomplete_evaluations_have_reasons_and_the_search_goes_on(toys, tmp_path):
    def evaluate(policy):
        if policy.is_dense:
            return Evaluation(State.COMPLETE, {"accuracy": 1.0, "size": float("inf")})
        if len(policy) == 1:
            return Evaluation(State.COMPLETE, {"accuracy": 1.0})
        raise ValueError("broken\nfor good")

    records = search(tmp_path, evaluate, toys.toy_options(), ExplorationSettings(trials=30, population=4))
    assert len(records) == 30
    assert {record.state for record in records} == {TrialState.FAIL}
    assert records[0].reason == "bad value: size=inf"
    reasons = {record.reason for record in records[1:]}
    assert reasons == {"the evaluation lacks size", "ValueError: broken for good"}


def test_stopping_on_request_and_after_the_time(toys, tmp_path):
    seen = []
    settings = ExplorationSettings(trials=1000)
    records = search(
        tmp_path / "a", toys.ToyEvaluator(), toys.toy_options(), settings,
        on_record=seen.append, should_stop=lambda: len(seen) >= 5,
    )
    assert records == seen
    assert len(records) == 5
    timed = ExplorationSettings(seconds=0.0)
    assert search(tmp_path / "b", toys.ToyEvaluator(), toys.toy_options(), timed) == []


def test_policies_carry_the_fingerprints_of_the_run(toys, tmp_path):
    prints = {"model": "m1", "space": "s1"}
    with Run.open(tmp_path, prints, {}) as run, SerialExecutor(toys.ToyEvaluator(), None) as executor:
        settings = ExplorationSettings(trials=5)
        live = explore(toys.toy_options(), OBJECTIVES, [DENSE], executor, run, settings)
    with Run.open(tmp_path, prints, {}) as run:
        assert run.records() == live
    assert {(record.policy.model, record.policy.space) for record in live} == {("m1", "s1")}


def test_a_pinned_unit_keeps_its_one_choice(toys, tmp_path):
    options = {**toys.toy_options(), "layer9/weights": (Weights(4),)}
    space = OptionSpace.of(options)
    for genome in (space.dense, space.genome_at(7)):
        assert space.policy(genome).choices["layer9/weights"] == Weights(4)
    assert space.policy(space.genome(DENSE)).choices == {"layer9/weights": Weights(4)}


def test_what_is_wrong_is_said_in_one_line(toys, tmp_path):
    settings = ExplorationSettings(trials=1)
    unit, choice = Policy.of({"layer9/weights": Weights(4)}), Policy.of({"layer0/channels": Keep(0.1)})
    with pytest.raises(PolicyError, match="unknown unit 'layer9/weights'; did you mean 'layer"):
        search(tmp_path / "a", toys.ToyEvaluator(), toys.toy_options(), settings, [unit])
    with pytest.raises(PolicyError, match=r"Keep\(ratio=0.1\) is not an option of unit 'layer0/channels'"):
        search(tmp_path / "b", toys.ToyEvaluator(), toys.toy_options(), settings, [choice])
    with pytest.raises(ConfigError, match="first option must be dense"):
        search(tmp_path / "c", toys.ToyEvaluator(), {"a/weights": (Weights(8), Weights(4))}, settings)
    with pytest.raises(ConfigError, match="unknown sampler 'nsga'; did you mean 'nsga"):
        ExplorationSettings("nsga", 1)
    with pytest.raises(ConfigError, match="needs a number of trials or a time"):
        ExplorationSettings()
