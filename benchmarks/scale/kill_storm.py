"""A search in a storm, and plain Optuna in the same one: what is lost, done twice, or left running for ever.

    python benchmarks/scale/kill_storm.py --kills 1080 --trials 1500 --crashes 10 --storages postgresql
    python benchmarks/scale/kill_storm.py --kills 100 --trials 300 --rivals --output benchmarks/scale/kill_storm.json

Four workers evaluate (predicted costs of the digits network, a few milliseconds of real arithmetic) while processes are
killed with SIGKILL, stopped and continued, and the database server crashes. Everything that an evaluation finished is
in a history that the storm does not touch; the checks (`tests/storages/history.py`, I1 to I8) compare it with what the
storage and the run directory hold in the end. With `--folder` a storm lasts `--piece` seconds at a time: then all
are killed and the server crashed at once, and the same command goes on with the storm. Optuna is used as its
documentation says: `study.optimize` in every worker, with heartbeats and `RetryHeartbeatStaleTrialCallback` where the
storage has them.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests" / "storages"), str(ROOT / "tests" / "search")]

import optuna  # noqa: E402 - imported before processes are forked
import priced_demo  # noqa: E402
import shared_driver as driver  # noqa: E402
from postgresql_server import PostgresqlServer  # noqa: E402
from storm import Storm  # noqa: E402

from paretopress.search.option_space import OptionSpace  # noqa: E402

WORKERS = 4
Figures = dict[str, Any]


def our_storm(
    kind: str, kills: int, trials: int, crashes: int, every: int, seed: int, deadline: float
) -> Figures:
    """A search of ours in a storm; returns figures and what is broken."""
    with storage(kind) as (url, server, folder):
        storm = Storm(url, folder / "run", trials, WORKERS, server, seed, every=every)
        try:
            storm.start()
            begin = time.monotonic()
            storm.rage(kills, crashes if server else 0, deadline)
            return ending(storm, kind, lambda: time.monotonic() - begin, deadline)
        finally:
            storm.stop()


def ending(storm: Storm, kind: str, seconds: Callable[[], float], deadline: float) -> Figures:
    """Let a search end in calm; figures and what is broken."""
    storm.calm(deadline)
    passed = seconds()
    broken, figures = storm.verdict()
    return {"system": "paretopress", "storage": kind, "trials": storm.trials, "seconds": round(passed, 1), **figures,
            "broken promises": len(broken), "first of them": broken[:5]}


def piece_of_storm(
    folder: Path, piece: float, kills: int, trials: int, crashes: int, every: int, seed: int, deadline: float
) -> Figures | None:
    """Some seconds of a storm over PostgreSQL that goes on in `folder`; figures once it has ended.

    The pause is part of the storm: every process is killed and the server crashes, as when a host fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    begin, path = time.monotonic(), folder / "storm.json"
    said: Figures = json.loads(path.read_text()) if path.exists() else {
        "next": 0, "seconds": 0.0, "counts": {}, "loads": []}
    server = PostgresqlServer(durable=True, folder=folder / "server")
    url = server.database("storm") if path.exists() else server.create("storm")
    path.write_text(json.dumps(said))
    storm = Storm(url, folder / "run", trials, WORKERS, server, seed, every=every, counts=said["counts"])
    try:
        storm.start()
        said["next"] = storm.rage(kills, crashes, deadline, said["next"], begin + piece)
        said["loads"].append(round(os.getloadavg()[0], 1))
        if said["next"] == kills:
            found = ending(storm, "postgresql", lambda: said["seconds"] + time.monotonic() - begin, deadline)
            return {**found, "loads": said["loads"]}
    finally:
        storm.stop()
        server.crash()
    storm.counts["pauses: all killed at once"] = storm.counts.get("pauses: all killed at once", 0) + 1
    said["seconds"] += time.monotonic() - begin
    path.write_text(json.dumps(said))
    print(f"kill {said['next']} of {kills}, {said['seconds']:.0f} s, {storm.finished} evaluations", flush=True)
    return None


@contextlib.contextmanager
def storage(kind: str) -> Iterator[tuple[str, Any, Path]]:
    """An empty storage: its address, its server, and a folder."""
    with tempfile.TemporaryDirectory(prefix="storm") as folder:
        if kind != "postgresql":
            yield kind, None, Path(folder)
            return
        server = PostgresqlServer(durable=True)
        try:
            yield server.create("storm"), server, Path(folder)
        finally:
            server.close()


def optuna_storage(url: str, folder: Path) -> optuna.storages.BaseStorage:
    """Optuna's storage as its documentation sets it up for workers that may die."""
    warnings.simplefilter("ignore")
    if url == "journal":
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        path = str(folder / "optuna.journal")
        return optuna.storages.JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
    address = f"sqlite:///{folder}/optuna.sqlite3" if url == "sqlite" else \
        url.replace("postgresql://", "postgresql+psycopg://")
    return optuna.storages.RDBStorage(
        address, heartbeat_interval=1, grace_period=3,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=8),
    )


