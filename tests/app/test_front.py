"""`front`: the table, the other formats, limits, and damaged runs."""

import csv
import io
import json
import shutil
from dataclasses import replace

import pytest


def rows_of(text):
    return [line.split()[0] for line in text.splitlines() if line.strip() and line.split()[0].isdigit()]


def test_table_shows_the_front_from_dense_to_fast_within_100_columns(cli, run):
    code, out, err = cli("front", run)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    assert rows_of(out)[:3] == ["0", "1", "2"]
    knee = next(line for line in out.splitlines() if line.split()[:1] == ["1"])
    for text in ("98.6 %", "-0.3 pp", "100 µs", "4.00x", "105 µs", "knee"):
        assert text in knee
    assert "dense" in out.splitlines()[3]
    assert "Spearman 0.97, median error 6.4 %" in " ".join(out.split())
    assert "seed 0" in out
    flat = " ".join(out.split())
    assert "median of 200 alternated runs on test machine, onnxruntime 1.31.1, threads 1, batch 1" in flat
    assert "the knee's drop: -0.1 to 0.7 pp (95 % interval)" in flat
    assert "budgets: accuracy drop 1pp" in flat
    assert "2 verified points off the front not shown" in out
    assert err.startswith("next: paretopress export ")


def test_table_is_readable_at_80_columns_and_says_what_the_knee_beats(run):
    from paretopress import Result

    text = Result.load(run).front.table(width=80)
    assert max(map(len, text.splitlines())) <= 80
    beside = text[text.index("Beside it") :]
    assert [line.split()[-1] for line in beside.splitlines() if "uniform" in line] == ["yes", "yes"]


def test_a_point_prints_as_one_line_with_the_figures_of_the_table(run):
    from paretopress import Result

    front = Result.load(run).front
    knee = replace(front.knee(), measured={**front.knee().measured, "size_bytes_baseline": 2016})
    assert str(knee) == "#1: accuracy 0.9860, 100 µs (4.00x), 504 B (4.00x)"
    assert str(front.baseline).startswith("#0 dense: accuracy 0.989")
    assert str(replace(knee, measured={}, predicted={"latency@local": 0.105})) == "#1: 105 µs predicted"
    assert str(replace(knee, measured={}, predicted={})) == "#1: not measured"


def test_all_shows_why_points_fell_off(cli, run):
    _, out, _ = cli("front", run, "--all")
    assert set(rows_of(out)) >= {"0", "1", "2", "3", "4"}
    flat = " ".join(out.split())
    assert "infeasible:" in flat
    assert "not shown" not in flat


def test_json_is_the_stored_contract(cli, run):
    code, out, err = cli("front", run, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((run / "front.json").read_text())


def test_limits_keep_the_points_that_meet_them(cli, run):
    _, out, _ = cli("front", run, "--max", "latency=95us", "--json")
    assert [point["id"] for point in json.loads(out)["points"]] == [2]
    _, out, _ = cli("front", run, "--max", "latency=-50%")
    assert rows_of(out)[:2] == ["1", "2"]


def test_csv_and_markdown_hold_the_same_points(cli, run):
    _, out, err = cli("front", run, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["latency_ms"] == "0.1"
    assert rows[1]["predicted latency@local"] == str(0.1 * 1.05)
    assert err == ""
    _, out, _ = cli("front", run, "--format", "md")
    lines = out.splitlines()
    assert {line.count("|") for line in lines} == {8}
    assert len(lines) == 5


@pytest.mark.parametrize("arguments", [("--max", "latency=1us"), ("--max", "energy=1mJ")])
def test_a_limit_that_nothing_meets_exits_3(cli, run, arguments):
    code, out, err = cli("front", run, *arguments)
    assert (code, out) == (3, "")
    assert err.startswith("error: no verified point of ")
    assert err.count("\n") == 1


def test_a_run_without_feasible_point_is_printed_and_exits_3(cli, run, tmp_path):
    document = json.loads((run / "front.json").read_text())
    for point in document["points"]:
        point.update(feasible=False, knee=False)
    (tmp_path / "front.json").write_text(json.dumps(document))
    code, out, err = cli("front", tmp_path)
    assert code == 3
    assert rows_of(out)
    assert "no verified point" in err


def test_latency_that_cannot_be_measured_here_is_labelled_predicted_and_bounded_above(run, tmp_path):
    from paretopress import Result

    document = json.loads((run / "front.json").read_text())
    for point in [document["baseline"], *document["points"], *document["comparisons"]]:
        point["measured"].update(latency_ms=None, latency_ms_iqr=None, speedup=None)
        point["predicted"] = {"latency@phone": 2.0 + point["id"], "latency_upper@phone": 4.0 + point["id"]}
    document["target"] = "phone"
    (tmp_path / "front.json").write_text(json.dumps(document))
    front = Result.load(tmp_path).front
    assert front.points[1].value("latency") == 5.0
    row = next(line for line in front.table().splitlines() if line.split()[:1] == ["1"])
    assert "5.00 ms predicted" in row
    assert "3.00 ms" in row
    facts = " ".join(front.table().split())
    assert "latency: the upper end of what is predicted" in facts
    assert "test machine" not in facts   # nothing was timed on it


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d.pop("points"), "points: missing"),
        (lambda d: d["points"][1].pop("why_not"), "points[1]: why_not: missing"),
        (lambda d: d["points"][1]["predicted"].update(size="big"), "predicted.size: expected a number"),
        (lambda d: d["points"][1]["policy"].update({"last/weights": {"weights": 9}}), "weight bits"),
        (lambda d: d["points"][1]["policy"].pop("last/weights"), "does not match its policy_hash"),
    ],
)
def test_a_damaged_front_is_refused_with_its_place(cli, run, tmp_path, change, problem):
    document = json.loads((run / "front.json").read_text())
    change(document)
    (tmp_path / "front.json").write_text(json.dumps(document))
    code, out, err = cli("front", tmp_path)
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'front.json'}: " in err
    assert problem in err
    assert err.count("\n") == 1


def test_a_truncated_front_is_refused_and_a_missing_run_names_the_nearest(cli, run, tmp_path):
    shutil.copytree(run, tmp_path / "kws-1")
    text = (run / "front.json").read_text()
    (tmp_path / "kws-1" / "front.json").write_text(text[: len(text) // 2])
    code, _, err = cli("front", tmp_path / "kws-1")
    assert code == 2
    assert "front.json:" in err
    code, _, err = cli("front", tmp_path / "kws-2")
    assert code == 2
    assert "did you mean" in err
    assert "kws-1" in err


def test_names_from_a_run_cannot_steer_the_terminal(cli, run, tmp_path):
    document = json.loads((run / "front.json").read_text())
    document["points"][1]["name"] = "\x1b[31mred\x1b]0;title\x07[bold]"
    (tmp_path / "front.json").write_text(json.dumps(document))
    _, out, _ = cli("front", tmp_path)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "red" in out


def test_dataframe_has_a_row_per_verified_point(run):
    from paretopress import Result

    frame = Result.load(run).front.to_dataframe()
    assert list(frame.index) == [0, 1, 2, 3, 4]
    assert frame.loc[1, "latency_ms"] == 0.1
    assert frame.loc[4, "why_not"].startswith("point 1")
