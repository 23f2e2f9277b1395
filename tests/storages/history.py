"""Checks a finished search offline, from what evaluations said, what the storage holds and what lies in the run."""

import time
from collections import Counter
from pathlib import Path

from paretopress.search.ledger import read_run
from paretopress.search.outbox import read_committed
from paretopress.search.pareto import non_dominated
from paretopress.search.records import TrialState
from paretopress.search.storages.result_text import read_result
from paretopress.search.storages.trial_store import FAILURES_ALLOWED, LOSSES_ALLOWED, Status
from paretopress.spaces.documents import canonical_json
from paretopress.spaces.errors import ParetopressError


def front_of(records, objectives):
    """The front as bytes: a function of numbers, policies and values alone."""
    import numpy as np

    complete = [record for record in records if record.state is TrialState.COMPLETE]
    signs = [1.0 if way == "min" else -1.0 for way in objectives.values()]
    costs = np.array([[sign * record.values[name] for sign, name in zip(signs, objectives, strict=True)]
                      for record in complete]).reshape(len(complete), len(signs))
    members = [record for record, kept in zip(complete, non_dominated(costs), strict=True) if kept]
    plain = sorted([record.policy.hash, dict(record.values)] for record in members)
    return canonical_json(plain).encode()


def finished_in(history):
    """What evaluations said they finished: values by policy hash, and how often each was finished."""
    said, count = {}, Counter()
    for line in Path(history).read_text().splitlines():
        word, *rest = line.split(" ")
        if word == "finished":
            said.setdefault(rest[0], set()).add(tuple(rest[1:]))
            count[rest[0]] += 1
    return said, count


def verify_history(run, store, objectives, trials, mirror=None):
    """Return everything that breaks the promises, one line each; nothing where all hold.

    Args:
        run: The run directory; its file `history` has what evaluations finished.
        store: The storage.
        objectives: Names and directions.
        trials: How many trials the search had to make.
        mirror: The Optuna study's trials.
    """
    run, broken = Path(run), []
    _, records = read_run(run)
    rows = {row.number: row for row in store.trials()}
    said, _ = finished_in(run / "history")
    by_hash = {record.policy.hash: record for record in records}
    for policy_hash, values in said.items():   # I1
        record = by_hash.get(policy_hash)
        if record is None or record.state is not TrialState.COMPLETE:
            broken.append(f"I1 lost: {policy_hash} was finished, and is {record and record.state}")
        elif values != {tuple(repr(record.values[name]) for name in objectives)}:
            broken.append(f"I1 values of {policy_hash}: {values} became {dict(record.values)}")
    for kind, items in (("number", [one.number for one in records]), ("policy", [one.policy.hash for one in records])):
        broken += [f"I2 {kind} {one} {count} times" for one, count in Counter(items).items() if count > 1]
    broken += [f"I3 trial {row.number} is {row.status}" for row in rows.values() if row.status is not Status.DONE]
    broken += [f"I4 trial {row.number}: {row.failures} failures, {row.losses} losses" for row in rows.values()
               if row.failures > FAILURES_ALLOWED + 1 or row.losses > LOSSES_ALLOWED]
    complete = sum(record.state is TrialState.COMPLETE for record in records)
    if complete != trials:
        broken.append(f"I5 {complete} complete of {trials}")
    broken += _artefacts(run, rows)
    if [one.number for one in sorted(records, key=lambda one: one.number)] != list(range(trials)):
        broken.append("I7 numbers have holes")
    if sorted(rows) != list(range(trials)):
        broken.append("I7 numbers of the storage have holes")
    for record in records:
        row = rows.get(record.number)
        if row is None or row.policy_hash != record.policy.hash:
            broken.append(f"the storage has another trial {record.number}")
        elif row.result is not None and record.values != read_result(row.result, "row")[0].values:
            broken.append(f"the storage has other values of trial {record.number}")
    if (run / "front.json").read_bytes() != front_of(records, objectives):
        broken.append("I8 the front is not the records' front")
    if mirror is not None and [one.user_attrs["number"] for one in mirror] != [one.number for one in records]:
        broken.append(f"the mirror has {len(mirror)} of {len(records)} trials, or others")
    return broken


def _artefacts(run, rows):
    """I6: what is referenced is whole, and nothing else is there."""
    broken = [f"I6 {entry} is left in the outbox" for entry in (run / "outbox").iterdir()
              if not (entry.name.endswith(".tmp") and time.time() - entry.stat().st_mtime < 3600)
              and (entry / "result.json").exists()]
    referenced = {f"{row.number}-{row.token}" for row in rows.values() if row.token > 0}
    for folder in (run / "trials").iterdir():
        try:
            committed = read_committed(folder)
        except ParetopressError as error:
            broken.append(f"I6 {error}")
            continue
        if folder.name not in referenced and not committed.result.failed:
            broken.append(f"I6 {folder.name} belongs to no trial")
        if folder.name in referenced and rows[committed.result.number].result != committed.result.text:
            broken.append(f"I6 {folder.name} is not what the storage has")
    missing = referenced - {folder.name for folder in (run / "trials").iterdir()}
    given_up = {f"{row.number}-{row.token}" for row in rows.values() if row.losses >= LOSSES_ALLOWED}
    return broken + [f"I6 {name} is missing" for name in sorted(missing - given_up)]


def summary(run, store):
    """Figures of a search that was disturbed."""
    _, records = read_run(run)
    _, count = finished_in(Path(run) / "history")
    rows = store.trials()
    return {
        "complete": sum(record.state is TrialState.COMPLETE for record in records),
        "evaluations": sum(count.values()),
        "evaluated twice or more": sum(number > 1 for number in count.values()),
        "leases lapsed": sum(row.losses for row in rows),
        "failed attempts": sum(row.failures for row in rows),
        "left running": sum(row.status is Status.RUNNING for row in rows),
    }
