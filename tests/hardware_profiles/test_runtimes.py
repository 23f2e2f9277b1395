"""Every runtime computes what ONNX Runtime computes; those that are not installed say how to install them."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from paretopress.hardware_profiles import runtimes
from paretopress.hardware_profiles.coverage import Coverage, stratum_of
from paretopress.hardware_profiles.networks import MODES, random_network
from paretopress.hardware_profiles.runtime_onnxruntime import open_session
from paretopress.hardware_profiles.runtimes import open_runtime
from paretopress.hardware_profiles.timing import open_reference, time_network
from paretopress.hardware_profiles.timing_protocol import paced_calls_us, sample_inputs, standard_error
from paretopress.spaces.errors import ConfigError


def computed(network):
    inputs = sample_inputs(network.input_shape)
    return inputs, open_session(network.model).run(None, {"input": inputs})[0]


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_float_networks_mean_the_same_in_torch(seed):
    from paretopress.hardware_profiles.runtime_torch import OnnxModule

    network = random_network(seed, "float32")
    inputs, expected = computed(network)
    found = OnnxModule(network.model)(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.parametrize("mode", MODES)
def test_openvino_times_the_same_networks_with_profiles_of_their_kernels(mode):
    runtime = open_runtime("openvino")
    network = random_network(7, mode)
    inputs, expected = computed(network)
    found = next(iter(runtime.open(network.model, inputs)().values()))
    tolerance = 1e-3 if mode == "float32" else 0.1    # integers are rounded elsewhere
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())
    timed = time_network(network, runtime, open_reference(runtime), 1.0)
    assert timed.wall > 0
    assert not timed.complete
    assert len(timed.kernels) == len(network.view.kernels)


def test_a_missing_runtime_says_what_to_install(monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda _: None)
    for name in ("openvino", "executorch"):
        with pytest.raises(ConfigError, match=rf"install it with: pip install 'paretopress\[{name}\]'"):
            open_runtime(name)
    with pytest.raises(ConfigError, match="did you mean 'openvino'"):
        open_runtime("open-vino")


def test_timing_stops_once_it_is_certain():
    class Steady:
        def slowness(self):
            return 1.0

    calls = []
    few, _ = paced_calls_us(lambda: calls.append(0), 5000, 10, Steady(), confident=10.0)
    assert 80 <= len(few) < 5000
    assert len(paced_calls_us(lambda: None, 100, 10, Steady())[0]) == 100
    assert standard_error(np.ones(10), np.ones(10)) == np.inf
    assert standard_error(np.full(64, 2.0), np.ones(64)) == 0.0


def test_coverage_asks_for_what_is_unknown_and_for_what_is_predicted_badly():
    networks = [random_network(seed, "float32") for seed in (1, 2, 3)]
    coverage = Coverage()
    before = coverage.need(networks[0])
    for _ in range(5):
        coverage.add(networks[0])
    assert coverage.need(networks[0]) < before / 3
    strata = {stratum_of(kernel) for kernel in networks[0].view.kernels}
    coverage.errors = dict.fromkeys(strata, 0.05)
    known = coverage.need(networks[0])
    coverage.errors = dict.fromkeys(strata, 0.5)
    assert coverage.need(networks[0]) == pytest.approx(known * 0.5 / 0.1 / 0.1)
    assert coverage.choose(networks) == int(np.argmax([coverage.need(network) for network in networks]))
