"""Metrics of which less is better, and metrics that are no shares: signs, units, picks, and a real search."""

import json

import pytest
import torch
from torch import nn

import paretopress
from paretopress import Result
from paretopress.cli.verify import measured_text
from paretopress.evaluators.metrics import RESERVED, Metric
from paretopress.evaluators.primary_metric import PrimaryMetric
from paretopress.selection import dominates, pick_point
from paretopress.spaces.errors import ArtifactError, ConfigError, InfeasibleError

# The run of `conftest.py` with errors in place of accuracies; point 1 stays the knee, 4 stays beaten by it.
ERRORS = {0: 0.0200, 1: 0.0206, 2: 0.0212, 3: 0.0400, 4: 0.0300, 100: 0.0208, 101: 0.0420}
MSE = PrimaryMetric("min", "accuracy", is_share=False)


def as_errors(run, folder, stated=None):
    document = json.loads((run / "front.json").read_text())
    for point in [document["baseline"], *document["points"], *document["comparisons"]]:
        error = ERRORS[point["id"]]
        point["measured"] |= {
            "accuracy": error, "accuracy_baseline": ERRORS[0], "accuracy_drop": error - ERRORS[0],
            "accuracy_drop_interval": None,
        }
        point["predicted"].pop("accuracy")
    document["budgets"] = [{"objective": "accuracy", "limit": "6%"}]
    if stated is not None:
        document["metric"] = stated
    (folder / "front.json").write_text(json.dumps(document))
    return Result.load(folder).front


@pytest.fixture
def errors(run, tmp_path):
    return as_errors(run, tmp_path)


def test_the_direction_follows_from_the_drops_or_is_stated(run, errors, tmp_path):
    assert Result.load(run).front.metric == PrimaryMetric()
    assert errors.metric == MSE
    assert as_errors(run, tmp_path, {"name": "mse", "direction": "min"}).metric.label == "mse"
    assert as_errors(run, tmp_path, {"name": "top1", "direction": "max"}).metric == PrimaryMetric()
    assert as_errors(run, tmp_path, {"name": "<lambda>", "direction": "min"}).metric == MSE
    with pytest.raises(ArtifactError, match=r"front.json: metric: expected a name and a direction"):
        as_errors(run, tmp_path, {"name": "mse", "direction": "less"})


def test_values_above_1_are_no_shares_whatever_their_direction():
    assert not PrimaryMetric.of(Metric(lambda *_: 0.0, label="psnr"), (31.0, 32.0)).is_share
    assert PrimaryMetric.of(Metric(lambda *_: 0.0, label="f1"), (0.91, 0.93)) == PrimaryMetric("max", "f1")


def test_the_table_shows_own_units_relative_changes_and_the_users_name(run, tmp_path):
    front = as_errors(run, tmp_path, {"name": "mse", "direction": "min"})
    text = front.table()
    flat = " ".join(text.split())
    assert "0.0206 (+3.0%)" in flat
    assert " pp" not in flat
    assert "98" not in text.split("Beside it")[0].split("note")[1].split("latency:")[0]
    assert text.splitlines()[1].split()[1] == "mse"
    assert "budgets: mse rise 6%" in flat
    assert "mse (less is better) on holdout data" in flat
    beside = text[text.index("Beside it") :]
    assert [line.split()[-1] for line in beside.splitlines() if "uniform" in line] == ["yes", "yes"]


def test_less_is_better_in_every_pick(errors):
    by_id = {point.id: point for point in errors.verified}
    assert dominates(by_id[1], by_id[4], errors.metric) is True
    assert dominates(by_id[4], by_id[1], errors.metric) is False
    picks = {
        "knee": 1, "fastest": 2, "smallest": 2, "latency<=0.5ms": 0, "latency<=150us": 1, "accuracy<=0.0207": 1,
        "accuracy<=2.2e-2": 2,
    }
    assert {pick: pick_point(errors, pick).id for pick in picks} == picks
    with pytest.raises(InfeasibleError, match=r"the front reaches accuracy 0\.02$"):
        pick_point(errors, "accuracy<=0.01")
    for pick in ("accuracy>=0.0207", "accuracy<=2%"):
        with pytest.raises(ConfigError, match="allowed: 'accuracy<=NUMBER'"):
            pick_point(errors, pick)
    assert errors.select(minimize="accuracy").id == 0
    assert errors.select(minimize="latency", max_drop="4%").id == 1
    with pytest.raises(ConfigError, match="percentage points belong to metrics that are maximised"):
        errors.select(max_drop="1pp")


def test_the_users_name_for_the_metric_can_be_picked_by(run, tmp_path):
    front = as_errors(run, tmp_path, {"name": "mse", "direction": "min"})
    assert pick_point(front, "mse<=0.0207").id == 1
    with pytest.raises(ConfigError, match="allowed: 'mse<=NUMBER'"):
        pick_point(front, "mse>=0.0207")


def test_the_knee_of_errors_is_derived_in_their_direction(run, tmp_path):
    as_errors(run, tmp_path)
    document = json.loads((tmp_path / "front.json").read_text())
    for point in document["points"]:
        point["knee"] = False
    (tmp_path / "front.json").write_text(json.dumps(document))
    assert Result.load(tmp_path).knee().id == 1


