"""Every channel group of the zoo: removed at random and compared with the dense graph without it.

    python benchmarks/spaces/parity.py [MODEL ...] [--ratios 0.25 0.5 0.75] [--out FOLDER]

Prints a row per model and the reasons of what is frozen or fails; writes `parity.txt` and `parity.json`.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[2] / "tests"))

from zoo import parity
from zoo.registry import ZOO


def measure(name: str, ratios: list[float]) -> dict[str, object]:
    """All checks of one model."""
    begin = time.monotonic()
    try:
        item = parity.subject(name)
    except Exception as error:  # noqa: BLE001 - a row says so
        return {"model": name, "error": f"{type(error).__name__}: {error}"}
    frozen = dict(parity.frozen_reasons(item.program))
    verdicts = [*parity.single_checks(item, ratios), *parity.joint_checks(item, ratios)]
    tested = [one for one in verdicts if one.groups]
    return {
        "model": name,
        "free": len(item.free),
        "frozen": frozen,
        "groups tested": len({one.groups for one in tested if len(one.groups) == 1}),
        "removals": len(tested),
        "failures": [[list(one.groups), one.ratio, one.problem] for one in tested if one.problem],
        "prunable share": parity.prunable_share(item.model, item.program),
        "seconds": round(time.monotonic() - begin, 1),
    }


def lines(row: dict[str, object]) -> list[str]:
    """A row as text, with what is frozen and what fails below it."""
    if "error" in row:
        return [f"{row['model']:<20} {row['error']}"]
    head = f"{row['model']:<20} {row['free']:>5} {len(row['frozen']):>6} {row['prunable share']:>7.1%}"
    head += f" {row['groups tested']:>6} {row['removals']:>8} {len(row['failures']):>8} {row['seconds']:>7}"
    reasons = collections.Counter(row["frozen"].values())
    output = "it reaches the model's output"
    text = [head, *(f"    frozen {count} x {reason}" for reason, count in reasons.most_common() if reason != output)]
    problems = collections.defaultdict(list)
    for groups, _, problem in row["failures"]:
        problems[problem if len(problem) < 60 else problem[:200]].append(groups[0])
    text += [f"    FAILS {len(names)} x {problem} ({names[0]})" for problem, names in list(problems.items())[:6]]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(ZOO))
    parser.add_argument("--ratios", nargs="*", type=float, default=list(parity.RATIOS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    header = f"{'model':<20}  free frozen   bytes groups removals failures seconds"
    rows, text = [], [header]
    print(header)
    for name in options.models:
        rows.append(measure(name, options.ratios))
        parity.subject.cache_clear()
        text += lines(rows[-1])
        print("\n".join(lines(rows[-1])), flush=True)
    good = [row for row in rows if "error" not in row]
    groups, removals = (sum(row[key] for row in good) for key in ("groups tested", "removals"))
    failures = sum(len(row["failures"]) for row in good) + len(rows) - len(good)
    text.append(f"{len(rows)} models, {groups} groups tested in {removals} removals, {failures} failures")
    print(text[-1])
    (options.out / "parity.txt").write_text("\n".join(text) + "\n")
    (options.out / "parity.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
