"""Files of raw samples: checked strictly, and turned back into timed networks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretopress.hardware_profiles.networks import MODES, Network
from paretopress.hardware_profiles.priors import Prior
from paretopress.hardware_profiles.sample_rows import COLUMNS, FORMAT, SETTING, Drawn
from paretopress.hardware_profiles.timing import Timed, timed_of
from paretopress.hardware_profiles.timing_protocol import Measurement, Node
from paretopress.spaces.documents import disk_error
from paretopress.spaces.errors import ProfileError

LONGEST_US = 1e9
_POSITIVE = ("wall_us", "fastest_us", "median_us", "slowness")
_NOT_NEGATIVE = ("seconds", "load")


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: which network, what it took, and when (ISO 8601, UTC)."""

    drawn: Drawn
    measured: Measurement
    date: str


@dataclass(frozen=True, slots=True)
class SampleFile:
    """The content of a file of raw samples.

    Attributes:
        setting: What all rows have in common, by `sample_rows.SETTING`; empty for a file without rows.
        samples: Its rows.
    """

    setting: Mapping[str, str]
    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        """What measuring these samples took."""
        return sum(sample.measured.seconds for sample in self.samples)

    @property
    def slowness(self) -> float:
        """Median slowness of the machine while they were measured, 1 where it was quiet."""
        ordered = sorted(sample.measured.slowness for sample in self.samples)
        return ordered[len(ordered) // 2] if ordered else 1.0


def network_hash(network: Network) -> str:
    """First 16 hexadecimal digits of a SHA-256.

    Of the serialised model; of the kernels of a model's variant, whose bytes hold what it was calibrated to.
    """
    content = network.model if network.named else repr((network.view.kernels, network.view.boundaries)).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def read_samples(path: Path) -> SampleFile:
    """Read a file of raw samples.

    Raises:
        ProfileError: With the line: another heading, a value that is no number, is negative or not finite, times
            that contradict each other (as where units are mixed), a network twice, or rows of several settings.
        DiskError: The file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ProfileError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise disk_error(path, error) from None
    if text and not text.endswith("\n"):
        raise ProfileError(f"{path}: the last line is cut off; measure on with the same command, or remove the line")
    return parse_samples(text, str(path))


def parse_samples(text: str, source: str) -> SampleFile:
    """Read the text of a file of raw samples; see `read_samples`."""
    reader = csv.reader(io.StringIO(text), strict=True)
    samples: list[Sample] = []
    setting: dict[str, str] = {}
    lines: dict[str, int] = {}
    try:
        heading = next(reader, list(COLUMNS))
        if tuple(heading) != COLUMNS:
            raise ProfileError(f"{source}:1: not raw samples of paretopress: the heading must be {','.join(COLUMNS)}")
        for fields in reader:
            where = f"{source}:{reader.line_num}"
            if len(fields) != len(COLUMNS):
                raise ProfileError(f"{where}: {len(fields)} values, expected {len(COLUMNS)}")
            row = dict(zip(COLUMNS, fields, strict=True))
            setting = setting or _setting(row, where)
            _same_setting(setting, row, where)
            sample = _sample(row, where)
            known = lines.setdefault(sample.drawn.network, reader.line_num)
            if known != reader.line_num:
                raise ProfileError(f"{where}: network {sample.drawn.network} is in line {known} already")
            samples.append(sample)
    except csv.Error as error:
        raise ProfileError(f"{source}:{reader.line_num}: {error}") from None
    return SampleFile(setting, tuple(samples))


def _setting(row: Mapping[str, str], where: str) -> dict[str, str]:
    if row["format"] != FORMAT:
        raise ProfileError(f"{where}: format {row['format']!r} (allowed: {FORMAT})")
    if not row["threads"].isascii() or not row["threads"].isdigit() or int(row["threads"]) < 1:
        raise ProfileError(f"{where}: threads {row['threads']!r} (allowed: a whole number, at least 1)")
    for name in ("runtime", "version", "host"):
        if not row[name].strip():
            raise ProfileError(f"{where}: {name} is empty")
    return {name: row[name] for name in SETTING}


def _same_setting(setting: Mapping[str, str], row: Mapping[str, str], where: str) -> None:
    for name in SETTING:
        if row[name] != setting[name]:
            raise ProfileError(f"{where}: {name} {row[name]!r}, but {setting[name]!r} in the lines before")


def _sample(row: Mapping[str, str], where: str) -> Sample:
    numbers = {name: _number(row[name], name, where, above_zero=True) for name in _POSITIVE}
    numbers |= {name: _number(row[name], name, where, above_zero=False) for name in _NOT_NEGATIVE}
    calls, seed = (_whole(row[name], name, where) for name in ("calls", "seed"))
    if row["mode"] not in MODES:
        raise ProfileError(f"{where}: mode {row['mode']!r} (allowed: {', '.join(MODES)})")
    network = row["network"]
    if len(network) != 16 or not set(network) <= set("0123456789abcdef"):
        raise ProfileError(f"{where}: network {network!r} (allowed: 16 hexadecimal digits)")
    _check_times(numbers, where)
    measured = Measurement(
        numbers["wall_us"], numbers["fastest_us"], numbers["median_us"], calls, numbers["slowness"], numbers["load"],
        numbers["seconds"], _nodes(row["nodes"], numbers["median_us"], where),
    )
    return Sample(Drawn(row["prior"], seed, row["mode"], network), measured, row["date"])


def _check_times(numbers: Mapping[str, float], where: str) -> None:
    """The three times of one network belong together; milliseconds beside microseconds do not."""
    fastest, median, wall = (numbers[name] for name in ("fastest_us", "median_us", "wall_us"))
    if fastest > median:
        raise ProfileError(f"{where}: fastest_us {fastest:g} is above median_us {median:g}")
    if not fastest / 5 <= wall <= median * 1.2:
        raise ProfileError(
            f"{where}: wall_us {wall:g} does not fit fastest_us {fastest:g} and median_us {median:g}: "
            f"all times are microseconds"
        )
    if median > LONGEST_US:
        raise ProfileError(f"{where}: median_us {median:g} is more than a quarter of an hour a call")


def _number(text: str, name: str, where: str, *, above_zero: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise ProfileError(f"{where}: {name} {text!r} (allowed: a finite number {'above' if above_zero else 'from'} 0)")
    return value


def _whole(text: str, name: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ProfileError(f"{where}: {name} {text!r} (allowed: a whole number from 0)")
    return int(text)


def _nodes(text: str, median: float, where: str) -> tuple[Node, ...]:
    try:
        plain: Any = json.loads(text)
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, list) or not all(map(_is_node, plain)):
        raise ProfileError(f"{where}: nodes must be a JSON list of [name, operator, microseconds from 0]")
    longest = max((node[2] for node in plain), default=0.0)
    if longest > 20 * median:
        raise ProfileError(
            f"{where}: a node of {longest:g} us in a network of {median:g} us: all times are microseconds"
        )
    return tuple(Node(name, operator, float(spent)) for name, operator, spent in plain)


def _is_node(item: object) -> bool:
    if not isinstance(item, list) or len(item) != 3:
        return False
    name, operator, spent = item
    texts = isinstance(name, str) and isinstance(operator, str)
    return texts and type(spent) in (int, float) and math.isfinite(spent) and spent >= 0


def timed_networks(
    samples: Iterable[Sample], priors: Mapping[str, Prior], complete: bool, source: str
) -> tuple[Timed, ...]:
    """Draw the networks of samples again and assign their times.

    Args:
        samples: Rows of a file.
        priors: What networks are drawn from, by name.
        complete: Whether the runtime's profiles have every executed node.
        source: Name of the file, for messages.

    Raises:
        ProfileError: An unknown prior, or a network that is not the one that was timed.
    """
    return tuple(
        timed_of(network_of(sample.drawn, priors, source), sample.measured, complete) for sample in samples
    )


def network_of(drawn: Drawn, priors: Mapping[str, Prior], source: str) -> Network:
    """Draw the network of a sample again.

    Raises:
        ProfileError: An unknown prior, or a network that is not the one that was timed.
    """
    prior = priors.get(drawn.prior)
    if prior is None:
        raise ProfileError(
            f"{source}: network {drawn.network} was drawn from {drawn.prior!r} (known here: {', '.join(priors)}); "
            f"give the same --model, or measure anew with --fresh"
        )
    network = prior.network(drawn.seed, drawn.mode)
    found = network_hash(network)
    if found != drawn.network:
        raise ProfileError(
            f"{source}: unknown network {drawn.network}: seed {drawn.seed} ({drawn.mode}) of {drawn.prior!r} is "
            f"{found} in this version of paretopress; measure anew"
        )
    return network
