"""The drawn graph: everything in its place, one colour per group, and nothing of the model is markup."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.graph_layout import Box, lay_out
from paretopress.graph_svg import COLOURS, GREY, PALE, PATTERNS, graph_svg

SVG = "{http://www.w3.org/2000/svg}"


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 60))
    boxes = [Box(f"n{i}", draw(st.sampled_from((40.0, 120.0, 230.0))), draw(st.sampled_from((20.0, 36.0))))
             for i in range(count)]
    edges = []
    for target in range(1, count):
        reach = draw(st.sampled_from((1, 3, 40)))
        sources = draw(st.sets(st.integers(max(0, target - reach), target - 1), max_size=3))
        edges += [(f"n{source}", f"n{target}") for source in sorted(sources)]
    return boxes, edges


def overlaps(boxes, places):
    found = []
    for index, one in enumerate(boxes):
        for other in boxes[index + 1:]:
            (x, y), (to_x, to_y) = places[one.name], places[other.name]
            beside = abs(x - to_x) >= (one.width + other.width) / 2 - 1e-6
            above = y + one.height <= to_y + 1e-6 or to_y + other.height <= y + 1e-6
            if not beside and not above:
                found.append((one.name, other.name))
    return found


@given(graphs())
@settings(max_examples=60)
def test_boxes_do_not_overlap_and_edges_run_down_from_box_to_box(graph):
    boxes, edges = graph
    layout = lay_out(boxes, edges)
    by_name = {box.name: box for box in boxes}
    assert set(layout.places) == set(by_name)
    assert not overlaps(boxes, layout.places)
    for box in boxes:
        x, y = layout.places[box.name]
        assert box.width / 2 - 1e-6 <= x <= layout.width - box.width / 2 + 1e-6
        assert 0 <= y <= layout.height - box.height + 1e-6
    ports = {(x, y) for _, (x, y) in layout.ports}
    drawn = {edge for edge, _ in layout.routes}
    assert drawn <= set(edges)
    for source, target in edges:   # what goes on in another column has ports instead
        assert (source, target) in drawn or source in {name for name, _ in layout.ports}
    for (source, target), points in layout.routes:
        assert all(to_y >= y for (_, y), (_, to_y) in pairwise(points))
        x, y = layout.places[source]
        starts = abs(points[0][0] - x) < 1e-6 and abs(points[0][1] - y - by_name[source].height) < 1e-6
        assert starts or any(abs(points[0][0] - px) < 1e-6 for px, _ in ports)
        x, y = layout.places[target]
        ends = abs(points[-1][0] - x) <= by_name[target].width / 2 and abs(points[-1][1] - y) < 1e-6
        assert ends or any(abs(points[-1][1] - py) < 1e-6 for _, py in ports)


def test_a_chain_is_straight_and_a_tall_one_goes_on_in_further_columns():
    boxes = [Box(str(i), 100.0 + 20 * (i % 3), 36.0) for i in range(90)]
    edges = [(str(i), str(i + 1)) for i in range(89)]
    short = lay_out(boxes[:12], edges[:11])
    assert len({x for x, _ in short.places.values()}) == 1
    assert short.ports == ()
    tall = lay_out(boxes, edges)
    columns = len({x for x, _ in tall.places.values()})
    assert columns > 2
    assert len(tall.ports) == 2 * (columns - 1)
    assert tall.height < 90 * 36.0 / 2


def test_a_residual_edge_runs_beside_its_branch_and_leaves_the_trunk_straight():
    boxes = [Box(name, 150.0, 36.0) for name in ("stem", "first", "second", "sum", "next")]
    edges = [("stem", "first"), ("stem", "sum"), ("first", "second"), ("second", "sum"), ("sum", "next")]
    layout = lay_out(boxes, edges)
    assert len({round(x, 6) for x, _ in layout.places.values()}) == 1
    points = dict(layout.routes)["stem", "sum"]
    lane = {round(x, 6) for x, _ in points[1:-1]}
    assert len(lane) == 1
    assert abs(lane.pop() - layout.places["first"][0]) > 75.0


def test_no_boxes_make_an_empty_layout():
    layout = lay_out([], [])
    assert (layout.places, layout.routes, layout.width) == ({}, (), 0.0)


def node(name, kind="conv", layer=None, groups=(), frozen=None, share=0.5):
    return {
        "name": name, "kind": kind, "operators": [] if kind in ("input", "output") else [kind], "layer": layer,
        "shape": [8, 4, 4], "weight": [8, 8, 3, 3] if layer else None, "groups": list(groups),
        "share": {"latency@a": share} if layer else {}, "frozen": frozen,
    }


def group(name, frozen=None, inner=1):
    return {"name": name, "channels": 8, "step": 1, "inner": inner, "frozen": frozen}


def found(nodes, groups, edges=None):
    names = [one["name"] for one in nodes]
    pairs = edges or [(one, other, False) for one, other in pairwise(names)]
    return {
        "graph": {
            "nodes": nodes, "edges": [{"source": s, "target": t, "residual": r} for s, t, r in pairs],
        },
        "groups": groups, "options": {f"{one['name']}/channels": ["dense", "keep 0.5"] for one in groups},
        "other_time": [{"name": "latency@a", "model": "dense", "kernels": 0.0, "conversions": 0.0, "call": 0.0}],
    }


def texts(root):
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def test_names_are_text_and_never_markup():
    hostile = '</title><script>alert("1")</script>&\x00\x1b[31m\ud800\'" onload="x'
    shown = found(
        [node("x", "input"), node(hostile, layer=hostile, groups=[hostile], frozen=hostile), node("z", "output")],
        [group(hostile, frozen=hostile)],
    )
    picture = graph_svg(shown)
    root = ElementTree.fromstring(picture.encode())   # well-formed, without what XML cannot hold
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "style", "defs", "pattern", "path", "rect", "circle", "g", "title", "text",
    }
    assert any("</title><script>alert" in "".join(title.itertext()) for title in root.iter(f"{SVG}title"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", picture)
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)


def test_the_picture_fetches_nothing():
    picture = graph_svg(found([node("a", layer="a", groups=["a"]), node("b", "output")], [group("a")]))
    assert "http" not in picture.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert all(word not in picture for word in ("<script", "href", "@import", "@font-face", "<image", "data:"))
    assert set(re.findall(r"url\(([^)]*)\)", picture)) <= {f"#pp-{name}" for name in PATTERNS if name}


def test_every_group_has_one_colour_with_a_pattern_where_colours_repeat():
    count = len(COLOURS) * len(PATTERNS)
    names = [f"g{index}" for index in range(count)]
    shown = found([node(name, layer=name, groups=[name]) for name in names], [group(name) for name in names])
    root = ElementTree.fromstring(graph_svg(shown))
    looks = {}
    for box in root.iter(f"{SVG}g"):
        title = box.find(f"{SVG}title")
        fills = tuple(rect.get("fill") for rect in box.findall(f"{SVG}rect")
                      if rect.get("fill") in COLOURS or rect.get("fill").startswith("url"))
        if title is not None and fills:
            looks.setdefault(title.text.splitlines()[0].partition(":")[0], set()).add(fills)
    assert set(looks) == set(names)
    assert all(len(seen) == 1 for seen in looks.values())   # the same in the graph and in the legend
    assert len({next(iter(seen)) for seen in looks.values()}) == count
    assert all(texts(root).count(str(number)) == 2 for number in range(1, count + 1))


def test_frozen_layers_are_grey_and_residual_edges_are_dashed():
    shown = found(
        [node("x", "input"), node("a", layer="a", groups=["a"]), node("b", layer="b", groups=["b"], frozen="tied"),
         node("s", "add", groups=["a"]), node("o", "output")],
        [group("a"), group("b", frozen="it reaches the model's output", inner=64)],
        [("x", "a", False), ("a", "b", False), ("a", "s", True), ("b", "s", False), ("s", "o", False)],
    )
    root = ElementTree.fromstring(graph_svg(shown))
    rects = [rect for rect in root.iter(f"{SVG}rect") if rect.get("fill") == PALE]
    assert [(rect.get("stroke"), rect.get("stroke-dasharray")) for rect in rects] == [(GREY, "3 2")]
    dashed = [path for path in root.iter(f"{SVG}path") if path.get("stroke-dasharray")]
    assert [path.get("stroke") for path in dashed] == [COLOURS[0]]
    words = texts(root)
    assert "8, 1, 2 options" in words
    assert "8 × 64, 1, frozen" in words
    assert "conv · 8×8×3×3 · 50.0 %" in words


def test_operators_without_weights_in_a_row_are_one_pill():
    shown = found(
        [node("x", "input"), node("a", layer="a", groups=["a"]), node("r", "relu"), node("p", "pool"),
         node("m", "mean"), node("n", "norm"), node("o", "output")],
        [group("a")],
    )
    assert "relu · pool · … · norm" in texts(ElementTree.fromstring(graph_svg(shown)))


def test_inspect_draws_what_it_found(cli, project):
    given = ("inspect", "--model", "small:model", "--data", "small:data", "--target", "cortex-a76-tflite")
    code, _, err = cli(*given, "--svg", "drawn.svg")
    assert code == 0
    assert "graph: drawn.svg" in err
    words = texts(ElementTree.parse(project / "drawn.svg").getroot())
    assert {"first", "second", "last", "output", "input x · 1×8×8"} <= set(words)
    assert any(word.startswith("conv · 8×1×3×3 · ") for word in words)


@pytest.mark.parametrize(
    ("path", "text"),
    [("drawn.png", "the picture is SVG; write it to a .svg file"), ("no/drawn.svg", "the folder no does not exist")],
)
def test_inspect_refuses_a_file_before_it_loads_the_model(cli, path, text):
    code, out, err = cli("inspect", "--model", "nothing:model", "--data", "nothing:data", "--svg", path)
    assert (code, out) == (2, "")
    assert f"--svg {path}: {text}" in err
    assert err.count("\n") == 1
