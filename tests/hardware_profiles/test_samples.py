"""Raw samples: strict reading, resuming after a killed process, and what other machines send back."""

import json
import subprocess
import sys
import zipfile

import pytest

from paretopress.hardware_profiles import measure
from paretopress.hardware_profiles.measure import FEWEST_NETWORKS, Settings, time_networks
from paretopress.hardware_profiles.priors import GENERAL
from paretopress.hardware_profiles.probe import export_probe, import_results
from paretopress.hardware_profiles.runtimes import open_runtime
from paretopress.hardware_profiles.sample_rows import COLUMNS, cut_torn_line
from paretopress.hardware_profiles.samples import parse_samples, read_samples, timed_networks
from paretopress.spaces.errors import ConfigError, DiskError, ProfileError

ROW = {
    "format": "paretopress-samples/1", "runtime": "onnxruntime", "version": "1.30.0", "threads": "1",
    "host": "x86_64: A CPU (family 6)", "prior": "general", "seed": "3", "mode": "int8", "network": "0123456789abcdef",
    "date": "2026-01-01T00:00:00Z", "seconds": "0.1", "load": "0.5", "slowness": "1.01", "calls": "100",
    "wall_us": "20.5", "fastest_us": "20", "median_us": "21", "nodes": "'[[\"k0_main\",\"Conv\",5.5]]'",
}


def text_of(*rows):
    lines = [",".join(COLUMNS)]
    for row in rows:
        cells = [row[name] for name in COLUMNS]
        lines.append(",".join('"' + c.strip("'").replace('"', '""') + '"' for c in cells))
    return "\n".join(lines) + "\n"


def test_rows_are_read_as_written():
    found = parse_samples(text_of(ROW, {**ROW, "network": "f" * 16, "seconds": "0.4"}), "x.csv")
    assert found.setting["version"] == "1.30.0"
    assert [sample.drawn.network for sample in found.samples] == ["0123456789abcdef", "f" * 16]
    assert found.samples[0].measured.nodes[0].microseconds == 5.5
    assert found.seconds == pytest.approx(0.5)
    assert parse_samples("", "x.csv").samples == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wall_us": "-1"}, r"x.csv:3: wall_us '-1' \(allowed: a finite number above 0\)"),
        ({"wall_us": "nan"}, "x.csv:3: wall_us 'nan'"),
        ({"median_us": "inf"}, "x.csv:3: median_us 'inf'"),
        ({"fastest_us": "fast"}, "x.csv:3: fastest_us 'fast'"),
        ({"slowness": "0"}, "x.csv:3: slowness '0'"),
        ({"load": "-0.5"}, "from 0"),
        ({"wall_us": "0.0205"}, "all times are microseconds"),
        ({"wall_us": "20500"}, "all times are microseconds"),
        ({"fastest_us": "25"}, "fastest_us 25 is above median_us 21"),
        ({"nodes": "[[\"k0\", \"Conv\", 5500]]"}, "a node of 5500 us in a network of 21 us"),
        ({"nodes": "[[\"k0\", \"Conv\", -1]]"}, "nodes must be a JSON list"),
        ({"nodes": "[[\"k0\", \"Conv\", NaN]]"}, "nodes must be a JSON list"),
        ({"nodes": "[" * 100_000}, "nodes must be a JSON list"),
        ({"mode": "int4"}, r"mode 'int4' \(allowed: float32, int8, mixed\)"),
        ({"network": "xyz"}, "16 hexadecimal digits"),
        ({"network": ROW["network"]}, "network 0123456789abcdef is in line 2 already"),
        ({"version": "1.31.0"}, "version '1.31.0', but '1.30.0' in the lines before"),
        ({"runtime": "openvino"}, "runtime 'openvino', but 'onnxruntime'"),
        ({"seed": "-3"}, "seed '-3'"),
        ({"calls": "1.5"}, "calls '1.5'"),
    ],
)
def test_a_bad_row_is_named_with_its_line(change, message):
    second = {**ROW, "network": "f" * 16, **change}
    with pytest.raises(ProfileError, match=message):
        parse_samples(text_of(ROW, second), "x.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": "other/1"}, "format 'other/1'"), ({"threads": "0"}, "threads '0'"), ({"host": " "}, "host is empty")],
)
def test_the_setting_of_a_file_is_checked(change, message):
    with pytest.raises(ProfileError, match=message):
        parse_samples(text_of({**ROW, **change}), "x.csv")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    for content, message in (
        (b"a,b\n1,2\n", "not raw samples"), (b"\xff\xfe", "UTF-8"), (text_of(ROW)[:-9].encode(), "cut off"),
        ((",".join(COLUMNS) + "\n1,2\n").encode(), "2 values, expected 18"),
    ):
        path.write_bytes(content)
        with pytest.raises(ProfileError, match=message):
            read_samples(path)
    with pytest.raises(DiskError):
        read_samples(tmp_path / "missing.csv")


