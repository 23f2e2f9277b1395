"""`export` of points: conversions that are checked, refusals, the model card; and a front as table and picture."""

import json

import pytest
import yaml

from paretopress.result import Result
from paretopress.spaces.errors import ArtifactError, ConfigError

FACTORIES = ("--model", "small:model", "--data", "small:data")


@pytest.mark.parametrize(("form", "name"), [("pt2", "small.pt2"), ("openvino", "small.xml")])
def test_a_point_is_converted_checked_and_timed(cli, run, tmp_path, form, name):
    arguments = ("export", run, "--pick", "id:1", "--format", form, "-o", tmp_path / name, *FACTORIES)
    code, out, err = cli(*arguments)
    assert code == 0
    assert "the same first output on 32 samples" in out
    assert "dense" in out
    assert "next: paretopress export" in err
    code, out, err = cli(*arguments)
    assert code == 2
    assert "exists" in err
    found = json.loads(cli(*arguments, "--force", "--json")[1])
    assert found["parity"]["source"] == "export"
    assert found["parity"]["agreement"] >= 0.99
    assert found["timing"]["latency_ms"] > 0
    assert found["timing"]["latency_ms_baseline"] > 0
    assert found["timing"]["runtime"].startswith({"pt2": "torch", "openvino": "openvino"}[form])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--format", "pt2", "-o", "a.pt2"), "give --model and --data"),
        (("--format", "pt2", "-o", "a.onnx", *FACTORIES), r"ends in .pt2"),
        (("--format", "onnx", "-o", "a.onnx", "--packed"), "--packed: other formats"),
    ],
)
def test_what_does_not_go_together_is_one_line(cli, run, tmp_path, monkeypatch, arguments, text):
    code, out, err = cli("export", run, *arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_a_point_that_failed_parity_is_not_exported(project, run, tmp_path):
    import dataclasses

    import small

    result = Result.load(run)
    parity = {"reloaded_equal": True, "onnx_difference": 0.3, "onnx_agreement": 0.5, "integer": True}
    knee = result.knee()
    broken = dataclasses.replace(knee, measured={**knee.measured, "parity": parity})
    for path in (tmp_path / "a.onnx", tmp_path / "a.pt2"):
        with pytest.raises(ArtifactError, match=r"point 1 failed its verification: ONNX agrees on 50\.0%"):
            result.export(path, broken, model=small.model(), data=small.data())
    with pytest.raises(ArtifactError, match="point 1 failed"):
        result.save_pretrained(tmp_path / "a", broken)
    assert list(tmp_path.iterdir()) == []


def test_python_exports_by_suffix_and_asks_for_model_and_data(project, run, tmp_path):
    import small

    result = Result.load(run)
    result.export(tmp_path / "small.pt2", pick="id:1", model=small.model(), data=small.data())
    assert (tmp_path / "small.pt2").stat().st_size > 0
    with pytest.raises(ConfigError, match=r"pt2: give model= and data="):
        result.export(tmp_path / "b.pt2")
    assert result.export(tmp_path / "folder", format="safetensors").joinpath("manifest.json").exists()


def test_an_exported_folder_has_a_card_with_what_was_measured(run, tmp_path):
    result = Result.load(run)
    result.save_pretrained(tmp_path / "small", pick="id:1")
    _, front, body = (tmp_path / "small" / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    (entry,) = matter["model-index"]
    assert entry["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.986}]
    assert "98.9 %" in body
    assert "98.6 %" in body
    assert "4.00 x faster" in body
    assert "test machine" not in body or "timed on" in body
    assert "--pick id:1" in body
    assert "second/channels" in body
    assert "x fewer" in body


def test_leaderboard_is_a_data_frame_or_rows(run, monkeypatch):
    import sys

    front = Result.load(run).front
    table = front.leaderboard()
    assert list(table.index) == [0, 1, 2]
    assert table["accuracy"].is_monotonic_decreasing
    assert set(front.leaderboard(show_all=True).index) == {0, 1, 2, 3, 4}
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = front.leaderboard()
    assert [row["id"] for row in rows] == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"pip install 'paretopress\[plot\]'"):
        front.to_dataframe()


def test_plot_draws_every_kind_of_point_once(run, tmp_path, monkeypatch):
    import sys

    import matplotlib

    matplotlib.use("Agg")
    front = Result.load(run).front
    axes = front.plot()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["front", "verified, not on the front", "misses a budget", "dense", "uniform int8, half width",
                      "knee"]
    drawn = dict(zip(labels, (len(one.get_offsets()) for one in axes.collections), strict=True))
    assert drawn == {"front": 2, "verified, not on the front": 1, "misses a budget": 1, "dense": 1,
                     "uniform int8, half width": 2, "knee": 1}
    assert "latency measured (ms)" in axes.get_xlabel()
    axes.figure.savefig(tmp_path / "front.png")
    assert front.plot("size", axes=axes) is axes
    with pytest.raises(ConfigError, match="did you mean 'latency'"):
        front.plot("latancy")
    with pytest.raises(ConfigError, match="no point of this run has a value for energy"):
        front.plot("energy")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'paretopress\[plot\]'"):
        front.plot()


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_no_colours_where_they_are_not_wanted(monkeypatch, variable):
    import sys

    from paretopress.cli.options import in_colour

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert in_colour()
    monkeypatch.setenv(variable, "dumb" if variable == "TERM" else "1")
    assert not in_colour()
