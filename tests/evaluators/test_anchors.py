"""Variants of a model, really timed in ONNX Runtime."""

import pytest
import torch
from torch import nn

from paretopress.compressors.program import build_program
from paretopress.evaluators import anchors
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE
from paretopress.spaces.space import SpaceSettings, build_space

ZEN = "x86-zen4-vnni-onnxruntime"


@pytest.fixture(scope="module")
def example():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1), nn.Flatten()]
    inputs = [torch.randn(4, 3, 12, 12)]
    program = build_program(nn.Sequential(*layers).eval(), tuple(inputs))
    device = DeviceProfile.from_plain({**load_profile(ZEN).plain, "id": "local"}, "test")
    return program, device, build_space(program.structure, [device.capabilities()], SpaceSettings()), inputs


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "paretopress"


def test_the_dense_model_is_priced_as_it_was_timed(example, cache):
    program, device, space, inputs = example
    found = anchors.anchored(device, program, space, inputs)
    (stored,) = cache.glob("anchors-*.json")
    times = anchors._read(device, program, anchors.variants(space))
    assert sorted(times) == sorted(anchors.variants(space))
    view = cost_view(plan(program.structure, DENSE))
    before, after = (abs(one.latency_ms(view).mid / times["dense"] - 1) for one in (device, found))
    assert after < before or after < 0.05
    assert "half width, int8" in found.anchors
    assert stored.stat().st_size < 2000


def test_times_are_taken_once(example, cache, monkeypatch):
    first = anchors.anchored(example[1], example[0], *example[2:])
    monkeypatch.setattr(anchors, "_measure", lambda *_: pytest.fail("timed again"))
    second = anchors.anchored(example[1], example[0], *example[2:])
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("content", ["", "[]", '{"milliseconds": {"dense": -1.0}}', '{"milliseconds": {"other": 1.0}}'])
def test_damaged_times_are_taken_again(example, cache, monkeypatch, content):
    program, device, space, inputs = example
    path = anchors._path(device, program, anchors.variants(space))
    path.parent.mkdir()
    path.write_text(content)
    monkeypatch.setattr(anchors, "_measure", lambda *_: {"dense": 0.1})
    assert "1 network of the model: dense" in anchors.anchored(device, program, space, inputs).anchors
    assert anchors._read(device, program, anchors.variants(space)) == {"dense": 0.1}


def test_other_profiles_stay_as_they_are(example, cache):
    program, _, space, inputs = example
    device = load_profile(ZEN)
    assert anchors.anchored(device, program, space, inputs) is device
    assert not cache.exists()
