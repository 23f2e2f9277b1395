"""Searches on a real cluster of three node processes, with tokens, faults and lost nodes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from paretopress.evaluators.evaluation import State
from paretopress.search.executors import SerialExecutor
from paretopress.search.exploration import ExplorationSettings, explore
from paretopress.search.ledger import Run
from paretopress.search.ray_executor import RayExecutor
from paretopress.search.tune_executor import TuneExecutor
from paretopress.search.tune_search import STOPPED
from paretopress.search.worker_resources import WorkerResources, parse_worker_resources
from paretopress.spaces.choices import Keep
from paretopress.spaces.errors import ConfigError, DiskError
from paretopress.spaces.policy import DENSE, Policy

TRIALS = 60
CALLER = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=5)
"""


def gather(executor, policies):
    for number, policy in enumerate(policies):
        executor.submit(number, policy)
    outcomes = []
    while executor.pending:
        outcomes.append(executor.next_result())
    assert sorted(outcome.number for outcome in outcomes) == list(range(len(policies)))
    return {outcome.number: outcome.evaluation for outcome in outcomes}


def searched(toys, path, executor, trials=TRIALS, on_record=None):
    settings = ExplorationSettings("nsga2", trials, seed=3, population=8)
    with Run.open(path, {"seed": "3", "model": "m", "space": "s"}, {"seed": 3}) as run, executor:
        return explore(
            toys.toy_options(), {"accuracy": "max", "size": "min"}, [DENSE], executor, run, settings,
            constraints=["size"], on_record=on_record,
        )


def evaluated(records):
    return {record.policy.hash: (record.state, record.values, record.constraints) for record in records}


@pytest.mark.slow
def test_a_node_is_killed_in_the_middle_and_every_trial_is_there_once(toys, ray_nodes, tmp_path):
    """The node's raylet and all of its workers die by SIGKILL, as on a machine that loses power."""
    lost = ray_nodes.add_node(num_cpus=1)
    killed = []

    def kill_once(_record):
        if len(killed) == 0 and ray_nodes_busy(4):
            ray_nodes.remove_node(lost, allow_graceful=False)
            killed.append(time.monotonic())

    executor = RayExecutor(toys.ToyEvaluator(budget=70.0, delay=0.1), workers=4, address=ray_nodes.address)
    records = searched(toys, tmp_path / "run", executor, on_record=kill_once)
    assert len(killed) == 1
    assert sorted(record.number for record in records) == list(range(TRIALS))
    assert len({record.policy.hash for record in records}) == TRIALS
    assert {record.state.value for record in records} == {"COMPLETE"}
    reference = toys.ToyEvaluator(budget=70.0)
    for record in records:
        assert record.values == reference(record.policy).values


def ray_nodes_busy(count):
    import ray

    actors = ray._private.state.actors().values()
    return len({actor["Address"]["NodeID"] for actor in actors if actor["State"] == "ALIVE"}) == count


@pytest.mark.slow
def test_one_worker_of_tune_searches_exactly_like_serial(toys, ray_nodes, tmp_path, capfd):
    """Same proposals, same evaluations, same ledger: Tune only carries them."""
    evaluate = toys.ToyEvaluator(budget=70.0)
    serial = searched(toys, tmp_path / "serial", SerialExecutor(evaluate, threads=None), trials=24)
    executor = TuneExecutor(evaluate, 1, ray_nodes.address, storage=tmp_path / "tune")
    found = searched(toys, tmp_path / "tuned", executor, trials=24)
    assert [record.number for record in found] == list(range(24))
    assert evaluated(found) == evaluated(serial)
    assert any(value > 0 for record in found for value in record.constraints.values())   # constraints arrive
    assert capfd.readouterr().out == ""   # stdout is for results


@pytest.mark.slow
def test_tune_loses_nothing_that_its_own_searcher_loses(toys, ray_nodes, tmp_path):
    """Values that are not finite, exceptions and dead actors are failures with a reason; nothing stays running."""
    names = ["exit", "", "raise", "nan", "nothing"]
    policies = {name: Policy.of({"a/channels": Keep((index + 1) / 10)}) for index, name in enumerate([*names, "disk"])}
    evaluate = toys.FaultyEvaluator(str(tmp_path / "log"), {policy.hash: name for name, policy in policies.items()})
    with TuneExecutor(evaluate, 2, ray_nodes.address, storage=tmp_path / "tune") as executor:
        found = gather(executor, [policies[name] for name in names])
        executor.submit(0, policies["disk"])
        with pytest.raises(DiskError, match="the disk is full"):
            executor.next_result()
    assert {name: found[number].reason for number, name in enumerate(names)} == {
        "exit": "worker died (Ray Tune trial)",
        "": "",
        "raise": "KeyError: 'no\\nsuch layer'",
        "nan": "bad value: accuracy=nan",
        "nothing": "TypeError: the evaluator returned NoneType, not an Evaluation",
    }


