"""What a report is made of: sizes, escaping, the page's policy, runs that are under way, runs of earlier versions."""

import base64
import hashlib
import json
import re
import shutil
import zlib

import pytest

from paretopress.report import content_policy, embedded_json, page_script, write_report
from paretopress.report_data import read_content, report_data
from paretopress.result import Result
from paretopress.spaces.documents import read_document
from paretopress.spaces.errors import ArtifactError, ConfigError


def unpacked(data):
    return json.loads(zlib.decompress(base64.b64decode(data["packed"])))


def test_five_hundred_trials_of_two_hundred_layers_fit_in_400_kb(made_run, tmp_path):
    path = write_report(made_run(tmp_path / "run", trials=500, layers=200))
    assert path.stat().st_size < 400_000


def test_the_page_allows_its_own_script_and_nothing_else(hostile_run):
    page = write_report(hostile_run).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#x27;", "'")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    styles = re.findall(r"<style>(.*?)</style>", page, re.S)
    for rule, texts in (("script-src", scripts), ("style-src", styles)):
        digest = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
        assert (len(texts), rules[rule]) == (1, f"'sha256-{digest}'")
    assert "connect-src 'self'" in content_policy(live=True)


def test_the_page_names_nothing_that_would_have_to_be_fetched(hostile_run):
    page = write_report(hostile_run).read_text()
    markup = page[: page.index('id="data"')]
    assert re.findall(r"(?:src|href)\s*=\s*[\"']?([^\s\"'>]+)", markup) == ["#explorer", "/dashboard"]
    addresses = set(re.findall(r"https?://[^\s\"'`]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}   # a name space, which nobody fetches
    assert not re.search(r"\.(innerHTML|outerHTML|insertAdjacentHTML)|document\.write|eval\(", page_script())


def test_no_name_ends_the_element_that_holds_the_data(hostile_run):
    page = write_report(hostile_run).read_text()
    assert page.count("</script>") == 2
    assert "owned" not in page[: page.index('id="data"')]
    text = embedded_json({"</script>": "<!--\u2028&"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": "<!--\u2028&"}


def test_a_real_run_is_shown_with_what_its_policies_make_of_every_layer(tiny_run, data_of):
    data = data_of(write_report(tiny_run.path))
    bulk, front = unpacked(data), read_document(tiny_run.path / "front.json")
    assert [point["id"] for point in data["points"]] == [point["id"] for point in front["points"]]
    assert [layer["name"] for layer in bulk["layers"]] == ["first", "depthwise", "second", "last"]
    point = data["points"][-1]
    stored = next(one for one in front["points"] if one["id"] == point["id"])
    made = bulk["policies"][bulk["made"][point["row"]]]
    assert len(made["layers"]) == 4
    times = [row[6] for row in made["layers"]] + list(made["other_time"].values())
    assert sum(times) == pytest.approx(1.0, abs=0.01)
    assert sum(row[5] for row in made["layers"]) <= stored["predicted"]["size"]
    chosen = {}
    for place, character in enumerate(bulk["rows"][point["row"]]):
        if character != "0":
            unit, _, options = bulk["units"][place]
            chosen[unit] = bulk["choices"][options[ord(character) - 49][0]][1]
    assert chosen == stored["policy"]


def test_measured_and_predicted_values_come_with_their_intervals(tiny_run, data_of):
    data = data_of(write_report(tiny_run.path))
    axis = next(name for name in data["axes"] if name.startswith("latency@"))
    point = data["points"][-1]
    value, low, high = point["predicted"][axis]
    assert low < value < high
    accuracy, worst, best = point["measured"]["accuracy"]
    assert worst <= accuracy <= best
    budget = next(line for line in data["budgets"] if line["axis"] == "accuracy")
    assert budget["limit"] == pytest.approx(data["points"][0]["measured"]["accuracy"][0] - 0.05)
    assert budget["upper"] is False


def test_the_search_itself_writes_the_report_and_the_python_object_too(tiny_run, tmp_path):
    path = Result.load(tiny_run.path).report(tmp_path / "page.html")
    assert path.read_text() == write_report(tiny_run.path).read_text()


def test_a_run_that_is_under_way_has_trials_and_no_points(tiny_run, tmp_path, data_of):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run, ignore=shutil.ignore_patterns("models", "front.*"))
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    (run / "trials.jsonl").write_text("".join(lines[:5]) + lines[5][:40])   # a line that is being written
    data = data_of(write_report(run))
    assert (data["finished"], data["points"], data["trials"]["total"]) == (False, [], 5)
    assert data["history"]
    (run / "trials.jsonl").write_text("")
    assert data_of(write_report(run))["axes"] == {}


def test_a_front_alone_is_enough(tiny_run, tmp_path, data_of):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run.path / "front.json", run)
    data = data_of(write_report(run))
    assert data["points"]
    assert unpacked(data)["layers"] == []


def test_what_is_no_run_or_a_damaged_one_is_refused_in_one_line(tiny_run, tmp_path):
    with pytest.raises(ConfigError, match="no run directory"):
        read_content(tmp_path / "nothing")
    (tmp_path / "run").mkdir()
    with pytest.raises(ArtifactError, match=r"holds no front\.json"):
        read_content(tmp_path / "run")
    shutil.copy(tiny_run.path / "front.json", tmp_path / "run")
    (tmp_path / "run" / "anatomy.json").write_text('{"schema": 9}')
    with pytest.raises(ArtifactError, match="expected schema paretopress-anatomy/1"):
        read_content(tmp_path / "run")


def test_many_trials_are_an_even_choice_and_counted_in_full(made_run, tmp_path, monkeypatch):
    monkeypatch.setattr("paretopress.report_data.MOST_TRIALS", 20)
    data = report_data(read_content(made_run(tmp_path / "run", trials=60, layers=2)))
    assert data["trials"]["total"] == 60
    assert len(data["trials"]["number"]) == 20
    assert data["trials"]["number"][:3] == [0, 3, 6]
