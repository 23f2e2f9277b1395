import copy

import pytest

from paretopress.hardware_profiles.catalogue import list_profiles, load_profile, shipped_document
from paretopress.hardware_profiles.lint import lint

SHIPPED = list_profiles()


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_can_be_believed(name):
    assert lint(shipped_document(name), f"{name}.yaml", name) == []


    profile = load_profile(name)
    if profile.tier == "T0":
        assert profile.document.latency is None
        assert profile.document.active_power_mw is None
    else:
        assert profile.document.validation
        assert all(entry.calibrated_on is not None or profile.tier == "T2" for entry in profile.document.validation)


def document(name="stm32-h747"):
    return copy.deepcopy(shipped_document(name))


def without_source(content):
    del content["latency"]["session_us"]["source"]


def without_basis(content):
    del content["memory"]["sram_bytes"]["basis"]


def bare_number(content):
    content["align"]["channel_step"] = 4


def no_document(content):
    content["memory"]["flash_bytes"]["source"] = "TBD datasheet of chip"


def two_words(content):
    content["memory"]["flash_bytes"]["source"] = "the datasheet"


def without_validation(content):
    content["validation"] = []


def useless_validation(content):
    content["validation"][0]["mape"] = 0.8


def few_measured(content):
    content["tier"] = "T2"


def kilobytes(content):
    content["memory"]["sram_bytes"]["value"] = 512.0


def negative_rate(content):
    content["latency"]["predictors"][0]["terms"]["inputs"]["value"] = -1.0


def milliseconds(content):
    for predictor in content["latency"]["predictors"]:
        for leaf in predictor["terms"].values():
            leaf["value"] /= 1e12


def no_convolutions(content):
    content["latency"]["predictors"] = [
        item for item in content["latency"]["predictors"] if item["family"] not in ("conv", "linear")
    ]


def other_name(content):
    content["id"] = "stm32-h743"


@pytest.mark.parametrize(("change", "message"), [
    (without_source, "latency.session_us.source: field required"),
    (without_basis, "memory.sram_bytes.basis: field required"),
    (bare_number, "align.channel_step"),
    (no_document, "names no document"),
    (two_words, "names no document"),
    (without_validation, "needs at least one validation entry"),
    (useless_validation, "80% is no calibration"),
    (few_measured, "too few for T2"),
    (kilobytes, "memory.sram_bytes: 512 is not plausible"),
    (negative_rate, "greater than or equal to 0"),
    (milliseconds, "is the unit microseconds?"),
    (no_convolutions, "nothing prices int8 arithmetic"),
    (other_name, "is not the file's name"),
])
def test_faults_are_found(change, message):
    content = document()
    change(content)
    found = lint(content, "board.yaml", "stm32-h747")
    assert found
    assert any(message in line for line in found)
    assert all(line.startswith("board.yaml: ") and "\n" not in line for line in found)


def test_costs_must_grow_with_work():
    content = document("x86-zen4-vnni-onnxruntime")
    for predictor in content["latency"]["predictors"]:
        if predictor["family"] == "conv":
            predictor["correction"] = {
                "depth": 1, "features": "1", "thresholds": "4.5", "leaves": "1.9 -0.7",
                "lower": " ".join(["-100"] * 12), "upper": " ".join(["1000"] * 12), "basis": "fitted",
                "source": "a correction that makes wide layers nearly free",
            }
    assert any("twice the work" in line for line in lint(content, "zen.yaml"))


def test_integers_are_not_slower_at_their_peak():
    content = document("h200-sxm")
    content["peaks"][1]["macs_s"]["value"] = 1e12
    assert any("below float32" in line for line in lint(content, "h200.yaml"))