@pytest.mark.slow
def test_what_asha_stops_is_screened_and_never_complete(toys, ray_nodes, tmp_path):
    from ray.tune import Callback

    class Counting(Callback):
        started = 0

        def on_trial_start(self, *_, **__):
            Counting.started += 1

    ratios = [0.5, 0.9, 0.4, 0.8, 0.3, 0.7, 0.2, 0.6, 0.1, 0.95]
    policies = [Policy.of({"a/channels": Keep(ratio)}) for ratio in ratios]
    evaluate = toys.StagedEvaluator()
    with TuneExecutor(
        evaluate, 1, ray_nodes.address, storage=tmp_path, scheduler="asha", callbacks=[Counting()]
    ) as executor:
        found = gather(executor, policies)
    stopped = [number for number, evaluation in found.items() if evaluation.reason == STOPPED]
    assert 3 <= len(stopped) <= 6
    assert all(ratios[number] < 0.5 for number in stopped)
    for number, evaluation in found.items():
        if number in stopped:
            assert evaluation.state is State.SCREENED
            assert "accuracy" not in evaluation.values
        else:
            assert evaluation == evaluate(policies[number])
    assert Counting.started == len(policies)


@pytest.mark.slow
def test_a_local_instance_takes_only_whoever_has_its_token(toys, no_token, tmp_path):
    import ray

    with RayExecutor(toys.ToyEvaluator(), workers=1, resources=WorkerResources(1, 0.0, {"licence": 1.0})) as executor:
        assert gather(executor, [DENSE])[0].state is State.COMPLETE
        assert ray.cluster_resources()["licence"] == 1.0
        address = ray.get_runtime_context().gcs_address
        own = dict(os.environ)
        assert len(own["RAY_AUTH_TOKEN"]) == 64
        assert called(address, own) == 0
        assert called(address, {**own, "RAY_AUTH_TOKEN": "0" * 64}) != 0
        assert called(address, {**own, "RAY_AUTH_MODE": "disabled"}) != 0
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert "RAY_AUTH_MODE" not in os.environ
    assert not list(tmp_path.rglob("auth_token"))   # Ray itself would leave a readable file there


def called(address, environment):
    command = [sys.executable, "-c", CALLER, address]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode


@pytest.mark.slow
def test_a_cluster_is_joined_only_for_what_it_has_room_for(toys, ray_nodes):
    evaluate = toys.ToyEvaluator()
    for executor in (RayExecutor, TuneExecutor):
        with pytest.raises(ConfigError, match="workers: 9 need 9 CPUs, the Ray cluster has 3"):
            executor(evaluate, workers=9, address=ray_nodes.address)
    with pytest.raises(ConfigError, match="workers: 1 need 1 GPUs, the Ray cluster has 0"):
        RayExecutor(evaluate, workers=1, address=ray_nodes.address, resources=parse_worker_resources("gpu=1"))


@pytest.mark.slow
def test_a_cluster_is_not_joined_without_a_token(toys, ray_nodes, no_token):
    with pytest.raises(ConfigError, match=r"no authentication token for Ray at .*get-auth-token") as error:
        RayExecutor(toys.ToyEvaluator(), workers=1, address=ray_nodes.address)
    assert "\n" not in str(error.value)
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.slow
def test_the_users_own_connection_stays(toys, ray_nodes):
    import ray

    ray.init(address=ray_nodes.address, log_to_driver=False)
    try:
        with RayExecutor(toys.ToyEvaluator(), workers=1) as executor:
            assert gather(executor, [DENSE])[0].state is State.COMPLETE
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_killed_actor_is_replaced_while_others_work(toys, ray_nodes, tmp_path):
    import ray

    executor = RayExecutor(toys.ToyEvaluator(delay=0.05), workers=2, address=ray_nodes.address)
    policies = [Policy.of({"layer0/channels": Keep(ratio)}) for ratio in (0.75, 0.5, 0.25)] * 6
    with executor:
        for number, policy in enumerate(policies):
            executor.submit(number, policy)
        found = [executor.next_result()]
        process = next(a["Pid"] for a in ray._private.state.actors().values() if a["State"] == "ALIVE")
        os.kill(process, signal.SIGKILL)
        while executor.pending:
            found.append(executor.next_result())
    assert sorted(outcome.number for outcome in found) == list(range(len(policies)))
    assert {outcome.evaluation.state for outcome in found} == {State.COMPLETE}


@pytest.mark.parametrize(("text", "amounts"), [
    ("cpu=2", {"CPU": 2.0}),
    ("gpu=0.25, licence=2", {"CPU": 1.0, "GPU": 0.25, "licence": 2.0}),
])
def test_worker_resources(text, amounts):
    assert parse_worker_resources(text).amounts == amounts


def test_a_machine_needs_whole_devices():
    assert WorkerResources(2, 0.3, {"disk": 0.1}).of(3) == {"CPU": 6, "GPU": 1, "disk": 0.3}


@pytest.mark.parametrize("text", ["cpu", "cpu=0", "cpu=1.5", "gpu=-1", "gpu=nan", "gpu=1.5", "a=1,a=2", "=1", "CPU=1",
                                  "x=inf", ""])
def test_worker_resources_that_make_no_sense(text):
    with pytest.raises(ConfigError, match="worker resources") as error:
        parse_worker_resources(text)
    assert "\n" not in str(error.value)
