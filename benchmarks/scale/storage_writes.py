"""What storages cost per trial: the write of the mirrored Optuna study, and the steps of the trial protocol.

    python benchmarks/scale/storage_writes.py --parameters 150 --trials 60

A mirrored trial is one finished trial with all its parameters, objectives and constraints in Optuna's own tables
(`search/storages/optuna_mirror.py`). The protocol's steps are those of one worker: propose, claim, commit to the
outbox, tell, file. Every storage syncs what it writes; PostgreSQL is a server of this machine with `fsync` on.
"""

import argparse
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests" / "storages"), str(ROOT / "tests" / "search")]

from paretopress.evaluators.evaluation import Evaluation, State  # noqa: E402
from paretopress.search.option_space import OptionSpace  # noqa: E402
from paretopress.search.outbox import Outbox  # noqa: E402
from paretopress.search.records import TrialRecord  # noqa: E402
from paretopress.search.storage_executor import proposal_of  # noqa: E402
from paretopress.search.storages.opening import open_store  # noqa: E402
from paretopress.search.storages.optuna_mirror import OptunaMirror  # noqa: E402
from paretopress.search.storages.result_text import result_text  # noqa: E402
from paretopress.search.storages.storage_url import StorageUrl  # noqa: E402
from paretopress.search.storages.trial_store import Study  # noqa: E402
from paretopress.spaces.choices import Weights  # noqa: E402
from paretopress.spaces.policy import Policy  # noqa: E402

OBJECTIVES = {"accuracy": "max", "latency": "min", "size": "min"}
ALLOWED_MS = {"journal": 5.0, "sqlite": 25.0, "postgresql": 25.0}
WARMING = 5   # trials that are written before the clock counts
Times = dict[str, dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=150)
    parser.add_argument("--trials", type=int, default=60)
    given = parser.parse_args(arguments)
    print("\n".join(lines(storage_writes(given.parameters, given.trials))))
    print(f"load {os.getloadavg()[0]:.1f}")


def storage_writes(parameters: int, trials: int) -> Times:
    """Per storage the median and 90th percentile of a mirrored write, and the protocol's median, in milliseconds."""
    found = {}
    for kind, allowed in ALLOWED_MS.items():
        with tempfile.TemporaryDirectory(prefix="writes") as folder, address(kind) as text:
            url = StorageUrl.parse(text, Path(folder))
            mirrored = mirror_times(url, parameters, trials)
            steps = protocol_times(url, Path(folder), parameters, trials)
            found[kind] = {
                "mirrored, median": statistics.median(mirrored),
                "mirrored, 90th percentile": statistics.quantiles(mirrored, n=10)[-1],
                "allowed": allowed, "protocol, median": statistics.median(steps),
            }
    return found


@contextlib.contextmanager
def address(kind: str) -> Iterator[str]:
    """Of an empty storage."""
    if kind != "postgresql":
        yield kind
        return
    from postgresql_server import PostgresqlServer

    server = PostgresqlServer(durable=True)
    try:
        yield server.create("writes")
    finally:
        server.close()


def option_space(parameters: int) -> OptionSpace:
    return OptionSpace.of({f"layer{number}/weights": (None, Weights(8), Weights(4), Weights(2))
                           for number in range(parameters)})


def random_records(space: OptionSpace, count: int) -> list[TrialRecord]:
    """Finished trials with three objectives, three constraints and a choice for most of the parameters."""
    source = random.Random(4)
    records = []
    for number in range(count):
        policy = Policy.of({unit: choice for unit, choices in zip(space.units, space.options, strict=True)
                            if (choice := source.choice(choices)) is not None})
        values = {name: source.random() for name in (*OBJECTIVES, "divergence")}
        constraints = {name: source.random() - 0.5 for name in ("drop", "latency", "size")}
        records.append(TrialRecord.of(number, policy, Evaluation(State.COMPLETE, values, constraints), source.random()))
    return records


def mirror_times(url: StorageUrl, parameters: int, trials: int) -> list[float]:
    space = option_space(parameters)
    records = random_records(space, trials + WARMING)
    mirror = OptunaMirror(url, "mirrored", OBJECTIVES, space)
    mirror.catch_up(records[:WARMING])
    ends = range(WARMING + 1, len(records) + 1)
    return [milliseconds(lambda end=end: mirror.catch_up(records[:end])) for end in ends]


def protocol_times(url: StorageUrl, folder: Path, parameters: int, trials: int) -> list[float]:
    store, outbox, space = open_store(url, "protocol"), Outbox(folder), option_space(parameters)
    store.join(Study("protocol", {"seed": "0"}, OBJECTIVES))
    term = store.lead("benchmark", 600.0)
    assert term is not None
    store.announce("worker", 1, 600.0)

    def one(record: TrialRecord) -> None:
        store.enqueue(term, [proposal_of(record.number, record.policy)])
        claim = store.claim("worker", 600.0)
        assert claim is not None
        committed = outbox.commit(claim, result_text(record.evaluation(), record.seconds), failed=False)
        store.tell(committed.result)
        outbox.file(committed)

    times = [milliseconds(lambda record=record: one(record)) for record in random_records(space, trials + WARMING)]
    store.close()
    return times[WARMING:]


def milliseconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return 1000.0 * (time.perf_counter() - begin)


def lines(found: Times) -> list[str]:
    return [f"{kind}: mirrored write {row['mirrored, median']:.1f} ms (90% within "
            f"{row['mirrored, 90th percentile']:.1f}; allowed {row['allowed']:g}), "
            f"propose, claim, commit, tell and file {row['protocol, median']:.1f} ms" for kind, row in found.items()]


if __name__ == "__main__":
    main()
