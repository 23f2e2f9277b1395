"""Progress lines, and how a wish to stop travels."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from paretopress.progress import LiveObserver, PlainObserver, duration, observing
from paretopress.search.live import ExplorationStatus


def test_plain_lines_come_seldom_and_tell_the_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    observer = PlainObserver(stream, every=5.0)
    observer.stage("search", 100)
    for _ in range(50):
        clock[0] += 1.0
        observer.advance(1, "front 4")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "search"
    assert lines[1] == "search: 5/100 in 5s, 1m35s left  front 4"
    assert len(lines) == 11
    assert lines[-1].startswith("search: 50/100 in 50s, 50s left")


def test_a_stage_of_unknown_length_counts_only(monkeypatch):
    stream = io.StringIO()
    observer = PlainObserver(stream, every=0.0)
    observer.stage("verify", None)
    observer.advance(3)
    observer.warning("busy\nmachine")
    assert stream.getvalue() == "verify\nverify: 3 in 0s\nwarning: busy machine\n"


STATUS = ExplorationStatus(trials=12, front=4, hypervolume=0.5312, per_second=3.04, feasible=0.75, seconds_left=42.0)


def test_the_figures_of_an_exploration_are_shown_in_lines_and_in_a_table(monkeypatch):
    stream = io.StringIO()
    observer = PlainObserver(stream, every=0.0)
    observer.stage("explore", None)
    observer.exploration(STATUS)
    observer.advance(12, "accuracy 0.9")
    observer.stage("verify", 2)
    observer.advance(1)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "explore: 12 in 0s, 42s left  front 4, hypervolume 0.531, 3.0 trials/s, 75% feasible"
    assert lines[3].startswith("verify: 1/2 in 0s")
    assert "front" not in lines[3]
    monkeypatch.setenv("COLUMNS", "100")
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    live = LiveObserver()
    live.stage("explore", None)
    live.exploration(STATUS)
    live.close()
    assert "hypervolume" in shown.getvalue()
    assert "0.5312" in shown.getvalue()
    assert "42s" in shown.getvalue()


def test_a_stage_that_fails_at_once_is_not_named():
    stream = io.StringIO()
    observer = PlainObserver(stream)
    observer.stage("capture", None)
    assert stream.getvalue() == ""
    observer.stage("calibrate", 2)
    assert stream.getvalue() == "capture\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (3720, "1h02m")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_no_color_and_json_give_plain_lines_without_escapes(capfd):
    with observing(plain=True) as observer:
        assert isinstance(observer, PlainObserver)
        observer.stage("calibrate", 3)
        observer.advance()
    assert capfd.readouterr() == ("", "calibrate\n")


def child(program, *arguments):
    """Run a program in a process of its own, which a signal may end; returns what it said on stdout and stderr."""
    preamble = """
    import os, signal, sys, time
    from paretopress.progress import observing
    signal.signal(signal.SIGINT, signal.default_int_handler)   # commands in the background ignore interrupts
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(program), *map(str, arguments)],
        capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated")]
)
def test_a_signal_ends_at_once_until_the_search_asks(number, raised):
    said, _ = child("""
        number = int(sys.argv[1])
        before = signal.getsignal(number)
        try:
            with observing(plain=True):
                os.kill(os.getpid(), number)
                time.sleep(10)
                print("not ended")
        except BaseException as error:
            print(type(error).__name__, signal.getsignal(number) is before)
    """, int(number))
    assert said == f"{raised} True\n"


def test_once_asked_the_first_signal_is_a_wish_and_the_second_an_end():
    said, err = child("""
        try:
            with observing(plain=True) as observer:
                print(observer.should_stop())
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                print(observer.should_stop(), observer.exit_code)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
                print("not ended")
        except KeyboardInterrupt:
            print("ended")
    """)
    assert said.splitlines() == ["False", "True 143", "ended"]
    assert "finishing what has begun" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_command_is_one_line_and_its_exit_code(number, code):
    """`device measure` on a machine whose first network never ends stands for any long command."""
    program = (
        "import sys, time; from paretopress.hardware_profiles import local\n"
        "def wait(**_): print('ready', flush=True); time.sleep(60)\n"
        "local.local_profile = wait\n"
        "from paretopress.cli import main; main(['device', 'measure'])\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "ready\n"
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_bars_appear_in_a_terminal_only(project):
    """Run under a pseudo-terminal: the last stage, its count and the notes are drawn."""
    import pty

    program = (
        "from paretopress.progress import observing, LiveObserver\n"
        "with observing() as o:\n"
        "    assert isinstance(o, LiveObserver)\n"
        "    o.stage('calibrate', 2); o.advance(2, 'layer [bold]'); o.stage('open', None); o.advance(1)\n"
        "    o.warning('busy')\n"
    )
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    ended = subprocess.run([sys.executable, "-c", program], stderr=side, env=environment, check=False)
    os.close(side)
    drawn = b""
    with open(main, "rb", buffering=0) as stream:  # noqa: PTH123
        try:
            while chunk := stream.read(4096):
                drawn += chunk
        except OSError:
            pass  # the other end is closed
    assert ended.returncode == 0
    assert b"calibrate" in drawn
    assert b"2/2" in drawn
    assert b"[bold]" in drawn
    assert b"warning: busy" in drawn
