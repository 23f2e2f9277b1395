"""`device`, `doctor`, and the texts of `inspect` and `verify`."""

import json
import shlex

import pytest

from paretopress.cli.inspect import inspection_text
from paretopress.cli.verify import measured_text
from paretopress.evaluators.budgets import shown
from paretopress.evaluators.primary_metric import PrimaryMetric


def test_device_list_names_every_shipped_profile_and_local_without_measuring(cli, monkeypatch, tmp_path):
    from paretopress.hardware_profiles.catalogue import list_profiles

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, err = cli("device", "list")
    assert code == 0
    assert out.splitlines()[3].split()[0] == "local"
    assert all(name in out for name in list_profiles())
    assert "next:" in err
    assert list(tmp_path.iterdir()) == []
    _, out, err = cli("device", "list", "--json")
    rows = json.loads(out)
    assert [row["id"] for row in rows] == ["local", *list_profiles()]
    assert rows[0]["tier"] is None
    assert err == ""


def test_device_show_tells_formats_with_reasons_and_json_is_the_profile(cli):
    from paretopress.hardware_profiles.catalogue import load_profile

    code, out, _ = cli("device", "show", "cortex-a76-tflite")
    assert code == 0
    assert "refused" in out
    assert "T1, calibrated on published figures" in out
    _, out, _ = cli("device", "show", "cortex-a76-tflite", "--json")
    assert json.loads(out) == json.loads(json.dumps(load_profile("cortex-a76-tflite").plain))