def test_export_and_markdown_name_the_metric(cli, run, tmp_path):
    (tmp_path / "models").symlink_to(run / "models")
    as_errors(run, tmp_path, {"name": "mse", "direction": "min"})
    code, out, _ = cli("export", tmp_path, "--pick", "mse<=0.0207", "-o", tmp_path / "out")
    assert code == 0
    assert "point 1, mse 0.0206, latency 100 µs" in out
    _, out, _ = cli("front", tmp_path, "--format", "md")
    assert out.startswith("| # | mse | latency |")


def test_a_rise_is_a_loss_when_verifying():
    measured = {"accuracy": 0.0206, "accuracy_baseline": 0.02, "accuracy_drop": 0.0006}
    text = " ".join(measured_text(measured, 100, PrimaryMetric("min", "mse", is_share=False)).split())
    assert text.endswith("mse 0.0206 mse baseline 0.02 mse drop +0.0006 (+3.0%)")
    assert MSE.drop(0.0206, 0.02) == pytest.approx(0.0006)
    assert PrimaryMetric().drop(0.97, 0.98) == pytest.approx(0.01)


class Regression(nn.Module):
    """Two outputs per sample, as coordinates have."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 48), nn.Linear(48, 48), nn.Linear(48, 2)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def trained():
    torch.manual_seed(0)
    model = Regression()
    teacher = torch.randn(16, 2)

    def samples(count, seed):
        x = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
        noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed + 100))
        return x, torch.tanh(x @ teacher / 2) + 0.3 * noise

    x, y = samples(1024, 0)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(120):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimiser.step()
    return model.eval(), samples


def mean_squared_error(outputs, targets):
    return float(nn.functional.mse_loss(outputs, targets))


def test_a_regression_with_a_relative_budget_end_to_end(tmp_path, capsys):
    model, samples = trained()
    metrics = {"mse": Metric(mean_squared_error, direction="min"), "largest": lambda o, t: float((o - t).abs().max())}
    data = paretopress.Data(samples(128, 1)[0], samples(256, 2), samples(256, 3), metric=metrics)
    result = paretopress.compress(
        model, data=data, target="cortex-a76-tflite", max_drop="5%", max_size="-10%", trials=6,
        run=tmp_path / "run", progress=False, settings={"search": {"finalists": 2}},
    )
    front = result.front
    assert front.metric.direction == "min"
    assert not front.metric.is_share
    dense = front.baseline.value("accuracy")
    x, y = samples(256, 3)
    with torch.inference_mode():
        assert dense == pytest.approx(mean_squared_error(model(x), y), rel=1e-4)
    for point in front.verified:
        error, drop = point.measured["accuracy"], point.measured["accuracy_drop"]
        assert drop == pytest.approx(error - dense)
        small_enough = point.value("size") <= 0.9 * front.baseline.value("size")
        assert point.feasible == (error <= 1.05 * dense and small_enough) or "parity" in point.why_not
        own = set(point.measured) - {"accuracy", "largest"}
        assert own <= RESERVED   # a metric of the user's by one of these names would be overwritten
    assert front.feasible
    best = front.select(minimize="accuracy")
    assert best.value("accuracy") == min(point.value("accuracy") for point in front.feasible)
    assert pick_point(front, f"accuracy<={1.05 * dense}").feasible
    table = front.table()
    assert " pp" not in table.split("Beside it")[0].split("note")[1].split("on holdout")[0].replace("infeasible", "")
    with pytest.raises(ConfigError, match="percentage points belong to metrics that are maximised"):
        paretopress.compress(
            model, data=data, target="cortex-a76-tflite", max_drop="1pp", trials=1, run=tmp_path / "other",
            progress=False,
        )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("as_json", [True, False])
def test_verify_prints_a_rise_of_the_error_as_a_drop(cli, project, monkeypatch, tmp_path, as_json):
    (project / "errors.py").write_text(
        "import dataclasses, paretopress\nfrom small import data as labelled, model\n"
        "def data():\n"
        "    metric = {'mse': paretopress.Metric(lambda *_: 0.0, direction='min')}\n"
        "    return dataclasses.replace(labelled(), metric=metric)\n"
    )
    measured = {"accuracy": 0.0206, "accuracy_baseline": 0.02, "accuracy_drop": 0.0006, "runs": 3}
    found = {"artefact": str(tmp_path), "policy_hash": "0" * 16, "measured": measured, "parity_problem": None}
    monkeypatch.setattr("paretopress.search.session.verify_artifact", lambda *_, **__: found)
    arguments = ("verify", tmp_path, "--model", "errors:model", "--data", "errors:data")
    code, out, err = cli(*arguments, *(["--json"] if as_json else []))
    assert code == 0, err
    if as_json:
        assert json.loads(out)["measured"]["accuracy_drop"] == pytest.approx(0.0006)
    else:
        assert "mse drop +0.0006 (+3.0%)" in " ".join(out.split())
