"""The second signal ends a command at once with 130 or 143, however deep in a library it is."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

START = """
import sys, threading, time
from paretopress.cli.failures import run_guarded

def swallow():
    while True:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except BaseException:   # as destructors and callbacks do with what a handler raises
            pass

def call_a_library():
    import hashlib

    while True:
        try:
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)   # minutes in C, where no Python handler runs
        except BaseException:   # the signal came before the call
            pass

def leave_a_thread_behind():
    threading.Thread(target=time.sleep, args=(600,)).start()
    print("ready", flush=True)
    time.sleep(60)

sys.exit(run_guarded({action}))
"""


@pytest.fixture
def start():
    running = []

    def run(action):
        process = subprocess.Popen(
            [sys.executable, "-c", START.replace("{action}", action)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),   # not so in a background job
        )
        running.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()


def pending(process, number):
    """Whether a signal that was sent has not reached the process's handler yet."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("action", ["swallow", "call_a_library"])
def test_a_second_signal_ends_what_the_first_cannot(start, action, number, code):
    process = start(action)
    process.send_signal(number)
    while pending(process, number):   # two signals of one kind that are pending at once are one
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == "error: interrupted; the same command continues where it stopped\n"


def test_one_signal_is_enough_where_only_other_threads_remain(start):
    process = start("leave_a_thread_behind")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "error: interrupted; the same command continues where it stopped\n"


def test_a_command_that_ends_in_order_leaves_no_trace(capfd, monkeypatch):
    from paretopress.cli import failures
    from paretopress.cli.failures import run_guarded

    monkeypatch.setattr(failures, "_leave_without_waiting", lambda _: None)   # other tests' threads would be left
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    assert run_guarded(lambda: 5) == 5

    def interrupted():
        raise KeyboardInterrupt

    assert run_guarded(interrupted) == 130
    after = signal.set_wakeup_fd(before)
    assert after == before
    assert capfd.readouterr().err.count("\n") == 1
