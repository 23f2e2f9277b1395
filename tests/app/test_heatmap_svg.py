"""The heat map of `sensitivity`: one cell per choice, darker for more loss, and nothing from outside."""

import xml.etree.ElementTree as ElementTree

import pytest

from paretopress.heatmap_svg import SCALE, colour, heatmap_svg

SVG = "{http://www.w3.org/2000/svg}"


def point(tag, value, amount, loss, *, estimated=False, failed=False):
    return {"text": f"{tag} {value}", "choice": {tag: value}, "amount": amount, "loss": loss,
            "estimated": estimated, "failed": failed}


def found(*curves):
    return {"loss": "divergence", "curves": [
        {"unit": unit, "family": family, "axis": axis, "points": points} for unit, family, axis, points in curves]}


SHOWN = found(
    ("a/channels", "keep", "removed", [point("keep", 0.75, 0.25, 1e-4), point("keep", 0.5, 0.5, 1e-1)]),
    ("b/channels", "keep", "removed", [point("keep", 0.5, 0.5, 1e-2, estimated=True),
                                       point("keep", 0.25, 0.75, 1e6, failed=True)]),
    ("a/weights", "integers, 8-bit activations", "bits", [point("weights", 8, 8.0, 0.0),
                                                          point("weights", 4, 4.0, 1e-3)]),
)


def cells(picture):
    """(title, x, y, fill) of every cell."""
    result = {}
    for group in ElementTree.fromstring(picture).iter(f"{SVG}g"):
        box, title = group.find(f"{SVG}rect"), group.find(f"{SVG}title")
        if box is not None:
            result[title.text.splitlines()[0]] = (float(box.get("x")), float(box.get("y")), box.get("fill"))
    return result


def brightness(fill):
    return sum(int(fill[i : i + 2], 16) for i in (1, 3, 5))


def test_every_choice_is_a_cell_in_its_row_and_column():
    drawn = cells(heatmap_svg(SHOWN))
    assert len(drawn) == 6
    assert drawn["a/channels: keep 0.5"][0] == drawn["b/channels: keep 0.5"][0]      # one column
    assert drawn["a/channels: keep 0.75"][0] < drawn["a/channels: keep 0.5"][0] < drawn["b/channels: keep 0.25"][0]
    assert drawn["a/channels: keep 0.75"][1] == drawn["a/channels: keep 0.5"][1] < drawn["b/channels: keep 0.5"][1]
    assert drawn["a/weights: weights 8"][0] < drawn["a/weights: weights 4"][0]       # fewer bits to the right
    shades = [brightness(drawn[name][2]) for name in
              ("a/weights: weights 8", "a/channels: keep 0.75", "b/channels: keep 0.5", "a/channels: keep 0.5")]
    assert shades == sorted(shades, reverse=True)   # losses 0, 1e-4, 1e-2, 1e-1
    assert drawn["b/channels: keep 0.25"][2] == "#fff"


def test_estimates_failures_and_labels_are_told():
    texts = ["".join(t.itertext()) for t in ElementTree.fromstring(heatmap_svg(SHOWN)).iter(f"{SVG}text")]
    assert {"~0.01", "1e-4", "0.1", "0", "keep 0.5", "4 bits, a8", "Channels", "Weight formats"} <= set(texts)
    titles = ["".join(t.itertext()) for t in ElementTree.fromstring(heatmap_svg(SHOWN)).iter(f"{SVG}title")]
    assert "b/channels: keep 0.25\ncannot be measured" in titles
    assert "b/channels: keep 0.5\nloss 0.01 (estimated)" in titles


def test_colours_run_through_the_scale():
    assert [colour(share) for share in (-1.0, 0.0, 1.0, 2.0)] == [SCALE[0], SCALE[0], SCALE[-1], SCALE[-1]]
    shades = [brightness(colour(step / 20)) for step in range(21)]
    assert shades[0] > shades[10] > shades[20]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a\x1b[31m&\"'"])
def test_hostile_names_stay_text(name):
    picture = heatmap_svg(found((f"{name}/channels", name, "removed", [point("keep", 0.5, 0.5, 0.1)])))
    ElementTree.fromstring(picture)
    assert "<script" not in picture
    assert "\x1b" not in picture


def test_nothing_to_compress_is_said():
    assert "Nothing of this model can be compressed" in heatmap_svg(found())