def test_an_unknown_network_is_refused():
    samples = parse_samples(text_of(ROW), "x.csv").samples
    with pytest.raises(ProfileError, match=r"unknown network 0123456789abcdef: seed 3 \(int8\)"):
        timed_networks(samples, {"general": GENERAL}, True, "x.csv")
    with pytest.raises(ProfileError, match=r"drawn from 'model 1' \(known here: general\)"):
        timed_networks(parse_samples(text_of({**ROW, "prior": "model 1"}), "x.csv").samples, {"general": GENERAL},
                       True, "x.csv")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Raw samples of a short measurement."""
    path = tmp_path_factory.mktemp("samples") / "board.samples.csv"
    settings = Settings(0.0, samples=path, budget_ms=1.0)
    return path, time_networks(open_runtime("onnxruntime"), settings)


def test_a_measurement_continues_where_a_killed_one_ended(measured, tmp_path, monkeypatch):
    path, campaign = measured
    whole = path.read_text()
    torn = tmp_path / "torn.csv"
    lines = whole.splitlines(keepends=True)
    torn.write_text("".join(lines[:-3]) + lines[-3][:40])
    timed = []
    original = measure.time_model
    monkeypatch.setattr(measure, "time_model", lambda *args: timed.append(args) or original(*args))
    again = time_networks(open_runtime("onnxruntime"), Settings(0.0, samples=torn, budget_ms=1.0))
    assert len(timed) == 3
    assert len(again.timed) == len(campaign.timed) == FEWEST_NETWORKS
    assert read_samples(torn).samples[:-3] == read_samples(path).samples[:-3]
    drawn = [[sample.drawn for sample in read_samples(file).samples] for file in (torn, path)]
    assert drawn[0] == drawn[1]
    kept = [item.wall for item in again.timed[:-3]]
    assert kept == pytest.approx([item.wall for item in campaign.timed[:-3]], abs=1e-3)


def test_samples_of_another_machine_are_not_continued(measured, tmp_path):
    path, _ = measured
    for old, new in (("onnxruntime,", "openvino,"), (",1,", ",2,")):
        other = tmp_path / "other.csv"
        other.write_text(path.read_text().replace(old, new))
        with pytest.raises(ProfileError, match="measure anew with --fresh"):
            time_networks(open_runtime("onnxruntime"), Settings(0.0, samples=other))


def test_whole_lines_are_left_alone(tmp_path):
    path = tmp_path / "x.csv"
    assert not cut_torn_line(path)
    path.write_text("a\nb\n")
    assert not cut_torn_line(path)
    path.write_text("a\nb\nc")
    assert cut_torn_line(path)
    assert path.read_text() == "a\nb\n"
    path.write_text("c")
    assert cut_torn_line(path)
    assert path.read_text() == ""


@pytest.mark.parametrize("name", ["probe.zip", pytest.param("probe", marks=pytest.mark.slow)])
def test_a_probe_runs_alone_and_its_results_become_a_profile(name, tmp_path):
    """In an interpreter that cannot see paretopress, started again after it was killed."""
    destination = tmp_path / name
    assert export_probe(destination, FEWEST_NETWORKS) > 0
    with pytest.raises(ConfigError, match="exists already"):
        export_probe(destination, FEWEST_NETWORKS)
    results = tmp_path / "results.csv"
    script = (
        "import sys, runpy\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'onnx', 'pydantic', 'scipy', 'yaml'):\n"
        "            raise ImportError(name + ' is not on the device')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.argv = [{str(destination)!r}, '-o', {str(results)!r}]\n"
        f"runpy.run_path({str(destination)!r}, run_name='__main__')\n"
    )
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = results.read_text().splitlines(keepends=True)
    assert len(lines) == FEWEST_NETWORKS + 1
    results.write_text("".join(lines[:-1]) + lines[-1][:30])
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{FEWEST_NETWORKS} networks, {FEWEST_NETWORKS - 1} done" in done.stderr
    assert "removed a last line" in done.stderr
    profile = import_results(results, "board")
    assert (profile.id, profile.tier, profile.runtime, profile.threads) == ("board", "T2", "onnxruntime", 1)
    assert profile.document.host.machine
    with pytest.raises(ProfileError, match=r"expected 0\.1"):
        import_results(results, "board", "0.1")
    results.write_text("".join(lines[:5]))
    with pytest.raises(ProfileError, match=f"4 networks, at least {FEWEST_NETWORKS} are needed"):
        import_results(results, "board")


def test_a_probe_names_every_file_that_it_holds(tmp_path):
    export_probe(tmp_path / "probe.zip", FEWEST_NETWORKS, seed=5)
    with zipfile.ZipFile(tmp_path / "probe.zip") as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert {entry["file"] for entry in manifest["networks"]} <= set(archive.namelist())
    assert len({entry["network"] for entry in manifest["networks"]}) == FEWEST_NETWORKS
    assert {entry["mode"] for entry in manifest["networks"]} == {"float32", "int8", "mixed"}
