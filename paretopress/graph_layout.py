"""Layout of a graph from top to bottom: ranks by the longest path, lanes for what runs beside, columns side by side.

Layered drawing after Sugiyama, Tagawa and Toda ("Methods for Visual Understanding of Hierarchical System
Structures", IEEE SMC 1981). Positions within a rank are the least-squares answer to "as near to the neighbours as
the widths allow", by pooling adjacent violators.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP, RANK_GAP, COLUMN_GAP = 16.0, 18.0, 56.0
LANE, PORT = 12.0, 18.0   # width of a lane; side of the circle where an edge goes on in the next column
SWEEPS = 10
SHORTEST, MOST_CROSSING = 1100.0, 2   # height of a column; edges that may go on in the next one

Edge = tuple[str, str]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """What is placed: a name with a width and a height."""

    name: str
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is.

    Attributes:
        places: Centre and top of every box by name.
        routes: Edges that are drawn, each with its points from top to bottom; pairs of points are straight.
        ports: Where edges go on in another column: centre and top with the name of the edge's source.
        width: Of the whole.
        height: Of the whole.
    """

    places: Mapping[str, Point]
    routes: tuple[tuple[Edge, tuple[Point, ...]], ...]
    ports: tuple[tuple[str, Point], ...]
    width: float
    height: float


def lay_out(boxes: Sequence[Box], edges: Sequence[Edge]) -> Layout:
    """Place boxes and route edges; boxes come in an order in which every edge points forward."""
    ranks = _ranks(boxes, edges)
    by_name = {box.name: box for box in boxes}
    places: dict[str, Point] = {}
    routes: list[tuple[Edge, tuple[Point, ...]]] = []
    ports: list[tuple[str, Point]] = []
    left = height = 0.0
    cuts = _cuts(by_name, edges, ranks)
    for first, last in zip((0, *cuts), (*cuts, max(ranks.values(), default=-1) + 1), strict=True):
        column = _Column(by_name, edges, ranks, first, last)
        column.place()
        for name, (x, y) in column.places().items():
            if name in by_name:
                places[name] = (x + left, y)
            else:
                ports.append((column.sources[name], (x + left, y)))
        routes += [(edge, tuple((x + left, y) for x, y in points)) for edge, points in column.routes()]
        left, height = left + column.width + COLUMN_GAP, max(height, column.height)
    return Layout(places, tuple(routes), tuple(ports), max(0.0, left - COLUMN_GAP), height)


def _ranks(boxes: Sequence[Box], edges: Sequence[Edge]) -> dict[str, int]:
    """The longest path to every box; what only starts something stands right above where it is needed."""
    sources: dict[str, list[str]] = {box.name: [] for box in boxes}
    readers: dict[str, list[str]] = {box.name: [] for box in boxes}
    for source, target in edges:
        sources[target].append(source)
        readers[source].append(target)
    ranks: dict[str, int] = {}
    for box in boxes:
        ranks[box.name] = max((ranks[name] + 1 for name in sources[box.name]), default=0)
    for box in reversed(boxes):
        if len(sources[box.name]) < len(readers[box.name]):
            ranks[box.name] = min(ranks[name] for name in readers[box.name]) - 1
    return ranks


def _cuts(by_name: Mapping[str, Box], edges: Sequence[Edge], ranks: Mapping[str, int]) -> tuple[int, ...]:
    """The ranks at which new columns start: where few edges cross and the columns come out about as tall as wide."""
    count = max(ranks.values(), default=-1) + 1
    heights = [0.0] * count
    for name, rank in ranks.items():
        heights[rank] = max(heights[rank], by_name[name].height + RANK_GAP)
    widest = max((box.width for box in by_name.values()), default=1.0)
    goal = max(SHORTEST, math.sqrt(sum(heights) * 1.5 * widest))
    crossing: list[set[str]] = [set() for _ in range(count)]
    for source, target in edges:
        for rank in range(ranks[source] + 1, ranks[target] + 1):
            crossing[rank].add(source)
    cuts: list[int] = []
    best, tall = 0, 0.0
    for rank in range(1, count):
        tall += heights[rank - 1]
        near = tall > 0.75 * goal and len(crossing[rank]) <= MOST_CROSSING
        if near and (not best or len(crossing[rank]) < len(crossing[best])):
            best = rank
        if best and tall > 1.15 * goal:
            cuts.append(best)
            tall, best = sum(heights[best:rank]), 0
    if best and tall + heights[-1] > 1.15 * goal:
        cuts.append(best)
    return tuple(cuts)


