"""`sensitivity`: the table of single choices as text, JSON and a picture."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from paretopress.cli.sensitivity import sensitivity_text
from paretopress.sensitivity_svg import PANEL_HEIGHT, PANEL_WIDTH, sensitivity_svg
from paretopress.svg import COLOURS

SVG = "{http://www.w3.org/2000/svg}"
GIVEN = ("sensitivity", "--model", "small:model", "--data", "small:data", "--target", "cortex-a76-tflite",
         "--set", "search.workers=1", "--set", "space.keep=[0.25, 0.5, 0.75]", "--set", "space.bits=[8, 4, 2]")


def point(amount, loss, *, estimated=False, failed=False):
    return {"text": f"keep {1 - amount:g}", "choice": {"keep": 1 - amount}, "amount": amount, "loss": loss,
            "estimated": estimated, "failed": failed}


def curve(unit, points, family="keep", axis="removed"):
    return {"unit": unit, "family": family, "axis": axis, "points": points}


def found(curves):
    return {"schema": 1, "loss": "divergence", "samples": 32, "importance": "obs", "seed": 0, "targets": ["a"],
            "curves": curves}


def texts(root):
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def titles(root):
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}title")]


def circles(root):
    return [(float(c.get("cx")), float(c.get("cy")), c.get("fill")) for c in root.iter(f"{SVG}circle")]


def test_the_verb_measures_every_choice_once_and_draws_it(cli, project):
    code, out, err = cli(*GIVEN, "--json", "--svg", "curves.svg")
    assert code == 0
    document = json.loads(out)
    assert {key: document[key] for key in ("schema", "samples", "importance", "seed", "targets")} == {
        "schema": 1, "samples": 32, "importance": "obs", "seed": 0, "targets": ["cortex-a76-tflite"],
    }
    kept = next(c for c in document["curves"] if c["unit"] == "second/channels")
    assert [(p["choice"], p["amount"]) for p in kept["points"]] == [
        ({"keep": 0.75}, 0.25), ({"keep": 0.5}, 0.5), ({"keep": 0.25}, 0.75),
    ]
    losses = [p["loss"] for p in kept["points"]]
    assert 0.0 < losses[0] < losses[1] < losses[2]
    points = [p for c in document["curves"] for p in c["points"]]
    assert not any(p["estimated"] or p["failed"] for p in points)
    root = ElementTree.parse(project / "curves.svg").getroot()
    words = {"first", "second", "Channels: % of the channels removed", "Weight formats: bits of a weight"}
    assert words <= set(texts(root))
    drawn = [title for title in titles(root) if "\nloss " in title]
    assert len(drawn) == len(points)
    assert f"second/channels: keep 0.5\nloss {losses[1]:.3g}" in drawn
    assert "curves: curves.svg" in err
    assert "sensitivity" in err
    assert cli(*GIVEN, "--json")[1] == out   # the same for the same seed


def test_without_time_estimates_are_marked_and_the_search_that_follows_is_named(cli):
    code, out, err = cli(*GIVEN, "--time", "0.001s", "--set", "search.importance=fisher")
    assert code == 0
    assert re.search(r"second/channels\s+keep\s+0\.75=~\S+  0\.5=[\d.e-]+  0\.25=~\S+", out)
    assert re.search(r"channels ranked by fisher; ~: \d+ estimated", out)
    assert "losses are estimated from their neighbours: time was up" in err
    line = next(line for line in err.splitlines() if line.startswith("next: "))
    assert line.startswith("next: paretopress search --model small:model --data small:data --target cortex-a76-tflite")
    assert "--set search.importance=fisher" in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--svg", "curves.png"), "--svg curves.png: the picture is SVG"),
        (("--set", "search.importance=obd"), "did you mean 'obs'"),
        (("--time", "soon"), "search.time"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(cli, arguments, text):
    code, out, err = cli(*GIVEN, *arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_an_interrupted_measurement_says_so_and_stores_nothing(project, monkeypatch):
    import small

    from paretopress.progress import PlainObserver
    from paretopress.search.problem import SearchSettings
    from paretopress.search.session import measure_sensitivity
    from paretopress.spaces.errors import InterruptedSearch

    class Stopping(PlainObserver):
        def should_stop(self):
            return True

    monkeypatch.chdir(project)
    before = set(project.iterdir())
    settings = SearchSettings(targets=("cortex-a76-tflite",), trials=1)
    with pytest.raises(InterruptedSearch, match="nothing is stored") as ended:
        measure_sensitivity(small.model(), small.data(), settings, observer=Stopping())
    assert ended.value.exit_code == 130
    assert set(project.iterdir()) == before


def test_points_stand_where_their_amounts_and_losses_are():
    shown = found([curve("a/channels", [point(0.0001, 1e-4), point(0.5, 1e-2, estimated=True), point(1.0, 1.0)])])
    root = ElementTree.fromstring(sensitivity_svg(shown))
    panel = next(r for r in root.iter(f"{SVG}rect") if r.get("stroke"))
    left, top = float(panel.get("x")), float(panel.get("y"))
    low, middle, high = [c for c in circles(root) if c[0] >= left - 0.1 and c[1] >= top - 0.1]
    assert low[:2] == pytest.approx((left, top + PANEL_HEIGHT), abs=0.11)
    assert middle[:2] == pytest.approx((left + PANEL_WIDTH / 2, top + PANEL_HEIGHT / 2), abs=0.11)
    assert high[:2] == pytest.approx((left + PANEL_WIDTH, top), abs=0.11)
    assert (low[2], middle[2], high[2]) == (COLOURS[0], "#fff", COLOURS[0])   # estimates are hollow
    assert "a/channels: keep 0.5\nloss 0.01 (estimated)" in titles(root)


def test_bits_fall_to_the_right_and_all_panels_share_the_loss_axis():
    formats = [{**point(bits, loss), "text": f"{bits}-bit weights", "choice": {"weights": bits}}
               for bits, loss in ((8, 1e-6), (4, 1e-4), (2, 1e-2))]
    both = {"a/weights": formats, "b/weights": formats[1:]}
    shown = found([curve(unit, points, "integers", "bits") for unit, points in both.items()])
    marks = [c for c in circles(ElementTree.fromstring(sensitivity_svg(shown))) if c[1] > 100]
    assert len(marks) == 5
    xs, ys = [c[0] for c in marks], [c[1] for c in marks]
    assert xs[0] < xs[1] < xs[2]
    assert xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], abs=0.11)   # halvings are equally far apart
    assert ys[0] > ys[1] > ys[2]
    assert ys[3:] == ys[1:3]
    assert xs[4] - xs[2] == pytest.approx(xs[3] - xs[1], abs=0.11)


def test_what_failed_is_a_cross_at_the_top_and_losses_of_zero_stand_at_the_bottom():
    shown = found([curve("a/channels", [point(0.25, 0.0), point(0.5, 0.1), point(0.75, 1e6, failed=True)])])
    root = ElementTree.fromstring(sensitivity_svg(shown))
    assert "a/channels: keep 0.25\ncannot be measured" in titles(root)
    panel = next(r for r in root.iter(f"{SVG}rect") if r.get("stroke"))
    bottom = float(panel.get("y")) + PANEL_HEIGHT
    assert any(abs(cy - bottom) < 0.11 for _, cy, _ in circles(root))
    assert all(word in sensitivity_text(shown, 100) for word in ("0.75=0", "0.5=0.1", "0.25=not measurable"))


def test_names_are_text_and_nothing_is_fetched():
    hostile = '</title><script>alert("1")</script>&\x00\x1b[31m\ud800\' onload="x'
    picture = sensitivity_svg(found([curve(f"{hostile}/channels", [point(0.5, 0.1)], hostile)]))
    root = ElementTree.fromstring(picture.encode())
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "style", "rect", "g", "title", "text", "path", "circle",
    }
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", picture)
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
    assert "http" not in picture.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_a_model_without_choices_is_said_to_have_none():
    assert "Nothing of this model can be compressed" in sensitivity_svg(found([]))
    assert sensitivity_text(found([]), 100).startswith("nothing of this model can be compressed")


def test_every_importance_can_be_asked_for(cli):
    losses = {}
    for importance in ("obs", "taylor", "fisher", "hessian", "fpgm", "bn_scale", "l2", "l1"):
        code, out, _ = cli(*GIVEN, "--set", f"search.importance={importance}", "--set", "space.bits=[]",
                           "--set", "space.rank=[]", "--json")
        assert code == 0
        document = json.loads(out)
        assert document["importance"] == importance
        losses[importance] = [p["loss"] for c in document["curves"] for p in c["points"]]
    assert losses["bn_scale"] == losses["l2"]   # the model has no batch normalisation
    assert losses["fisher"] == losses["taylor"]   # and no layers that are added up
    assert len({tuple(values) for values in losses.values()}) > 3


def test_the_heat_map_is_written_and_a_wrong_place_is_refused_first(cli, project):
    code, _, err = cli(*GIVEN, "--time", "0.001s", "--heatmap", "heat.svg")
    assert code == 0
    assert "heat map: heat.svg" in err
    ElementTree.parse(project / "heat.svg")
    code, out, err = cli(*GIVEN, "--heatmap", "heat.png")
    assert (code, out) == (2, "")
    assert "--heatmap heat.png: the picture is SVG" in err
