import numpy as np
import pytest

from paretopress.hardware_profiles import local, measure
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.networks import random_network
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.hardware_profiles.runtimes import open_runtime
from paretopress.hardware_profiles.timing import open_reference
from paretopress.hardware_profiles.timing_protocol import quiet_mean
from paretopress.spaces.errors import DiskError, ProfileError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def measured():
    return measure.measure_local(seconds=4)


def test_a_real_measurement_gives_a_usable_profile(measured):
    assert (measured.id, measured.tier, measured.runtime) == ("local", "T2", "onnxruntime")
    assert (measured.threads, measured.batch) == (1, 1)
    assert measured.runs_here()
    assert measured.cpu_matches()
    assert measured.host_warning() is None
    for mode in ("float32", "int8", "mixed"):
        view = random_network(99, mode).view
        estimate = measured.latency_ms(view)
        assert 0 < estimate.low <= estimate.mid <= estimate.high
        assert (measured.kernel_us(view.kernels) > 0).all()
    assert measured.document.validation[0].n >= 2
    assert "measured on" in measured.document.latency.session_us.source
    bases = {
        p.family.value: {term.basis for term in p.terms.values()}
        for p in measured.document.latency.predictors
    }
    assert bases["conv"] == {"measured"}
    assert all(basis <= {"measured", "derived"} for basis in bases.values())


def test_families_that_no_timed_network_had_are_marked_as_derived(measured):
    for predictor in measured.document.latency.predictors:
        for term in predictor.terms.values():
            assert (term.basis == "derived") == term.source.startswith("derived: in no timed network")


@pytest.mark.parametrize(
    ("text", "sound"),
    [("board", True), ("pi-5_v1.2", True), ("5", True), ("", False), ("Board", False), ("-x", False), ("a b", False),
     ("x\n", False), ("ü", False)],
)
def test_ids_of_own_profiles_are_those_of_the_schema(text, sound):
    plain = load_profile("cortex-a76-tflite").plain
    if sound:
        assert measure.profile_id(text) == text
        assert DeviceProfile.from_plain({**plain, "id": text}, "test").id == text
        return
    with pytest.raises(ProfileError, match="allowed are small letters"):
        measure.profile_id(text)


def test_a_measured_profile_gets_an_id_of_its_own(measured):
    own = measure.renamed(measured, "board")
    assert own.id == "board"
    assert own.notes.startswith("Measured on ")
    assert {**own.plain, "id": "local", "notes": measured.notes} == measured.plain
    with pytest.raises(ProfileError, match="'local' is taken"):
        measure.renamed(measured, "local")


def test_prediction_ranks_networks_of_very_different_size(measured):
    """Not a timing assertion: a hundred times the work must be predicted slower."""
    views = sorted(
        (random_network(seed, "float32").view for seed in range(200, 240)), key=lambda view: view.macs
    )
    assert measured.latency_ms(views[0]).mid < measured.latency_ms(views[-1]).mid


def test_cache_is_used_refreshed_and_survives_corruption(cache, measured, monkeypatch):
    calls = []

    def fake(seconds, progress=None):
        calls.append(seconds)
        return measured

    monkeypatch.setattr(measure, "measure_local", fake)
    first = load_profile("local")
    assert load_profile("local").fingerprint == first.fingerprint
    assert len(calls) == 1
    load_profile("local", refresh=True)
    assert len(calls) == 2
    path = local.cache_path()
    assert path.parent == cache / "paretopress"
    whole = path.read_text()
    for damage in (
        "",
        "schema: [",
        whole[: len(whole) // 2],
        whole.replace("id: local", "id: other", 1),
        "\x00\xff",
    ):
        path.write_text(damage)
        assert load_profile("local").fingerprint == first.fingerprint
        assert path.read_text() == whole
    assert len(calls) == 7
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_cache_key_depends_on_cpu_and_runtime(cache, monkeypatch):
    from dataclasses import replace

    here = local.cache_path()
    monkeypatch.setattr(local, "version", lambda _: "0.0")
    other_runtime = local.cache_path()
    monkeypatch.undo()
    info = local.host_info()
    monkeypatch.setattr(local, "host_info", lambda: replace(info, model="another"))
    assert len({here, other_runtime, local.cache_path()}) == 3


def test_unwritable_cache_is_a_disk_error(cache, measured, monkeypatch):
    monkeypatch.setattr(measure, "measure_local", lambda *_: measured)
    (cache / "paretopress").write_text("a file where the folder should be")
    with pytest.raises(DiskError, match="paretopress"):
        load_profile("local")


def test_busy_machine_is_refused_or_warned():
    with pytest.raises(ProfileError, match="too busy to measure"):
        measure.check_noise(9.0)
    with pytest.warns(UserWarning, match=r"takes 1\.60 times its fastest time"):
        measure.check_noise(1.6)


def test_quiet_mean_leaves_slow_moments_out():
    times = np.array([10.0, 10.2, 13.0, 13.1, 400.0, 10.1])
    slowness = np.array([1.0, 1.0, 1.3, 1.3, np.inf, 1.0])
    assert quiet_mean(times, slowness) == pytest.approx(10.05, abs=0.06)
    assert quiet_mean(times, np.full(6, np.inf)) == pytest.approx(10.1, abs=0.2)


def test_reference_reports_slowness():
    reference = open_reference(open_runtime("onnxruntime"))
    assert all(reference.slowness() >= 1.0 for _ in range(20))
    assert reference.noise >= 1.0
