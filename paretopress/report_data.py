"""What a report shows, as plain data: read from a run directory, checked, and small enough to stand in one page.

Works on a finished run and on one that is under way: then there are trials, and no verified points yet.
"""

from __future__ import annotations

import base64
import json
import shlex
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.evaluators.primary_metric import ACCURACY, PrimaryMetric
from paretopress.report_choices import ChoiceTable
from paretopress.report_points import budget_lines, point_document
from paretopress.result import FRONT_FILE, Front, Point, Result
from paretopress.spaces.documents import RUN_BYTES, finite, read_document
from paretopress.spaces.errors import ArtifactError, ConfigError
from paretopress.spaces.policy import DENSE, Policy

if TYPE_CHECKING:
    from paretopress.search.records import TrialRecord

SCHEMA = 1
MOST_TRIALS = 1500     # drawn: more of them are an even choice
HISTORY_STEPS = 400    # points of the curve over trials
DIGITS = 6             # of every number: more than a pixel shows
SEARCHED = ("divergence",)   # figures of trials beside the objectives


@dataclass(frozen=True)
class RunContent:
    """What a run directory holds.

    Attributes:
        folder: The directory.
        front: The verified front, None while the search is under way.
        records: The finished trials.
        config: `config` of `run.yaml`, empty where there is none.
        anatomy: `anatomy.json`, empty where there is none.
    """

    folder: Path
    front: Front | None
    records: Sequence[TrialRecord]
    config: Mapping[str, Any]
    anatomy: Mapping[str, Any] = field(default_factory=dict)


def read_content(run: str | Path) -> RunContent:
    """Read a run directory, finished or not.

    Raises:
        ConfigError: There is no such run.
        ArtifactError: A file of it is damaged.
    """
    from paretopress.search.ledger import ANATOMY, DOCUMENT, read_run

    folder = Path(run)
    has_front, has_run = (folder / FRONT_FILE).exists(), (folder / DOCUMENT).exists()
    front = Result.load(folder).front if has_front or not has_run else None   # the error names what is missing
    document, records = read_run(folder) if has_run else ({}, [])
    config = document.get("config")
    return RunContent(
        folder, front, records, config if isinstance(config, Mapping) else {}, _anatomy(folder / ANATOMY),
    )