class _Column:
    """The ranks from `first` to before `last`, placed on their own."""

    def __init__(
        self, by_name: Mapping[str, Box], edges: Iterable[Edge], ranks: Mapping[str, int], first: int, last: int
    ) -> None:
        self.boxes: dict[str, Box] = {}
        self.sources: dict[str, str] = {}
        self.chains: list[tuple[Edge, list[str]]] = []
        self.rows: list[list[str]] = [[] for _ in range(last - first + 2)]   # with a row of ports at either end
        self.lanes: set[str] = set()
        for name, rank in ranks.items():
            if first <= rank < last:
                self._add(Box(name, by_name[name].width, by_name[name].height), rank - first + 1)
        for source, target in edges:
            start, end = ranks[source], ranks[target]
            if start < first <= end < last:
                self._chain((source, target), self._port(source, 0), 0, target, end - first + 1)
            elif first <= start < last <= end:
                row = len(self.rows) - 1
                self._chain((source, target), source, start - first + 1, self._port(source, row), row)
            elif first <= start < last:
                self._chain((source, target), source, start - first + 1, target, end - first + 1)
            elif start < first and end >= last:
                row = len(self.rows) - 1
                self._chain((source, target), self._port(source, 0), 0, self._port(source, row), row)
        self.above: dict[str, list[str]] = {name: [] for name in self.boxes}
        self.below: dict[str, list[str]] = {name: [] for name in self.boxes}
        for _, chain in self.chains:
            for one, other in pairwise(chain):
                if one not in self.above[other]:
                    self.above[other].append(one)
                    self.below[one].append(other)
        self.x: dict[str, float] = {}

    def _add(self, box: Box, row: int) -> None:
        self.boxes[box.name] = box
        self.rows[row].append(box.name)

    def _port(self, source: str, row: int) -> str:
        name = f"\0port {row} {source}"
        if name not in self.boxes:
            self.sources[name] = source
            self._add(Box(name, PORT, PORT), row)
        return name

    def _chain(self, edge: Edge, start: str, start_row: int, end: str, end_row: int) -> None:
        if any((known[0], known[-1]) == (start, end) for _, known in self.chains):
            return   # several readers in other columns, one line to where they go on
        chain = [start]
        for row in range(start_row + 1, end_row):
            name = f"\0lane {row} {start}"   # one lane for all that read the same value further down
            if name not in self.lanes:
                self.lanes.add(name)
                self._add(Box(name, LANE, 0.0), row)
            chain.append(name)
        self.chains.append((edge, [*chain, end]))

    def place(self) -> None:
        """Order the rows, then find the places along them."""
        self._order()
        for row in self.rows:
            x = 0.0
            for one, other in zip([None, *row], row, strict=False):
                x += self._apart(one, other) if one else 0.0
                self.x[other] = x
        spine = self._spine()
        for _ in range(SWEEPS):
            for row in self.rows:
                wanted = [self.x[spine[name]] if name in spine else self._near(name) for name in row]
                self._settle(row, wanted, [1e9 if name in spine else 1.0 for name in row])
        for _ in range(4):
            self._straighten()
        left = min((self.x[n] - box.width / 2 for n, box in self.boxes.items()), default=0.0)
        self.x = {name: x - left for name, x in self.x.items()}
        self.width = max((self.x[n] + box.width / 2 for n, box in self.boxes.items()), default=0.0)
        tall = [max((self.boxes[name].height for name in row), default=0.0) for row in self.rows]
        self.tops = [sum(tall[:row]) + RANK_GAP * sum(1 for one in tall[:row] if one) for row in range(len(tall))]
        self.tall, self.height = tall, self.tops[-1] + tall[-1]

    def _order(self) -> None:
        best, fewest = [list(row) for row in self.rows], self._crossings()
        for sweep in range(SWEEPS):
            down = sweep % 2 == 0
            for row in self.rows if down else self.rows[::-1]:
                at = {name: index for others in self.rows for index, name in enumerate(others)}
                size = {name: len(others) for others in self.rows for name in others}
                neighbours = self.above if down else self.below
                mean = {name: sum((at[n] + 0.5) / size[n] for n in neighbours[name]) / len(neighbours[name])
                        if neighbours[name] else (at[name] + 0.5) / size[name] for name in row}
                row.sort(key=mean.__getitem__)
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(row) for row in self.rows], crossings
        self.rows = best

    def _crossings(self) -> int:
        at = {name: index for row in self.rows for index, name in enumerate(row)}
        found = 0
        for row in self.rows:
            pairs = sorted((at[name], at[other]) for name in row for other in self.below[name])
            ends = [end for _, end in pairs]
            found += sum(ends[i] > ends[j] for i in range(len(ends)) for j in range(i + 1, len(ends)))
        return found

    def _apart(self, one: str, other: str) -> float:
        return (self.boxes[one].width + self.boxes[other].width) / 2 + GAP

    def _near(self, name: str) -> float:
        """Where a box or lane would best stand: in the middle of what it reads, or of what reads it."""
        around = self.above[name] or self.below[name]
        return sum(self.x[other] for other in around) / len(around) if around else self.x[name]

    def _spine(self) -> dict[str, str]:
        """Boxes that stand right below another one, which they follow on the way with the most boxes."""
        at = {name: index for row in self.rows for index, name in enumerate(row)}
        ahead = self._boxes_on_the_way(self.rows[::-1], self.below)
        behind = self._boxes_on_the_way(self.rows, self.above)
        main = {name: _middle_of_best(others, ahead, at) for name, others in self.below.items() if others}
        spine = {}
        for name, others in self.above.items():
            if others and name not in self.lanes:
                before = _middle_of_best(others, behind, at)
                if main[before] == name and before not in self.lanes:
                    spine[name] = before
        return spine

    def _boxes_on_the_way(self, rows: Sequence[Sequence[str]], neighbours: Mapping[str, list[str]]) -> dict[str, int]:
        found: dict[str, int] = {}
        for row in rows:
            for name in row:
                found[name] = max((found[n] for n in neighbours[name]), default=0) + (name not in self.lanes)
        return found

    def _settle(self, row: Sequence[str], wanted: Sequence[float], weights: Sequence[float]) -> None:
        """Move a row as near to where it wants to be as widths allow, by pooling adjacent violators."""
        offset, offsets = 0.0, []
        for one, other in zip([None, *row], row, strict=False):
            offset += self._apart(one, other) if one else 0.0
            offsets.append(offset)
        pools: list[tuple[float, float, int]] = []
        for value, weight, shift in zip(wanted, weights, offsets, strict=True):
            mean, mass, members = value - shift, weight, 1
            while pools and pools[-1][0] > mean:
                other_mean, other_mass, other_members = pools.pop()
                mean = (mean * mass + other_mean * other_mass) / (mass + other_mass)
                mass, members = mass + other_mass, members + other_members
            pools.append((mean, mass, members))
        found = [mean for mean, _, members in pools for _ in range(members)]
        for name, mean, shift in zip(row, found, offsets, strict=True):
            self.x[name] = mean + shift

    def _straighten(self) -> None:
        """Draw every lane as far out as its furthest point, so that it runs straight beside what it passes."""
        wanted = dict(self.x)
        for _, chain in sorted(self.chains, key=lambda entry: len(entry[1])):   # the longest has all lanes of a value
            lanes = chain[1:-1]
            if lanes:
                ends = (self.x[chain[0]] + self.x[chain[-1]]) / 2
                values = [self.x[name] for name in lanes]
                outer = max(values) if sum(values) / len(values) >= ends else min(values)
                wanted.update(dict.fromkeys(lanes, outer))
        for row in self.rows:
            self._settle(row, [wanted[name] for name in row], [1.0 if name in self.lanes else 1e9 for name in row])

    def places(self) -> dict[str, Point]:
        """Centre and top of boxes and ports, boxes in the middle of their row."""
        return {
            name: (self.x[name], self.tops[row] + (self.tall[row] - self.boxes[name].height) / 2)
            for row, names in enumerate(self.rows) for name in names if name not in self.lanes
        }

    def routes(self) -> list[tuple[Edge, tuple[Point, ...]]]:
        """The points of every edge: from the bottom of its source along lanes to the top of its target."""
        places = self.places()
        row_of = {name: row for row, names in enumerate(self.rows) for name in names}
        arriving = {name: sorted(others, key=self.x.__getitem__) for name, others in self.above.items()}
        found = []
        for edge, chain in self.chains:
            start, end = chain[0], chain[-1]
            points = [(self.x[start], places[start][1] + self.boxes[start].height)]
            for lane in chain[1:-1]:
                top = self.tops[row_of[lane]]
                points += [(self.x[lane], top), (self.x[lane], top + self.tall[row_of[lane]])]
            others = arriving[end]
            spread = min(14.0, self.boxes[end].width / (len(others) + 1))
            shift = spread * (others.index(chain[-2]) - (len(others) - 1) / 2)
            found.append((edge, (*points, (self.x[end] + shift, places[end][1]))))
        return found


def _middle_of_best(names: Sequence[str], value: Mapping[str, int], at: Mapping[str, int]) -> str:
    best = max(value[name] for name in names)
    equal = sorted((name for name in names if value[name] == best), key=at.__getitem__)
    return equal[len(equal) // 2] if len(equal) % 2 else equal[0]
