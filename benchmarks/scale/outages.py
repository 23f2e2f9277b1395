"""A PostgreSQL server that goes away during a search: what is lost, who dies, and how long the outbox takes to drain.

    python benchmarks/scale/outages.py --output benchmarks/scale/outages.json

The server's processes end at once while two workers evaluate and the coordinator proposes, so that asking and telling
both meet the outage. Workers have to be there still when the search has ended.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests" / "storages"), str(ROOT / "tests" / "search")]

import shared_driver as driver  # noqa: E402
from history import verify_history  # noqa: E402
from postgresql_server import PostgresqlServer  # noqa: E402
from test_fault_points import Logged  # noqa: E402

WORKERS = 2
TRIALS = 24
EVALUATION = 0.2   # seconds: a trial is under way whenever the server goes
ALLOWED = 10.0     # seconds until what waited is told
LONGEST = 120.0    # seconds until what should happen has to


def outage(server: PostgresqlServer, seconds: float) -> dict[str, Any]:
    """One search, one outage in its middle; returns figures."""
    url = server.create(f"outage{seconds}".replace(".", "_"))
    with tempfile.TemporaryDirectory(prefix="outage") as folder:
        run = Path(folder)
        (run / "history").touch()
        evaluator = Logged(run, EVALUATION)
        lead = driver.forked(driver.coordinate, url, run, TRIALS, "random", local=False, lease=2.0, timeout=600.0)
        workers = [driver.forked(driver.work, url, run, evaluator, idle=1e9, lease=2.0, timeout=600.0)
                   for _ in range(WORKERS)]
        wait(lambda: finished(run) >= TRIALS // 3)
        server.crash()
        time.sleep(seconds)
        waiting = committed(run)
        server.start()
        begin = time.monotonic()
        wait(lambda: not waiting & committed(run))
        drained = time.monotonic() - begin
        codes = [driver.ended(lead)]
        wait(lambda: not committed(run))
        for pid in workers:
            os.kill(pid, signal.SIGTERM)   # whoever is gone already has not survived
        codes += [driver.ended(pid) for pid in workers]
        store = driver.store_of(url, run)
        broken = verify_history(run, store, driver.OBJECTIVES, TRIALS)
        store.close()
        return {"seconds": seconds, "results that waited": len(waiting), "drained after s": round(drained, 2),
                "allowed s": ALLOWED,
                "processes that survived": codes.count(0) + codes.count(128 + signal.SIGTERM), "of": len(codes),
                "broken promises": len(broken), "evaluations": finished(run), "trials": TRIALS}


def finished(run: Path) -> int:
    """How many evaluations have ended."""
    return (run / "history").read_bytes().count(b"finished")


def committed(run: Path) -> set[str]:
    """Results that the storage has not been told."""
    return {folder.name for folder in (run / "outbox").glob("*-*") if (folder / "result.json").exists()}


def wait(condition: Any) -> None:  # noqa: ANN401 - a function without arguments
    """Wait until a condition holds. Raises `TimeoutError`."""
    end = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the search does not go on")
        time.sleep(0.01)


def main() -> None:
    """Run the outages and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.5, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    server, rows = PostgresqlServer(durable=True), []
    try:
        for seconds in given.seconds:
            rows.append(outage(server, seconds))
            print(json.dumps(rows[-1]), flush=True)
    finally:
        server.close()
    if given.output:
        load = round(os.getloadavg()[0], 1)
        given.output.write_text(json.dumps({"load": load, "cores": os.cpu_count(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