def _anatomy(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    from paretopress.search.ledger import ANATOMY_SCHEMA

    try:
        plain = read_document(path, RUN_BYTES)
    except ConfigError as error:
        raise ArtifactError(str(error)) from None
    if not isinstance(plain, dict) or plain.get("schema") != ANATOMY_SCHEMA:
        raise ArtifactError(f"{path}: not one of this version (expected schema {ANATOMY_SCHEMA})")
    return plain


def report_data(content: RunContent, *, live: bool = False) -> dict[str, Any]:
    """Return everything that the page shows.

    What is bulky stands deflated in `packed`: the choices of units, the policies as one character per unit, what
    policies make of layers, and what is not offered.

    Args:
        content: The run.
        live: Whether the page asks for newer data while it is open.

    Raises:
        ArtifactError: A file of the run is damaged.
    """
    from paretopress.search.records import TrialState

    front, metric, objectives = content.front, _metric(content), _objectives(content)
    chosen = _shown_trials(content.records)
    table = ChoiceTable.of(content.anatomy)
    points = _points(front)
    policies = [*(point.policy for point in points), *(record.policy for record in chosen)]
    figures = [] if front is None else [point_document(point, front) for point in points]
    names = _axes(figures, chosen, objectives)
    reasons = list(dict.fromkeys(record.reason for record in chosen if record.reason))
    document = {
        "schema": SCHEMA, "live": live, "finished": front is not None,
        "title": content.folder.resolve().name,
        "run": shlex.quote(str(content.folder)),
        "model": _text(content.config.get("model")), "data": _text(content.config.get("data")),
        "metric": {"label": metric.label, "direction": metric.direction, "share": metric.is_share},
        "axes": names, "objectives": list(objectives),
        "devices": _devices(names),
        "time": content.anatomy.get("time"),
        "loss": content.anatomy.get("loss"),
        "budgets": budget_lines(_budgets(content), names, metric, _dense(content, names)),
        "points": [{**one, "row": index} for index, one in enumerate(figures)],
        "trials": {"total": len(content.records), **_trials(chosen, names, reasons, first_row=len(points))},
        "reasons": reasons,
        "counts": {state.value: sum(r.state is state for r in content.records) for state in TrialState},
        "history": _history(content.records, objectives),
        **_front_facts(front),
    }
    return {**document, "packed": _packed(_bulk(content.anatomy, table, policies))}


def _trials(
    records: Sequence[TrialRecord], axes: Mapping[str, str], reasons: Sequence[str], *, first_row: int
) -> dict[str, Any]:
    """Trials by column; `row` is where a trial's policy stands, `reason` which of `reasons` it has, -1 for none."""
    numbers = {reason: number for number, reason in enumerate(reasons)}
    return {
        "number": [record.number for record in records],
        "state": "".join(record.state.value[0] for record in records),
        "feasible": "".join("1" if record.feasible else "0" for record in records),
        "row": [first_row + index for index in range(len(records))],
        "reason": [numbers[record.reason] if record.reason else -1 for record in records],
        "values": {
            name: [_rounded(record.values.get(name)) for record in records] for name in axes
            if any(name in record.values for record in records)
        },
    }


def _metric(content: RunContent) -> PrimaryMetric:
    if content.front is not None:
        return content.front.metric
    plain = content.anatomy.get("metric")
    scores = [{ACCURACY: record.values[ACCURACY]} for record in content.records if ACCURACY in record.values]
    return PrimaryMetric.of_front(scores, plain if isinstance(plain, Mapping) else None)


def _objectives(content: RunContent) -> dict[str, str]:
    """Names and directions: stored, or what the trials and the front have in common."""
    plain = content.anatomy.get("objectives")
    if isinstance(plain, Mapping):
        return {str(name): str(direction) for name, direction in plain.items()}
    metric = _metric(content)
    scored = [record.values for record in content.records if record.state.value == "COMPLETE"]
    names = dict.fromkeys(n for n in (scored[0] if scored else ()) if n not in SEARCHED and all(n in v for v in scored))
    if content.front is not None:
        costs = (name for name in content.front.baseline.predicted if name.partition("@")[0] in ("latency", "size"))
        names |= dict.fromkeys(costs)
    return {ACCURACY: metric.direction, **{name: "min" for name in names if name != ACCURACY}}


def _budgets(content: RunContent) -> list[Mapping[str, Any]]:
    settings = content.config.get("settings")
    plain = content.front.plain.get("budgets") if content.front is not None else (
        settings.get("budgets") if isinstance(settings, Mapping) else None)
    return [budget for budget in plain or [] if isinstance(budget, Mapping)]


def _dense(content: RunContent, names: Mapping[str, str]) -> dict[str, float | None]:
    """The dense model's values: verified, or what its trial found."""
    if content.front is not None:
        return {name: content.front.baseline.value(name) for name in names}
    return dict(next((record.values for record in content.records if record.policy.is_dense), {}))


def _shown_trials(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """All trials, or an even choice of so many, by number."""
    ordered = sorted(records, key=lambda record: record.number)
    step = max(1.0, len(ordered) / MOST_TRIALS)
    return [ordered[int(place * step)] for place in range(min(len(ordered), MOST_TRIALS))]


def _points(front: Front | None) -> list[Point]:
    """The dense model, the comparisons and everything else that was verified, each once."""
    if front is None:
        return []
    found: dict[int, Point] = {}
    for point in (front.baseline, *front.verified, *front.comparisons):
        found.setdefault(point.id, point)
    return list(found.values())


def _axes(
    points: Sequence[Mapping[str, Any]], records: Sequence[TrialRecord], objectives: Mapping[str, str]
) -> dict[str, str]:
    """What can be put on an axis, with its direction: objectives first, then whatever else is known."""
    known = dict.fromkeys(name for point in points for part in ("measured", "predicted") for name in point[part])
    known |= dict.fromkeys(name for record in records for name in record.values)
    names = [name for name in objectives if name in known]
    return {name: objectives.get(name, "min") for name in dict.fromkeys((*names, *known))}


def _devices(names: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(name.partition("@")[2] for name in names if "@" in name))


def _history(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> list[list[float]]:
    """Trials so far and the hypervolume of what they found, where it changed."""
    from paretopress.search.live import ExplorationWatch

    watch = ExplorationWatch(objectives, None, None)
    found: list[list[float]] = []
    every = max(1, len(records) // HISTORY_STEPS)
    front, volume = watch.front, None
    for count, record in enumerate(records, start=1):
        watch.add(record, earlier=True)
        if count % every and count != len(records):
            continue
        if volume is None or watch.front is not front:   # it takes longer than everything else here
            front, volume = watch.front, watch.volume()
        if volume is not None:
            found.append([count, round(volume, DIGITS)])
    return found


def _front_facts(front: Front | None) -> dict[str, Any]:
    """What a finished run says about itself."""
    if front is None:
        return {"facts": [], "headings": [], "notes": [], "proxies": {}, "latency_error": {}, "hypervolume": None}
    from paretopress.tables import facts, headings

    plain = front.plain
    return {
        "facts": facts(front), "headings": headings(front), "notes": [_text(note) for note in plain.get("notes") or []],
        "proxies": plain.get("proxies") or {}, "latency_error": plain.get("latency_error") or {},
        "hypervolume": plain.get("hypervolume"), "space_log10": plain.get("space_log10"),
    }


def _bulk(anatomy: Mapping[str, Any], table: ChoiceTable, policies: Sequence[Policy]) -> dict[str, Any]:
    """Policies by row, layers and what some policies make of them, and what is not offered, each reason said once."""
    rows = [table.row(policy) for policy in policies]
    made = anatomy.get("policies") or {}
    shown = list(dict.fromkeys(policy.hash for policy in policies if policy.hash in made))
    places = {key: place for place, key in enumerate(shown)}
    return {
        **table.to_plain(), "rows": rows, "made": [places.get(policy.hash, -1) for policy in policies],
        "policies": [made[key] for key in shown], "dense": made.get(DENSE.hash),
        "layers": anatomy.get("layers") or [], "groups": anatomy.get("groups") or [],
        "size_only": anatomy.get("size_only") or {},
        "dropped": _dropped(anatomy.get("dropped") or []),
    }


def _dropped(plain: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """What is not offered as `[choices, reason, units]`: what has its reason and its units in common is one row."""
    by_choice: dict[tuple[str, str], list[str]] = {}
    for one in plain:
        by_choice.setdefault((_text(one.get("choice")), _text(one.get("reason"))), []).append(_text(one.get("unit")))
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (choice, reason), units in by_choice.items():
        rows.setdefault((reason, tuple(units)), []).append(choice)
    return [[choices, reason, list(units)] for (reason, units), choices in rows.items()]


def _packed(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _rounded(value: float | None) -> float | None:
    number = finite(value)
    return None if number is None else float(f"{number:.{DIGITS}g}")


def _text(value: object) -> str:
    return "" if value is None else str(value)
