"""Measuring the sensitivity table on all workers, as much of it as the time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paretopress.evaluators.evaluation import State
from paretopress.evaluators.sensitivity import (
    WORST_LOSS,
    Cell,
    SensitivityTable,
    assemble,
    cells_in_order,
    first_cells,
    integer_choices,
)
from paretopress.search.executors import Executor, Outcome
from paretopress.search.tasks import Substitution
from paretopress.spaces.choices import Choice
from paretopress.spaces.documents import RUN_BYTES, read_document, write_json
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace

SENSITIVITY = "sensitivity.json"   # in a run directory
_POLL_SECONDS = 0.25


@dataclass
class TableRun:
    """A table that is being measured.

    Attributes:
        space: The choices.
        measured: Losses by cell.
        together: The loss of all layers in 8 bits at once, once it is known.
        failures: One line per cell that could not be measured; it counts as the worst.
    """

    space: SearchSpace
    measured: dict[Cell, float] = field(default_factory=dict)
    together: float | None = None
    failures: list[str] = field(default_factory=list)

    def policy_of(self, cell: Cell | None) -> Policy:
        """What is substituted for a cell; None stands for all layers in 8 bits."""
        if cell is None:
            return Policy.of(integer_choices(self.space))
        unit, index = cell
        choice: Choice | None = self.space.options[unit][index]
        return Policy.of({unit: choice} if choice is not None else {})

    def take(self, cell: Cell | None, outcome: Outcome) -> None:
        """Enter a result."""
        found = outcome.evaluation
        loss = found.values["loss"] if found.state is State.COMPLETE else WORST_LOSS
        if found.state is not State.COMPLETE:
            name = "all layers in 8 bits" if cell is None else f"{cell[0]}: {self.space.options[cell[0]][cell[1]]}"
            self.failures.append(f"{name} cannot be measured and counts as the worst: {found.reason}")
        if cell is None:
            self.together = loss
        else:
            self.measured[cell] = loss


def measure_table(
    space: SearchSpace,
    executor: Executor,
    seconds: float | None = None,
    on_cell: Callable[[], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    known: TableRun | None = None,
) -> tuple[SensitivityTable, list[str]]:
    """Measure the loss of every choice, or of those that the time allows; the others are estimated.

    Args:
        space: The choices.
        executor: Does `Substitution` tasks; its evaluations hold `loss`.
        seconds: When to stop; one choice of every family is measured however long it takes. None: never.
        on_cell: Called with every result.
        should_stop: Asked about four times a second; ends the measurement early.
        known: What was measured before; it is not measured again.

    Returns:
        The table, and one line for each cell that failed.
    """
    run = known or TableRun(space)
    wants_together = bool(integer_choices(space)) and run.together is None
    first = set(cells_in_order(space)[: first_cells(space)])
    cells: list[Cell | None] = [*([None] if wants_together else []),
                                *(cell for cell in cells_in_order(space) if cell not in run.measured)]
    needed = sum(cell is None or cell in first for cell in cells)
    measure_cells(run, cells, executor, needed, seconds, on_cell, should_stop)
    return assemble(space, run.measured, run.together), run.failures


def measure_cells(
    run: TableRun,
    cells: Sequence[Cell | None],
    executor: Executor,
    needed: int = 0,
    seconds: float | None = None,
    on_cell: Callable[[], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Measure choices in their order and enter them.

    Args:
        run: The table so far.
        cells: What to measure; None stands for all layers in 8 bits at once.
        executor: Does `Substitution` tasks.
        needed: How many of the first are measured however long it takes.
        seconds: When to stop.
        on_cell: Called with every result.
        should_stop: Asked about four times a second; ends the measurement early.
    """
    start, submitted = time.monotonic(), 0
    while should_stop is None or not should_stop():
        in_time = seconds is None or time.monotonic() - start < seconds
        while submitted < len(cells) and executor.pending < executor.capacity and (in_time or submitted < needed):
            executor.submit(submitted, Substitution(run.policy_of(cells[submitted])))
            submitted += 1
        if not executor.pending:
            break
        outcome = executor.next_result(timeout_seconds=_POLL_SECONDS)
        if outcome is not None:
            run.take(cells[outcome.number], outcome)
            if on_cell:
                on_cell()


def images_of(table: SensitivityTable, space: SearchSpace, samples: int) -> int:
    """Return how many samples were forwarded to measure a table of divergences, `samples` for each cell."""
    cells = sum(len(options) - 1 for options in space.options.values()) - len(table.estimated)
    return (cells + bool(integer_choices(space))) * samples


def write_table(path: Path, key: Mapping[str, str], table: SensitivityTable, space: SearchSpace) -> None:
    """Store a table with what it depends on. Raises `DiskError`."""
    write_json(path, {
        "key": dict(key),
        "losses": {unit: list(row) for unit, row in table.losses.items()},
        "estimated": [list(cell) for cell in sorted(table.estimated)],
        "options": table.to_plain(space),
    })


def read_table(path: Path, key: Mapping[str, str], space: SearchSpace) -> SensitivityTable | None:
    """The table that an earlier start measured, None where there is none of exactly this problem.

    The file may outlive the run it was made for (`--fresh` starts anew in the same folder), and a table that
    cannot be read is measured again.
    """
    if not path.exists():
        return None
    try:
        plain = read_document(path, RUN_BYTES)
    except ConfigError:
        return None
    return table_from_plain(plain, key, space)


def table_from_plain(plain: object, key: Mapping[str, str], space: SearchSpace) -> SensitivityTable | None:
    """The table of a stored document, None where it is damaged or depends on something else."""
    if not isinstance(plain, dict) or plain.get("key") != dict(key):
        return None
    losses, estimated, sizes = plain.get("losses"), plain.get("estimated"), {}
    if not isinstance(losses, dict) or not isinstance(estimated, list):
        return None
    for unit, row in losses.items():
        if not isinstance(row, list) or any(isinstance(x, bool) or not isinstance(x, int | float) for x in row):
            return None
        sizes[unit] = len(row)
    if sizes != {unit: len(options) for unit, options in space.options.items()}:
        return None
    for cell in estimated:
        if not (isinstance(cell, list) and len(cell) == 2 and isinstance(cell[0], str) and isinstance(cell[1], int)):
            return None
    return SensitivityTable(
        {unit: tuple(row) for unit, row in losses.items()}, frozenset((unit, index) for unit, index in estimated)
    )
