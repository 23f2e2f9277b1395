"""Fuzz every parser of files from outside: documents with places changed, and bytes flipped, cut and put in.

    python benchmarks/faults/fuzz.py --examples 50000 --output benchmarks/faults/fuzz.json

An example is a pure function of (target, number). Whatever is not one line of the project's own type, or takes longer
than a second of the process's own time, is counted and shown with its number; the exit code is then 1.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import material

LIMIT_SECONDS = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=50_000, help="in all, shared by the targets")
    parser.add_argument("--first", type=int, default=0, help="number of the first example of each target")
    parser.add_argument("--targets", nargs="*", help="by default all")
    parser.add_argument("--run", type=Path, help="folder of a finished small run, made where it is missing")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    parsers = material.parsers()
    targets = given.targets or list(parsers.TARGETS)
    with tempfile.TemporaryDirectory() as temporary:
        base = given.run or Path(temporary) / "material"
        base.mkdir(parents=True, exist_ok=True)
        run = material.small_run(base)
        seed_folder = Path(temporary) / "seeds"
        seed_folder.mkdir()
        documents, content = parsers.seeds(run, seed_folder)
        rows = [
            fuzz_target(parsers, target, documents, content, Path(temporary), given.first,
                        given.examples // len(targets))
            for target in targets
        ]
    result = {
        "examples": sum(row["examples"] for row in rows), "targets": rows,
        "load_average": os.getloadavg(), "python": platform.python_version(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n")
    failures = sum(len(row["failures"]) for row in rows)
    slowest = max(row["slowest_s"] for row in rows)
    print(f"{result['examples']} examples, {failures} failures, slowest {slowest:.2f} s, "
          f"peak {result['peak_memory_mb']} MB, load {os.getloadavg()[0]:.1f}")
    return 1 if failures else 0


def fuzz_target(parsers, target, documents, content, temporary, first, count):  # noqa: ANN001, ANN201
    folder = temporary / target
    if target == "manifest":   # the other files of the artefact are there, so that the folder is checked too
        shutil.copytree(temporary / "seeds" / "artefact", folder)
    folder.mkdir(exist_ok=True)
    accepted, slowest, failures = 0, 0.0, []
    with contextlib.suppress(parsers.Refused):   # imports what the parser needs
        parsers.TARGETS[target](content[target], folder)
    begin = time.perf_counter()
    for number in range(first, first + count):
        start = time.process_time()   # not what others on the machine take
        try:
            accepted += parsers.fuzzed(target, documents, content, number, folder)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(
                f"{number}: {type(error).__name__}: {str(error)[:160]} ({Path(where.filename).name}:{where.lineno})")
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        if seconds > LIMIT_SECONDS:
            failures.append(f"{number}: took {seconds:.1f} s")
    row = {
        "target": target, "examples": count, "accepted": accepted, "slowest_s": round(slowest, 3),
        "seconds": round(time.perf_counter() - begin, 1), "failures": failures,
    }
    print(f"{target:15} {count:6} examples, {accepted:6} accepted, slowest {slowest:.3f} s, "
          f"{row['seconds']:.0f} s, {len(failures)} failures", flush=True)
    for failure in failures[:12]:
        print(f"    {failure}", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
