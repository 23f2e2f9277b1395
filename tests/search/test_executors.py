import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import SerialExecutor, torch_threads
from paretopress.search.process_executor import ProcessExecutor
from paretopress.search.ray_executor import RayExecutor
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.errors import ConfigError, DiskError, ParetopressError
from paretopress.spaces.policy import DENSE, Policy

RATIOS = (0.3, 0.5, 0.7, 0.9)
POLICIES = [DENSE, *(Policy.of({"a/channels": Keep(ratio), "b/weights": Weights(4)}) for ratio in RATIOS)]


def gather(executor, policies):
    for number, policy in enumerate(policies):
        executor.submit(number, policy)
    outcomes = []
    while executor.pending:
        outcomes.append(executor.next_result())
    return {outcome.number: outcome.evaluation for outcome in outcomes}


@pytest.fixture
def faulty(toys, tmp_path):
    """An evaluator and, by fault, the policy that sets it off."""
    names = ["exit", "kill", "kill once", "hang", "raise", "nan", "nothing", "disk", ""]
    policies = {name: Policy.of({"a/channels": Keep((index + 1) / 10)}) for index, name in enumerate(names)}
    faults = {policy.hash: name for name, policy in policies.items()}
    return toys.FaultyEvaluator(str(tmp_path / "log"), faults), policies


def test_serial_results_do_not_depend_on_the_callers_threads(toys):
    import torch

    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with SerialExecutor(toys.TensorEvaluator()) as executor:
            found.append(gather(executor, POLICIES))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert found[0] == found[1]
    assert {evaluation.values["threads"] for evaluation in found[0].values()} == {1.0}


def test_threads_come_back_after_an_error():
    import torch

    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before


def test_processes_evaluate_exactly_like_serial(toys):
    evaluate = toys.TensorEvaluator()
    with SerialExecutor(evaluate) as executor:
        serial = gather(executor, POLICIES)
    with ProcessExecutor(evaluate, workers=2) as executor:
        assert executor.capacity == 2
        assert gather(executor, POLICIES) == serial
    assert len({evaluation.values["accuracy"] for evaluation in serial.values()}) == len(POLICIES)


def test_serial_faults_are_failures_with_a_reason(faulty):
    evaluate, policies = faulty
    with SerialExecutor(evaluate, threads=None) as executor:
        found = gather(executor, [policies["raise"], policies["nan"], policies["nothing"], policies[""]])
    assert [found[number].reason for number in range(4)] == [
        "KeyError: 'no\\nsuch layer'",
        "bad value: accuracy=nan",
        "TypeError: the evaluator returned NoneType, not an Evaluation",
        "",
    ]
    assert [found[number].state for number in range(4)] == [State.FAILED] * 3 + [State.COMPLETE]


def test_dead_workers_are_replaced_and_their_policies_tried_once_more(faulty, tmp_path):
    evaluate, policies = faulty
    order = ["exit", "", "kill", "raise", "nan", "kill once", "nothing"]
    with ProcessExecutor(evaluate, workers=2) as executor:
        found = gather(executor, [policies[name] for name in order])
        assert gather(executor, [policies[""]])[0].state is State.COMPLETE
    reasons = {name: found[number].reason for number, name in enumerate(order)}
    assert reasons == {
        "exit": "worker died (exit code 3)",
        "kill": "worker died (signal 9)",
        "kill once": "",
        "raise": "KeyError: 'no\\nsuch layer'",
        "nan": "bad value: accuracy=nan",
        "nothing": "TypeError: the evaluator returned NoneType, not an Evaluation",
        "": "",
    }
    tried = (tmp_path / "log").read_text().splitlines()
    assert [tried.count(name) for name in ("exit", "kill", "kill once", "raise")] == [2, 2, 2, 1]


class KilledWhileLoading:
    """Where it is unpickled, the process is killed as by a system without memory."""

    def __reduce__(self):
        return os.kill, (_OwnProcess(), signal.SIGKILL)


class _OwnProcess:
    def __reduce__(self):
        return os.getpid, ()


def test_workers_that_are_killed_before_they_are_ready_say_what_to_do():
    with ProcessExecutor(KilledWhileLoading(), workers=1) as executor:
        executor.submit(0, POLICIES[0])
        with pytest.raises(ParetopressError, match=r"\(signal 9\) for lack of memory, most likely: give fewer"):
            executor.next_result()


def test_a_hanging_evaluation_is_killed_and_the_others_finish(faulty, tmp_path):
    evaluate, policies = faulty
    with ProcessExecutor(evaluate, workers=1, timeout_seconds=1.0) as executor:
        found = gather(executor, [policies["hang"], policies[""]])
    assert found[0] == Evaluation(State.FAILED, reason="timeout after 1 s")
    assert found[1].state is State.COMPLETE
    assert (tmp_path / "log").read_text().splitlines().count("hang") == 1


def test_waiting_ends_without_a_result_when_asked(faulty):
    evaluate, policies = faulty
    with ProcessExecutor(evaluate, workers=1) as executor:
        executor.submit(0, policies["hang"])
        assert executor.next_result(timeout_seconds=0.2) is None
        assert executor.pending == 1
    assert executor.pending == 0
    with pytest.raises(ValueError, match="nothing is pending"):
        executor.next_result()


def test_a_full_disk_in_a_worker_stops_the_search_instead_of_failing_candidates(faulty):
    evaluate, policies = faulty
    for executor in (SerialExecutor(evaluate, threads=None), ProcessExecutor(evaluate, workers=1)):
        with executor, pytest.raises(DiskError, match="the disk is full"):
            gather(executor, [policies["disk"]])


