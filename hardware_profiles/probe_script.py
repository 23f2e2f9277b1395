"""Times the networks of a probe on this machine, with nothing but Python, numpy and the runtime.

    python PROBE --runtime onnxruntime|openvino [--threads 1] [--cpus 0,1] -o results.csv

PROBE is the folder or .zip file that `paretopress device probe --export` wrote. Interrupted, the same command
continues. `paretopress device import results.csv -o board.yaml` turns the results into a profile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.hardware_profiles import runtime_onnxruntime, runtime_openvino
from paretopress.hardware_profiles.host import host_info
from paretopress.hardware_profiles.sample_rows import Drawn, append_row, cut_torn_line, row_of, setting_of
from paretopress.hardware_profiles.timing_protocol import Reference, Runtime, runtime_of, time_model

MANIFEST, REFERENCE = "manifest.json", "reference.onnx"
RUNTIMES = {"onnxruntime": runtime_onnxruntime, "openvino": runtime_openvino}
NOISY, TOO_NOISY = 1.25, 4.0


class Probe:
    """The files of a probe, in a folder or in a .zip file."""

    def __init__(self, path: Path) -> None:
        self._folder = path if path.is_dir() else None
        self._archive = None if path.is_dir() else zipfile.ZipFile(path)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        if self._archive is not None:
            return self._archive.read(name)
        assert self._folder is not None
        return (self._folder / name).read_bytes()

    def manifest(self) -> Any:  # noqa: ANN401 - a JSON document
        """Return the list of networks."""
        return json.loads(self.read(MANIFEST))


def main(arguments: list[str] | None = None) -> int:
    """Time the networks that have no row in the results yet."""
    given = _parsed(arguments)
    if given.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(number) for number in given.cpus.split(",")})
    try:
        runtime = runtime_of(RUNTIMES[given.runtime], given.threads)
        version = runtime.version
    except ImportError:
        sys.exit(f"{given.runtime} is not installed here: pip install {given.runtime}")
    probe = Probe(Path(given.probe))
    manifest, output = probe.manifest(), Path(given.output)
    setting = setting_of(runtime, host_info().text)
    done = _done(output, setting)
    print(f"{len(manifest['networks'])} networks, {len(done)} done, {given.runtime} {version}", file=sys.stderr)
    _time(probe, manifest, runtime, setting, done, output)
    print(f"next, where paretopress is: paretopress device import {output} -o board.yaml", file=sys.stderr)
    return 0


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1, help="threads per inference")
    parser.add_argument("--cpus", help="numbers of the processors to run on, such as 4,5")
    parser.add_argument("--probe", default=sys.argv[0], help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", default="results.csv")
    given = parser.parse_args(arguments)
    if given.threads < 1:
        parser.error("--threads is at least 1")
    path = Path(given.probe)
    given.probe = str(path.parent if path.name == "__main__.py" else path)
    return given


def _done(output: Path, setting: dict[str, str]) -> set[str]:
    """Networks that have a row already; refuses rows of another runtime or machine."""
    import csv

    if cut_torn_line(output):
        print(f"{output}: removed a last line that was not finished", file=sys.stderr)
    if not output.exists():
        return set()
    done = set()
    with output.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            for name, value in setting.items():
                if row.get(name) != value:
                    sys.exit(f"{output} holds results with {name} {row.get(name)!r}, this is {value!r}: "
                             f"choose another file with -o")
            done.add(row["network"])
    return done


def _time(
    probe: Probe, manifest: Any, runtime: Runtime, setting: dict[str, str],  # noqa: ANN401 - a JSON document
    done: Iterable[str], output: Path,
) -> None:
    shape = tuple(manifest["reference"]["shape"])
    call = runtime.open(probe.read(REFERENCE), np.zeros(shape, np.float32))
    reference, known, began = Reference(call), set(done), time.monotonic()
    for index, entry in enumerate(manifest["networks"], 1):
        if entry["network"] in known:
            continue
        drawn = Drawn(entry["prior"], entry["seed"], entry["mode"], entry["network"])
        measured = time_model(probe.read(entry["file"]), entry["shape"], runtime, reference, manifest["budget_ms"])
        append_row(output, row_of(setting, drawn, measured, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())))
        if index % 20 == 0:
            print(f"{index} networks, {time.monotonic() - began:.0f} s", file=sys.stderr)
        if index == 20 and reference.noise > TOO_NOISY:
            sys.exit(f"this machine is too busy to measure: a fixed network takes {reference.noise:.1f} times its "
                     f"fastest time; stop other work, delete {output} and start again")
    if reference.noise > NOISY:
        print(f"this machine is busy (a fixed network takes {reference.noise:.2f} times its fastest time): the "
              f"figures are less certain", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