def test_device_measure_renews_local_and_writes_a_profile_that_loads(cli, monkeypatch, tmp_path):
    """The measurement itself is proved elsewhere; a shipped profile takes its place here."""
    from paretopress.hardware_profiles import local, measure
    from paretopress.hardware_profiles.catalogue import load_profile
    from paretopress.hardware_profiles.profile import DeviceProfile

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    profile = load_profile("cortex-a76-tflite")
    calls = []

    def measured_local(*, refresh, seconds, progress):
        calls.append((refresh, seconds))
        progress(0.5, "6 networks timed")
        return profile

    def measured(runtime, identifier, settings, progress):
        calls.append((runtime.name, runtime.threads, identifier, settings.seconds, settings.samples.name))
        progress(0.5, "6 networks timed")
        return DeviceProfile.from_plain({**profile.plain, "id": identifier, "notes": "Measured on a board."}, "test")

    monkeypatch.setattr(local, "local_profile", measured_local)
    monkeypatch.setattr(measure, "measure_device", measured)
    code, out, err = cli("device", "measure", "--time", "1m30s")
    assert (code, calls) == (0, [(True, 90.0)])
    assert out.startswith("cortex-a76-tflite\n")
    assert "measure this machine" in err
    code, out, err = cli("device", "measure", "--seconds", "5", "-o", tmp_path / "My Board.yaml")
    assert (code, calls[1:]) == (0, [("onnxruntime", 1, "my-board", 5.0, "My Board.samples.csv")])
    assert out.startswith("my-board\n")
    assert load_profile(tmp_path / "My Board.yaml").id == "my-board"
    assert local.cached_profile().notes == "This machine: a board."
    local.cache_path().unlink()
    assert cli("device", "measure", "-o", tmp_path / "x.yaml", "--id", "board.v2", "--threads", "2")[0] == 0
    assert load_profile(tmp_path / "x.yaml").id == "board.v2"
    assert local.cached_profile() is None   # two threads are another device than `local`


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-o", "local.yaml"), "profile id 'local' is taken (allowed: any but local, a100-80g"),
        (("-o", "h200-sxm.yml"), "'h200-sxm' is taken"),
        (("-o", "ü.yaml"), "profile id '': allowed are small letters"),
        (("-o", "a.yaml", "--id", "My Board"), "profile id 'My Board': allowed are small letters"),
        (("-o", "a.json"), "write it to a .yaml file"),
        (("-o", "nowhere/a.yaml"), "the folder nowhere does not exist"),
        (("--id", "mine"), "give --output as well"),
        (("--threads", "2"), "give --output for any other measurement"),
        (("--runtime", "openvino"), "give --output for any other measurement"),
        (("--runtime", "openvin", "-o", "a.yaml"), "unknown runtime 'openvin'; did you mean 'openvino'?"),
        (("--time", "soon"), "a duration above 0"),
        (("--time", "5m", "--seconds", "3"), "give one of them"),
        (("--model", "a:b", "-o", "a.yaml"), "--model and --data go together"),
    ],
)
def test_device_measure_refuses_an_id_before_it_measures(cli, monkeypatch, arguments, text):
    from paretopress.hardware_profiles import local

    monkeypatch.setattr(local, "local_profile", lambda **_: pytest.fail("measured"))
    code, out, err = cli("device", "measure", *arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_doctor_reports_versions_and_passes_here(cli):
    code, out, err = cli("doctor", "--json")
    found = json.loads(out)
    assert code == (1 if found["problems"] else 0)
    assert found["versions"]["torch"].startswith("2.")
    assert found["telemetry"] == {
        "ORT_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NNCF_CI": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
    }
    assert {row["name"]: row["version"] for row in found["runtimes"]}["torch"] == found["versions"]["torch"]
    assert found["threads"]["cores"] <= found["threads"]["machine_cores"]
    assert found["profiles"]["shipped"]["T0"] > 0
    assert found["storage"] is None
    assert err == ""


def test_doctor_exits_1_and_says_what_to_repair(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setattr("paretopress.cli.doctor.REQUIRED", ("torch", "a-package-that-is-not-there"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from paretopress.hardware_profiles.local import cache_path

    cache_path().parent.mkdir(parents=True)
    cache_path().write_text("damaged")
    code, out, err = cli("doctor")
    assert code == 1
    assert "missing" in out
    assert "problem: a-package-that-is-not-there is not installed" in err
    assert "problem: RAY_USAGE_STATS_ENABLED='1'" in err
    assert f"problem: {cache_path()} is damaged" in err


INSPECTED = {
    "layers": [
        {
            "name": "first",
            "kind": "conv",
            "shape": [8, 1, 3, 3],
            "macs": 4608,
            "bytes": 288,
            "frozen": None,
            "end": "first",
            "share": {"latency@local": 0.25},
        }
    ],
    "other_time": [
        {"name": "latency@local", "model": "dense", "kernels": 0.25, "conversions": 0.0, "call": 0.5}
    ],
    "groups": [
        {
            "name": "first",
            "channels": 8,
            "step": 1,
            "inner": 4,
            "producers": ["first"],
            "consumers": [],
            "macs": 4608,
            "bytes": 288,
            "share": {"latency@local": 0.25},
            "droppable": False,
            "own_code": "its forward says 32",
            "frozen": None,
        },
        {
            "name": "last",
            "channels": 4,
            "step": 1,
            "inner": 1,
            "producers": ["last"],
            "consumers": [],
            "macs": 0,
            "bytes": 0,
            "share": {},
            "droppable": False,
            "own_code": None,
            "frozen": "model output",
        },
    ],
    "options": {"first/channels": ["dense", "keep 0.5"], "first/weights": ["dense", "8-bit weights"]},
    "space_log10": 0.602,
    "dropped": [{"unit": "last/channels", "choice": "*", "reason": "model output"}],
    "objectives": {
        "latency@local": {
            "minimum": 0.05,
            "baseline": 0.4,
            "limit": 1.0,
            "satisfiable": True,
        },
        "size": {"minimum": 300, "baseline": 5260, "limit": 100.0, "satisfiable": False},
        "macs": {"minimum": 300, "baseline": 5260, "limit": None, "satisfiable": None},
    },
    "targets": [{"id": "local", "tier": "T2", "runs_here": True}],
    "notes": ["static batch"],
}


def test_inspection_text_shows_options_reasons_and_feasibility():
    text = inspection_text(INSPECTED, 100)
    assert max(map(len, text.splitlines())) <= 100
    flat = " ".join(text.split())
    assert "first conv 8×1×3×3 4.61 k 288 B 25.0 % 2 formats, first layer" in flat
    assert "(other kernels) 25.0 % (runtime call) 50.0 %" in flat
    assert "conversions" not in flat
    assert "share: of the predicted latency@local (dense)" in flat
    assert "first 8×4 4.61 k 288 B 25.0 % 2 first" in flat
    assert "last 4 0 0 B – frozen model output" in flat
    assert "note: without all of first the model runs as it was captured: its forward says 32" in flat
    assert "objective dense best reachable limit" in flat
    assert "latency@local 400 µs 50.0 µs 1.00 ms can be met" in flat
    assert "size 5.26 kB 300 B 100 B impossible" in flat
    assert "note: static batch" in flat
    assert "1 more rows" in inspection_text(INSPECTED, 100, most=1)


def test_inspect_finds_what_the_model_holds(cli):
    code, out, err = cli(
        "inspect", "--model", "small:model", "--data", "small:data", "--target", "cortex-a76-tflite", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert [layer["name"] for layer in found["layers"]] == ["first", "second", "last"]
    assert err == ""
    code, out, err = cli(
        "inspect", "--model", "small:model", "--data", "small:data", "--target", "cortex-a76-tflite"
    )
    assert code == 0
    assert "frozen" in out
    assert "next: paretopress search --model small:model --data small:data --target cortex-a76-tflite --time 5m" in err


def test_inspect_suggests_the_search_with_the_targets_budgets_and_settings_that_were_given(cli, tmp_path):
    (tmp_path / "mine.yaml").write_text("search: {trials: 9}\n")
    given = (
        tmp_path / "mine.yaml", "--model", "small:model", "--data", "small:data", "--target", "cortex-a76-tflite",
        "--target", "stm32-h7a3", "--max", "latency@cortex-a76-tflite=5ms", "--max", "size=-10%",
        "--set", "space.bits=[8]", "--max-drop", "2%",
    )
    code, _, err = cli("inspect", *given)
    assert code == 0, err
    suggested = shlex.split(err.splitlines()[-1].removeprefix("next: "))
    assert suggested == ["paretopress", "search", *map(str, given)]


def test_measured_text_has_units():
    text = " ".join(
        measured_text(
            {
                "accuracy": 0.986,
                "accuracy_baseline": 0.989,
                "accuracy_drop": 0.003,
                "accuracy_top5": 0.5,
                "latency_ms": 0.1,
                "size_bytes": 504,
                "latency_ms_iqr": [0.09, 0.11],
                "host": {"cpu": "here", "threads": 1},
                "onnx_bytes": None,
            },
            100,
            PrimaryMetric(),
        ).split()
    )
    for piece in (
        "accuracy 98.6 %",
        "accuracy drop +0.30 pp",
        "accuracy top5 0.5",
        "latency 100 µs",
        "size 504 B",
        "90.0 µs to 110 µs",
        "host: cpu here",
        "onnx –",
    ):
        assert piece in text


@pytest.mark.parametrize(
    ("objective", "value", "text"),
    [
        ("latency", 4.2123, "4.21 ms"),
        ("latency@x", 0.0123, "12.3 µs"),
        ("latency", 1500.0, "1.50 s"),
        ("size", 999, "999 B"),
        ("size", 115_300, "115 kB"),
        ("size", 2_000_000, "2.00 MB"),
        ("macs", 45_000_000, "45.0 M"),
        ("energy", 1500, "1.50 mJ"),
        ("macs", 12, "12"),
        ("latency", None, "–"),
        ("size", 0, "0 B"),
    ],
)
def test_values_have_three_digits_and_a_unit(objective, value, text):
    assert shown(objective, value) == text


def test_packages_of_the_distribution_hold_the_command_line():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    import tomllib

    declared = tomllib.loads(text)["tool"]["setuptools"]["packages"]
    folder = Path(__file__).parents[2] / "paretopress"
    found = [entry for pattern in ("*", "*/*") for entry in folder.glob(f"{pattern}/__init__.py")]
    below = [entry.parent.relative_to(folder) for entry in found]
    own = {"paretopress", *(".".join(("paretopress", *parent.parts)) for parent in below)}
    assert own == set(declared)
