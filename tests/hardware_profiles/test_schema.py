import copy
import math
import re

import pytest

from paretopress.hardware_profiles.catalogue import list_profiles, load_profile, read_profile
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.errors import ProfileError


@pytest.fixture(scope="module")
def plain():
    return load_profile("stm32-h7a3").plain


def changed(plain, path, value):
    content = copy.deepcopy(plain)
    *parents, last = path
    place = content
    for part in parents:
        place = place[part]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return content


LEAF = ("latency", "session_us")
REFUSALS = [
    (("runtimes",), {}, r"runtimes: unknown key; did you mean 'runtime'\?"),
    (("runtime", "thread"), 1, r"runtime\.thread: unknown key; did you mean 'threads'\?"),
    (("formats", 0, "weigths"), 8, r"formats\.0\.weigths: unknown key; did you mean 'weights'\?"),
    (
        ("align", "channel_step", "src"),
        "x",
        r"align\.channel_step\.src: unknown key; did you mean 'source'\?",
    ),
    ((*LEAF, "source"), KeyError, r"latency\.session_us\.source: field required"),
    ((*LEAF, "source"), "", r"latency\.session_us\.source: .*at least 1 character"),
    ((*LEAF, "basis"), KeyError, r"latency\.session_us\.basis: field required"),
    ((*LEAF, "basis"), "guessed", r"latency\.session_us\.basis: input should be 'measured'"),
    ((*LEAF, "value"), math.nan, r"latency\.session_us\.value: input should be a finite number"),
    ((*LEAF, "value"), "7", r"latency\.session_us\.value: input should be a valid number"),
    ((*LEAF, "value"), -1.0, r"latency\.session_us\.value: .*greater than or equal to 0"),
    (LEAF, 7.3, r"latency\.session_us: input should be a valid dictionary"),
    (("latency", "interval_low", "value"), 1.1, r"latency: .*interval_low is at most 1"),
    (("latency", "interval_high", "value"), 0.9, r"latency: .*interval_high at least 1"),
    (("memory", "sram_bytes", "value"), 0, r"memory\.sram_bytes\.value: .*greater than 0"),
    (("validation",), [], "a T1 profile needs at least one validation entry"),
    (("latency",), KeyError, "a T1 profile needs a latency section"),
    (("tier",), "T0", "a T0 profile ranks only"),
    (("tier",), "T9", r"tier: input should be 'T0', 'T1' or 'T2'"),
    (("schema",), "hwprofile/2", r"schema: input should be 'hwprofile/1'"),
    (("id",), "../x", "id: string should match pattern"),
    (
        ("latency", "predictors", 0, "family"),
        "convolution",
        r"latency\.predictors\.0\.family: input should be 'conv'",
    ),
    (
        ("latency", "predictors", 0, "terms"),
        {"works": {"value": 1, "basis": "fitted", "source": "x"}},
        r"latency\.predictors\.0: unknown feature 'works'; did you mean 'work'\?",
    ),
    (("formats", 0, "executes"), KeyError, r"formats\.0: a format names what it executes as"),
    (
        ("latency", "predictors", 0, "correction"),
        {
            "depth": 1,
            "features": "0",
            "thresholds": "nan",
            "leaves": "0 0",
            "lower": "",
            "upper": "",
            "basis": "fitted",
            "source": "x",
        },
        "numbers must be finite",
    ),
    (
        ("latency", "predictors", 0, "correction"),
        {
            "depth": 1,
            "features": "0",
            "thresholds": "1",
            "leaves": "0 0 0",
            "lower": "0",
            "upper": "0",
            "basis": "fitted",
            "source": "x",
        },
        "counts do not fit 1 trees of depth 1",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSALS, ids=lambda item: str(item)[:40])
def test_refuses(plain, path, value, message):
    with pytest.raises(ProfileError, match=message) as caught:
        DeviceProfile.from_plain(changed(plain, path, value), "some.yaml")
    assert str(caught.value).startswith("some.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema: [", r"p\.yaml:1:10: "),
        ("schema: !!python/object:os.system x\n", "tag .* is not allowed"),
        ("a: &x 1\nb: *x\n", "aliases are not allowed|tag"),
        ("a: .nan\n", "not a finite number"),
        ("just text", "valid dictionary"),
    ],
)
def test_refuses_files(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=message):
        read_profile(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ProfileError, match=re.escape(str(tmp_path / "no.yaml"))):
        load_profile(tmp_path / "no.yaml")


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ProfileError, match="did you mean 'stm32-h7a3'"):
        load_profile("stm32-h7")


@pytest.mark.parametrize("name", list_profiles())
def test_library_profiles_load_and_survive_a_round_trip(name, tmp_path):
    from paretopress.hardware_profiles.writing import profile_text

    profile = load_profile(name)
    assert profile.id == name
    datasheets = ("a100", "h100", "h200", "jetson", "rpi5", "ethos")
    measured = name == "x86-zen4-vnni-onnxruntime"
    assert profile.tier == ("T0" if name.startswith(datasheets) else "T2" if measured else "T1")
    path = tmp_path / "copy.yaml"
    path.write_text(profile_text(profile.plain))
    copied = load_profile(path)
    assert copied.fingerprint == profile.fingerprint
    assert copied.plain == profile.plain


def numeric_leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numeric_leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numeric_leaves(item, (*path, index))
    elif isinstance(value, float):
        yield path


@pytest.mark.parametrize("name", list_profiles())
def test_every_figure_has_a_basis_and_a_source(name):
    plain = load_profile(name).plain
    for path in numeric_leaves(plain):
        place = plain
        for part in path[:-1]:
            place = place[part]
        if path[0] != "validation":
            assert path[-1] == "value", path
            assert place["basis"], path
        assert place["source"], path
