"""`solve`: a finished run for other budgets, as text, JSON and policies that `apply` takes."""

import json

import pytest

from paretopress.cli.solve import solved_text
from paretopress.spaces.policy import Policy

DOCUMENT = {
    "run": "runs/a", "label": "predicted, not verified", "targets": ["x"], "drop_is_share": True,
    "budgets": [], "baseline": {"latency@x": 2.0, "size": 1000.0, "macs": 1e6},
    "choices_covered": 5, "choices_computed": 2, "seconds": 1.25,
    "points": [
        {"loss": 0.01, "drop_expected": 0.004, "predicted": {"latency@x": 1.0, "size": 500.0}, "within": True,
         "best": True},
        {"loss": 0.5, "drop_expected": None, "predicted": {"latency@x": 0.5, "size": 100.0}, "within": False,
         "best": False},
    ],
    "rates": [
        {"unit": "a/weights", "before": "dense", "after": "8-bit weights", "loss": 0.02, "drop": 0.01,
         "costs": {"latency@x": -0.5, "size": -100.0}},
        {"unit": "b/channels", "before": "dense", "after": "keep 0.5", "loss": 0.01, "drop": None,
         "costs": {"latency@x": -1.0, "size": 10.0}},
    ],
    "rates_along": [
        {"point": 1, "loss": 0.01, "layers": {
            "b": {"latency@x": {"unit": "b/channels", "after": "keep 0.5", "saves": 1.0, "nats": 0.01, "drop": 0.0025}},
            "a": {"latency@x": {"unit": "a/weights", "after": "4 bits", "saves": 0.5, "nats": 0.04, "drop": 0.01},
                  "size": {"unit": "a/weights", "after": "4-bit weights", "saves": 9.0, "nats": 2e-4, "drop": None}}}},
        {"point": 2, "loss": 0.5, "layers": {
            "a": {"latency@x": {"unit": "a/weights", "after": "keep 0.5", "saves": 0.5, "nats": 0.4, "drop": 0.1}}}},
    ],
    "pins": {"c/weights": "dense"}, "shared": [["d/weights", "e/weights"]],
}


def test_the_text_says_what_is_predicted_and_what_it_would_take():
    text = solved_text(DOCUMENT, 110)
    assert "runs/a: predicted, not verified" in text
    assert "1 best" in text
    assert "0.40pp" in text
    assert "1.00 ms (50%)" in text
    assert "5 choices read from the run, 2 measured now; 1.2 s" in text
    latency = text[text.index("What would it take? latency@x"):]
    latency = latency[: latency.index("What would it take? size")] if "take? size" in latency else latency
    assert latency.index("b/channels") < latency.index("a/weights")   # 0.01 nats per ms before 0.04
    assert "0.04" in latency
    size = text[text.index("What would it take? size"):]
    assert "0.2" in size   # 0.02 nats for 0.1 KB
    along = text[text.index("pp per ms of latency@x"):].splitlines()
    rows = [line.split() for line in along]
    cells = {row[0]: row[1:] for row in rows if row and row[0] in ("a", "b")}
    assert "at #1" in text
    assert "at #2" in text
    assert any("0.25" in cell for cell in cells["b"])    # 0.0025 of a share per ms
    assert any("–" in cell for cell in cells["b"])       # at the second point b has no change that saves time
    assert "nats per KB of size" in text                  # nothing says what a nat is worth there
    assert "kept to: c/weights: dense; d/weights = e/weights" in text


@pytest.mark.slow
def test_the_verb_writes_policies_that_apply_takes(finish, tiny_run, tmp_path):
    given = ("solve", tiny_run.path, "--model", "tiny:model", "--data", "tiny:data")
    code, out, err = finish(*given, "--max", "size=-60%", "--rates", "-o", tmp_path / "policies", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["choices_computed"] == 0
    best = next(point for point in document["points"] if point["best"])
    policy = Policy.load(tmp_path / "policies" / "best.yaml")
    assert policy.hash == best["policy_hash"]
    assert len(list((tmp_path / "policies").iterdir())) == len(document["points"]) + 1
    assert {"unit", "costs", "rates", "loss"} <= document["rates"][0].keys()
    code, out, err = finish("apply", "--policy", tmp_path / "policies" / "best.yaml", *given[2:],
                            "-o", tmp_path / "model", "--json")
    assert code == 0, err
    assert json.loads(out)["policy_hash"] == best["policy_hash"]
    code, out, err = finish(*given, "-o", tmp_path / "policies")
    assert (code, out) == (2, "")
    assert "choose a new folder" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        (("--max", "size=<=1B"), 3, "best reachable"),
        (("--max", "sice=1B"), 2, "unknown objective 'sice'"),
        (("--target", "cortex-a77"), 2, "cortex-a7"),
    ],
)
def test_wrong_budgets_and_devices_are_one_line(finish, tiny_run, more, code, text):
    found, out, err = finish("solve", tiny_run.path, "--model", "tiny:model", "--data", "tiny:data", *more)
    assert (found, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