def test_what_cannot_be_sent_or_loaded_is_one_line(toys):
    with pytest.raises(ConfigError, match="cannot be pickled") as error:
        ProcessExecutor(toys.FaultyEvaluator(sys.stdout), workers=1)
    assert "\n" not in str(error.value)
    with ProcessExecutor(toys.Unloadable(), workers=1) as executor:
        executor.submit(0, DENSE)
        with pytest.raises(ConfigError, match="a worker cannot load the evaluator: ValueError"):
            executor.next_result()
    with pytest.raises(ConfigError, match="workers: 0 is below 1"):
        ProcessExecutor(toys.ToyEvaluator(), workers=0)


def test_close_leaves_no_process(toys):
    executor = ProcessExecutor(toys.ToyEvaluator(delay=60), workers=2)
    processes = executor.worker_processes()
    executor.submit(0, DENSE)
    executor.close()
    executor.close()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


SCRIPT = """
import sys, time
from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.process_executor import ProcessExecutor
from paretopress.spaces.policy import DENSE

class Mine:
    def __call__(self, policy):
        print("noise of the evaluator", flush=True)
        time.sleep(DELAY)
        return Evaluation(State.COMPLETE, {"accuracy": 0.5})

DELAY = %s
executor = ProcessExecutor(Mine(), workers=1)
executor.submit(0, DENSE)
print(executor.worker_processes()[0], flush=True)
print(executor.next_result().evaluation.values, flush=True)
executor.close()
"""


def test_a_script_without_main_guard_works_and_its_output_stays_clean(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT % 0)
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["{'accuracy': 0.5}"]
    assert "noise of the evaluator" in done.stderr


def test_workers_follow_a_killed_driver(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT % 600)
    command = [sys.executable, tmp_path / "script.py"]
    pipe = subprocess.PIPE
    driver = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    worker = int(driver.stdout.readline())
    assert driver.stderr.readline() == "noise of the evaluator\n"
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and running(worker):
        time.sleep(0.1)
    assert not running(worker)


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_ray_on_this_machine_evaluates_like_serial_and_survives_faults(toys, faulty, tmp_path):
    import ray

    tensors = toys.TensorEvaluator()
    with SerialExecutor(tensors) as executor:
        serial = gather(executor, POLICIES)
    with RayExecutor(tensors, workers=2) as executor:
        assert gather(executor, POLICIES) == serial
        assert ray.is_initialized()
        assert foreign_listeners() == []
    assert not ray.is_initialized()
    evaluate, policies = faulty
    order = ["exit", "", "kill once", "raise", "nan", "hang", "nothing"]
    with RayExecutor(evaluate, workers=2, timeout_seconds=5.0) as executor:
        found = gather(executor, [policies[name] for name in order])
        executor.submit(0, policies["disk"])
        with pytest.raises(DiskError, match="the disk is full"):
            executor.next_result()
    assert {name: found[number].reason for number, name in enumerate(order)} == {
        "exit": "worker died (Ray actor)",
        "kill once": "",
        "raise": "KeyError: 'no\\nsuch layer'",
        "nan": "bad value: accuracy=nan",
        "nothing": "TypeError: the evaluator returned NoneType, not an Evaluation",
        "hang": "timeout after 5 s",
        "": "",
    }


def foreign_listeners():
    """Return what Ray's processes and this one listen on beyond the loopback addresses."""
    addresses = {}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                addresses[f"socket:[{fields[9]}]"] = fields[1].rpartition(":")[0]
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    found = []
    for process in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            if b"ray" not in (process / "cmdline").read_bytes() and process.name != str(os.getpid()):
                continue
            targets = [str(descriptor.readlink()) for descriptor in (process / "fd").iterdir()]
        except OSError:
            continue
        found += [addresses[target] for target in targets if target in addresses]
    assert found, "Ray listens somewhere"
    return [address for address in found if address not in loopback]


@pytest.mark.parametrize(("address", "message"), [
    ("127.0.0.1:1", "cannot connect to Ray at 127.0.0.1:1: Connection refused"),
    ("head", "expected HOST:PORT or 'auto'"),
    ("auto", "cannot connect to Ray at auto: Could not find any running Ray instance"),
])
def test_a_cluster_that_is_not_there_is_one_line_at_once(toys, address, message):
    with pytest.raises(ConfigError, match=message) as error:
        RayExecutor(toys.ToyEvaluator(), workers=1, address=address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("answer", "message"), [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "something else listens at"),
    (b"", "something else listens at"),
    (None, "timed out"),
])
@pytest.mark.parametrize("found", [False, True])
def test_what_else_listens_is_refused_before_ray_prints_about_it(toys, answer, message, found, monkeypatch, capfd):
    monkeypatch.setattr("paretopress.search.ray_connection._ANSWER_SECONDS", 1.0)
    with socket.create_server(("0.0.0.0", 0)) as server:   # Ray connects to this machine through the network
        port = server.getsockname()[1]
        thread = threading.Thread(target=answer_once, args=(server, answer))
        thread.start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}" if found else "192.0.2.1:1")
        with pytest.raises(ConfigError, match=f"^cannot connect to Ray at .*{message}") as error:
            RayExecutor(toys.ToyEvaluator(), workers=1, address="auto" if found else f"127.0.0.1:{port}")
        thread.join()
    assert f":{port}" in str(error.value)
    assert capfd.readouterr() == ("", "")


def answer_once(server, answer):
    """Accept one connection and say something, or nothing until the other side leaves."""
    connection, _ = server.accept()
    with connection:
        connection.settimeout(5.0)
        if answer is None:
            while connection.recv(1024):
                pass
        else:
            connection.recv(1024)
            connection.sendall(answer)