def optuna_worker(url: str, folder: Path, trials: int, space: OptionSpace) -> None:
    """What the documentation's distributed example does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    evaluate = priced_demo.Pricing(str(folder / "evaluations"))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        labels = {unit: trial.suggest_categorical(unit, space.labels[unit]) for unit in space.units}
        found = evaluate(space.policy(space.genome_of_labels(labels)))
        driver.log(folder, f"finished {trial.number}")
        return found.values["latency"], found.values["size"]

    study = optuna.load_study(study_name="storm", storage=optuna_storage(url, folder),
                              sampler=optuna.samplers.RandomSampler())
    study.optimize(objective, callbacks=[optuna.study.MaxTrialsCallback(trials)])


def optuna_storm(kind: str, kills: int, trials: int, crashes: int, seed: int, deadline: float) -> Figures:
    """The same with Optuna alone: workers are started again whenever they end, until the trials are complete."""
    options = priced_demo.options()
    space = OptionSpace.of(options, model="m", space="s")
    with storage(kind) as (url, server, folder):
        optuna.create_study(study_name="storm", storage=optuna_storage(url, folder),
                            directions=["minimize", "minimize"])
        (folder / "history").touch()
        workers: list[int] = []
        counts = {"workers killed": 0, "workers that died of errors": 0}
        chance = random.Random(seed)
        crash_at = {round((index + 1) * kills / (crashes + 1)) for index in range(crashes if server else 0)}
        begin, number = time.monotonic(), 0

        def finished() -> int:
            return (folder / "history").read_bytes().count(b"finished")

        def revive() -> None:
            for pid in list(workers):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    workers.remove(pid)
                    code = os.waitstatus_to_exitcode(status)
                    counts["workers that died of errors"] += code not in (0, -signal.SIGKILL)
            while len(workers) < WORKERS:
                workers.append(driver.forked(quiet, optuna_worker, url, folder, trials, space))

        while number < kills and time.monotonic() - begin < deadline:
            revive()
            if finished() >= 0.85 * number * trials / kills:
                time.sleep(chance.uniform(0.0, 0.05))
                if number in crash_at:
                    server.crash()
                    time.sleep(chance.uniform(0.1, 1.0))
                    server.start()
                os.kill(chance.choice(workers), signal.SIGKILL)
                counts["workers killed"] += 1
                number += 1
            time.sleep(0.01)
        settle(workers, deadline - (time.monotonic() - begin), revive, url, folder, trials)
        result = optuna_figures(url, folder)
        return {"system": "optuna", "storage": kind, "trials": trials,
                "seconds": round(time.monotonic() - begin, 1), "server crashes": len(crash_at), **counts, **result}


def settle(
    workers: list[int], seconds: float, revive: Callable[[], None], url: str, folder: Path, trials: int
) -> None:
    """Let the workers go on until the trials are complete, or the time is over, and the grace period after that."""
    end = time.monotonic() + max(10.0, seconds)
    while time.monotonic() < end:
        study = optuna.load_study(study_name="storm", storage=optuna_storage(url, folder))
        if len(study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])) >= trials:
            break
        revive()
        time.sleep(1.0)
    time.sleep(6.0)
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def optuna_figures(url: str, folder: Path) -> Figures:
    """What Optuna's storage holds of what evaluations finished, once every worker has ended."""
    study = optuna.load_study(study_name="storm", storage=optuna_storage(url, folder))
    trials = {trial.number: trial.state.name for trial in study.get_trials(deepcopy=False)}
    said = [int(line.split()[1]) for line in (folder / "history").read_text().splitlines()]
    states = list(trials.values())
    return {
        "complete": states.count("COMPLETE"), "evaluations": len(said),
        "finished, but not recorded": sum(trials.get(number) != "COMPLETE" for number in said),
        "left running": states.count("RUNNING"), "failed": states.count("FAIL"),
    }


def quiet(action: Callable[..., None], *arguments: object) -> None:
    """Run an action without its output; tracebacks of killed databases fill screens."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    action(*arguments)


def main() -> None:
    """Run the storms and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storages", nargs="+", default=["sqlite", "journal", "postgresql"])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--crashes", type=int, default=2, help="of the PostgreSQL server")
    parser.add_argument("--every", type=int, default=17, help="of how many kills one is the coordinator's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=1800.0, help="seconds for each")
    parser.add_argument("--rivals", action="store_true", help="plain Optuna too")
    parser.add_argument("--folder", type=Path, help="of a storm over PostgreSQL that is done in pieces")
    parser.add_argument("--piece", type=float, default=300.0, help="seconds of each")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    priced_demo.problem()
    rows = []
    if given.folder:
        found = piece_of_storm(given.folder, given.piece, given.kills, given.trials, given.crashes, given.every,
                               given.seed, given.deadline)
        if found is None:
            return
        rows, given.storages = [found], []
        print(json.dumps(found), flush=True)
    for kind in given.storages:
        rows.append(our_storm(kind, given.kills, given.trials, given.crashes, given.every, given.seed, given.deadline))
        print(json.dumps(rows[-1]), flush=True)
        if given.rivals:
            rows.append(optuna_storm(kind, given.kills, given.trials, given.crashes, given.seed, given.deadline))
            print(json.dumps(rows[-1]), flush=True)
    if given.output:
        load = round(os.getloadavg()[0], 1)
        given.output.write_text(json.dumps({"load": load, "cores": os.cpu_count(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
