from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from paretopress.hardware_profiles.accuracy import accuracy, spearman
from paretopress.hardware_profiles.correction import INPUTS, fit_trees, from_text, shape_inputs, to_text
from paretopress.hardware_profiles.coverage import held_out_errors
from paretopress.hardware_profiles.features import columns, matrix
from paretopress.hardware_profiles.fit import fit_model, network_us, with_interval
from paretopress.hardware_profiles.networks import MODES, random_network
from paretopress.hardware_profiles.terms import X86, derived_families
from paretopress.hardware_profiles.timing import Timed

SESSION, PROFILER = 5.0, 2.0


def kernel_times(kernels):
    """A device that follows the aligned roofline: a constant, work and bytes, int8 four times as fast."""
    times = []
    for kernel in kernels:
        int8 = kernel.activation_bits == 8
        work = "window_reads" if kernel.family == "depthwise" else "work"
        if kernel.family in ("conv", "grouped", "depthwise", "linear"):
            features = matrix(columns([kernel]), [work, "inputs"], X86["int8" if int8 else "float32"])[0]
            times.append(0.5 + (0.25 if int8 else 1.0) * features @ [0.02, 0.1])
        else:
            times.append(0.5 + kernel.input_elements / 1e4)
    return np.array(times)


def simulated(count, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    result = []
    for index in range(count):
        network = random_network(1000 * seed + index, MODES[index % 3])
        kernels = kernel_times(network.view.kernels)
        boundaries = np.array([0.2 + item.elements / 1e4 for item in network.view.boundaries])
        wall = (SESSION + kernels.sum() + boundaries.sum()) * np.exp(noise * random.standard_normal())
        seen = np.floor(kernels + PROFILER + random.random(len(kernels)))
        result.append(
            Timed(network, wall, seen, np.ones(len(kernels)), boundaries + PROFILER, np.ones(len(boundaries)))
        )
    return result


@pytest.fixture(scope="module")
def timed():
    return simulated(120, noise=0.02)


def test_recovers_a_roofline_device_from_truncated_kernel_times(timed):
    fitted = fit_model("simulated", timed, trees=False)
    held = simulated(40, seed=1)
    result = accuracy(network_us(fitted.model, held), np.array([item.wall for item in held]))
    assert result.mape < 0.06
    assert result.spearman > 0.99
    assert fitted.profiler_us == pytest.approx(PROFILER, abs=0.7)
    for model in fitted.model.families.values():
        assert (model.coefficients >= 0).all()


def test_predictions_do_not_depend_on_the_order_of_networks(timed):
    first = fit_model("a", timed, trees=False)
    second = fit_model("b", timed[::-1], trees=False)
    np.testing.assert_allclose(network_us(first.model, timed), network_us(second.model, timed), rtol=1e-5)


def test_unmeasured_families_are_derived(timed):
    kept = [
        item
        for item in timed
        if not any(k.family in ("norm", "grouped", "pool") for k in item.network.view.kernels)
    ]
    model = derived_families(fit_model("partial", kept, trees=False).model)
    names = {(family.value, executed) for family, executed in model.families}
    assert {("norm", "float32"), ("grouped", "int8"), ("pool", "int8"), ("matmul", "float32")} <= names


def test_trees_learn_what_the_roofline_misses():
    kernels = [
        k for seed in range(150) for k in random_network(seed, "int8").view.kernels if k.family == "conv"
    ]
    inputs = shape_inputs(columns(kernels), X86["int8"])
    residual = np.where(inputs[:, 1] > 5, 0.4, -0.2) + np.where(inputs[:, 4] > 0, 0.3, 0.0)
    half = len(inputs) // 2
    trees = fit_trees(inputs[:half], residual[:half], np.ones(half))
    error = np.abs(trees.predict(inputs[half:]) - residual[half:]).mean()
    assert error < 0.1 * np.abs(residual - residual.mean()).mean() + 0.02


def test_trees_do_not_extrapolate():
    random = np.random.default_rng(0)
    inputs = random.random((100, INPUTS))
    trees = fit_trees(inputs, inputs[:, 0], np.ones(100))
    edge = np.ones((1, INPUTS)) * inputs.max(axis=0)
    np.testing.assert_array_equal(trees.predict(edge), trees.predict(edge * 1e6))


def test_trees_survive_text():
    random = np.random.default_rng(1)
    inputs = np.round(random.random((200, INPUTS)) * 8)
    trees = fit_trees(inputs, np.sin(inputs[:, 0]), np.ones(200))
    shape = trees.thresholds.shape
    stored = replace(
        trees,
        thresholds=from_text(to_text(trees.thresholds)).reshape(shape),
        leaves=from_text(to_text(trees.leaves)).reshape(trees.leaves.shape),
    )
    np.testing.assert_allclose(stored.predict(inputs), trees.predict(inputs), rtol=1e-3, atol=1e-4)


def test_spearman_equals_scipy_with_ties():
    random = np.random.default_rng(2)
    left, right = random.integers(0, 6, 50).astype(float), random.integers(0, 6, 50).astype(float)
    assert spearman(left, right) == pytest.approx(spearmanr(left, right).statistic)
    assert spearman(left, np.zeros(50)) == 0.0


def test_accuracy_of_known_errors():
    result = accuracy(np.array([1.0, 1.05, 2.0, 0.5]), np.ones(4))
    assert result.mape == pytest.approx((0 + 0.05 + 1.0 + 0.5) / 4)
    assert result.within10 == 0.5
    assert result.n == 4


@pytest.mark.parametrize(("factor", "low", "high"), [(0.9, 0.9, 1.0), (1.1, 1.0, 1.1)])
def test_the_interval_holds_the_prediction_even_where_all_held_out_networks_are_on_one_side(factor, low, high):
    predicted = np.array([1.0, 2.0, 3.0])
    fitted = fit_model("device", simulated(40), trees=False)
    model = with_interval(fitted.model, accuracy(predicted, factor * predicted))
    assert (model.low, model.high) == pytest.approx((low, high))


def test_held_out_errors_are_small_where_kernels_follow_the_roofline(timed):
    errors = held_out_errors(timed)
    assert len(errors) > 10
    assert np.median(list(errors.values())) < 0.15


def test_clock_times_of_networks_tell_which_kernels_the_roofline_misses(timed):
    """Kernels of many channels take twice as long as they should, and no profiler says so."""
    def slower(item):
        kernels = item.network.view.kernels
        more = sum(t for k, t in zip(kernels, kernel_times(kernels), strict=True) if k.cout > 48)
        nothing = np.zeros(len(kernels)), np.zeros(len(kernels))
        rest = np.zeros(len(item.boundaries)), np.zeros(len(item.boundaries))
        return Timed(item.network, item.wall + more, *nothing, *rest, complete=False)

    changed = [slower(item) for item in [*timed, *simulated(120, noise=0.02, seed=2)]]
    held = [slower(item) for item in simulated(40, seed=1)]
    walls = np.array([item.wall for item in held])
    plain, corrected = (fit_model("simulated", changed, trees=trees).model for trees in (False, True))
    errors = [accuracy(network_us(model, held), walls).mape for model in (plain, corrected)]
    assert errors[1] < 0.9 * errors[0]


def test_conversions_are_learnt_from_the_clock_whatever_the_profiler_adds_to_their_nodes(timed):
    """Three short nodes per conversion, on each of which the profiler spends less than on a kernel."""
    cost, dearest = 4.0, PROFILER + 1.5

    def converted(item):
        count = len(item.boundaries)
        kernels = item.kernels + (dearest - PROFILER)
        wall = item.wall + cost * count
        return replace(item, wall=wall, kernels=kernels, boundaries=np.full(count, cost + 3 * PROFILER),
                       boundary_events=np.full(count, 3.0))

    fitted = fit_model("simulated", [converted(item) for item in timed], trees=False)
    held = [converted(item) for item in simulated(40, seed=1) if len(item.boundaries) > 2]
    predicted = np.array([fitted.model.boundary_us(item.network.view.boundaries).sum() for item in held])
    real = np.array([sum(0.2 + cost + one.elements / 1e4 for one in item.network.view.boundaries) for item in held])
    assert np.median(predicted / real) == pytest.approx(1.0, abs=0.25)
    walls = np.array([item.wall for item in held])
    assert accuracy(network_us(fitted.model, held), walls).mape < 0.06
