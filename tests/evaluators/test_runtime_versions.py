"""Another version of the runtime than the profile's is named; the same one, and runtimes elsewhere, are not."""

from importlib.metadata import PackageNotFoundError

import pytest

from paretopress.evaluators import runtime_versions
from paretopress.evaluators.runtime_versions import device_notes, runtime_mismatch
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.profile import DeviceProfile

ZEN = "x86-zen4-vnni-onnxruntime"


@pytest.fixture
def installed(monkeypatch):
    """Pretend that a version of ONNX Runtime is installed, and that the profile runs here."""
    def pretend(text, runs_here=True):
        def version(_):
            if text is None:
                raise PackageNotFoundError
            return text

        monkeypatch.setattr(runtime_versions, "version", version)
        monkeypatch.setattr(DeviceProfile, "runs_here", lambda device: runs_here and device.id == ZEN)
        monkeypatch.setattr(DeviceProfile, "host_warning", lambda _: None)

    return pretend


@pytest.mark.parametrize(
    ("text", "runs_here", "differs"),
    [
        ("1.31.0", True, False),     # the profile's is 1.31.1
        ("1.31.1", True, False),
        ("1.31.4+cpu", True, False),
        ("1.32.0", True, True),
        ("1.3.1", True, True),
        ("2.31.1", True, True),
        ("1.32.0", False, False),
        (None, True, False),
    ],
)
def test_minor_versions_are_compared_where_the_target_runs(installed, text, runs_here, differs):
    profile = load_profile(ZEN)
    assert profile.runtime_version == "1.31.1"
    installed(text, runs_here)
    assert (runtime_mismatch(profile) is not None) == differs
    assert len(device_notes([profile, load_profile("stm32-h7a3")])) == differs


def test_the_note_names_both_versions_and_what_to_do(installed):
    installed("1.40.2")
    note = runtime_mismatch(load_profile(ZEN))
    for part in (ZEN, "onnxruntime 1.31.1", "1.40.2 is installed", "paretopress device measure"):
        assert part in note
