"""Pricing many policies at once: the same numbers as pricing each alone, whatever the model, choices and devices."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.costs import CostModel
from paretopress.evaluators.price_tables import KeyTable
from paretopress.evaluators.pricing import PolicyPricer, price_policies
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.search.option_space import OptionSpace
from paretopress.spaces.choices import Factorised, Weights
from paretopress.spaces.errors import ConfigError, PolicyError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.space import SpaceSettings, build_space

sys.path.insert(0, str(Path(__file__).parents[1] / "spaces"))
from space_zoo import ZOO, specimen

DEVICES = ("x86-zen4-vnni-onnxruntime", "cortex-a76-tflite", "stm32-h7a3", "h200-sxm")
EVERYTHING = SpaceSettings(
    rank_kinds=("svd", "nmf", "spatial", "tucker"), sparsity=(0.5, "2:4", "0.25 in 4x1"), halves=("fp16", "bf16"),
    schemes=("symmetric", "asymmetric", "tensor"), groups=(0, 32), clusters=(4,), binary=(1, 2), end_bits=2,
)


def case_of(structure, inside=None, devices=DEVICES):
    """A pricer on four devices, one of which only ranks and one of which refuses floats, and its option space."""
    costs = CostModel(tuple(load_profile(name) for name in devices)).relative_to(structure)
    space = build_space(structure, [costs.devices[0].capabilities()], EVERYTHING)
    options = OptionSpace.of(space.options, inside=inside)
    return costs, options, PolicyPricer(structure, dict(zip(options.units, options.options, strict=True)), costs)


def draw(options, count, seed):
    """Policies from nearly dense to everything changed, every third with 8-bit activations wherever there are."""
    rng = random.Random(seed)
    integer = [next((n for n, c in enumerate(choices) if getattr(c, "activations", 0) == 8), 0)
               for choices in options.options]
    found = []
    for number in range(count):
        start = tuple(integer) if number % 3 == 0 else options.dense
        found.append(options.canonical(options.scattered(start, rng)))
    return found


def compare(structure, costs, options, pricer, genomes):
    found = pricer.predict(np.array(genomes, dtype=np.int64).reshape(len(genomes), len(options.units)))
    for row, genome in enumerate(genomes):
        policy = options.policy(genome)
        wanted = costs.predict(plan(structure, policy))
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name][row] == pytest.approx(value, rel=1e-9), (name, policy.to_plain()["units"])


@pytest.mark.parametrize("name", ZOO)
def test_every_wiring_is_priced_as_alone(name):
    structure = specimen(name).structure
    costs, options, pricer = case_of(structure)
    if options.units:
        compare(structure, costs, options, pricer, [options.dense, *draw(options, 11, name)])


@pytest.mark.parametrize("name", ["cifar_resnet", "in_place"])
def test_memory_of_runtimes_that_write_over_their_inputs_is_that_of_plans(name):
    structure = specimen(name).structure
    known = load_profile(DEVICES[0])
    document = known.plain | {"memory": {**known.plain.get("memory", {}), "in_place": {
        "families": ["add", "elementwise"], "basis": "measured", "source": "a runtime of this test"}}}
    costs = CostModel((known, DeviceProfile.from_plain({**document, "id": "in-place"}, "test")))
    space = build_space(structure, [known.capabilities()], EVERYTHING)
    options = OptionSpace.of(space.options)
    pricer = PolicyPricer(structure, dict(zip(options.units, options.options, strict=True)), costs)
    compare(structure, costs, options, pricer, [options.dense, *draw(options, 5, name)])
    rows = np.array([options.dense], dtype=np.int64)
    found = pricer.predict(rows)
    assert found["peak_memory@in-place"][0] <= found[f"peak_memory@{known.id}"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet56_cifar", "resnext50", "mobilenet_v3", "densenet", "deeplab", "convnext"])
def test_networks_of_the_zoo_are_priced_as_alone(name):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from zoo import registry

    from paretopress.spaces.capture import capture
    from paretopress.spaces.structure import analyse

    example = registry.build(name)
    structure = analyse(capture(example.model, example.args), example.model)
    costs, options, pricer = case_of(structure)
    compare(structure, costs, options, pricer, draw(options, 12, name))


@pytest.fixture(scope="module")
def residual():
    """A residual network with branches that may be dropped, on two devices that run everything."""
    structure = specimen("cifar_resnet").structure
    costs, options, pricer = case_of(structure, devices=(DEVICES[0], DEVICES[3]))
    return structure, costs, options, pricer


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_mixture_of_dropped_branches_and_formats(residual, data):
    structure, costs, options, pricer = residual
    genome = options.canonical(tuple(data.draw(st.integers(0, len(choices) - 1)) for choices in options.options))
    compare(structure, costs, options, pricer, [genome])


def test_branches_are_dropped_in_these_draws(residual):
    structure, _, options, _ = residual
    kept = [plan(structure, options.policy(genome)).kept for genome in draw(options, 24, "cifar_resnet")]
    assert {sum(count == 0 for count in one.values()) for one in kept} >= {0, 1, 2}


def test_what_is_priced_together_does_not_matter(residual, monkeypatch):
    """To the last bit: what a search proposes must not depend on what was priced before."""
    structure, costs, options, pricer = residual
    rows = np.array(draw(options, 20, "together"), dtype=np.int64)
    fresh = PolicyPricer(structure, dict(zip(options.units, options.options, strict=True)), costs)
    together = fresh.predict(rows[::-1])
    monkeypatch.setattr("paretopress.evaluators.pricing.CHUNK", 3)
    for name, values in pricer.predict(rows).items():
        assert values.tolist() == together[name][::-1].tolist(), name


def test_policies_of_no_space_are_priced_too(residual):
    structure, costs, options, _ = residual
    policies = [options.policy(genome) for genome in draw(options, 9, "free")] + [DENSE]
    found = price_policies(structure, costs, policies)
    for row, policy in enumerate(policies):
        for name, value in costs.predict(plan(structure, policy)).items():
            assert found[name][row] == pytest.approx(value, rel=1e-9)
    assert price_policies(structure, costs, [])["size"].shape == (0,)


def test_robust_is_the_worst_ratio_over_devices(residual):
    _, costs, options, pricer = residual
    rows = np.array([options.dense, *draw(options, 12, "robust")], dtype=np.int64)
    found = pricer.predict(rows)
    ratios = [found[name] / found[name][0] for name in costs.latency_names]
    assert found["robust"].tolist() == pytest.approx(np.max(ratios, axis=0).tolist())
    assert found["robust"][0] == 1.0
    worst = {int(np.argmax([ratio[row] for ratio in ratios])) for row in range(1, 13)}
    assert worst == {0, 1}   # neither device always is


def test_rows_are_checked(residual):
    _, _, options, pricer = residual
    with pytest.raises(ConfigError, match=r"shape \(n, \d+\), got \(2, 1\)"):
        pricer.predict(np.zeros((2, 1), dtype=np.int64))
    wrong = np.zeros((2, len(options.units)), dtype=np.int64)
    wrong[1, 3] = 99
    with pytest.raises(ConfigError, match=rf"row 1: unit {options.units[3]!r} has options 0..\d+, got 99"):
        pricer.predict(wrong)
    with pytest.raises(PolicyError, match="unknown unit 'conv9/weights'"):
        pricer.rows([Policy.of({"conv9/weights": Weights(8)})])
    with pytest.raises(PolicyError, match="is not an option of unit"):
        pricer.rows([Policy.of({"conv1/rank": Factorised("svd", 7)})])


@settings(max_examples=50, deadline=None)
@given(
    radices=st.lists(st.sampled_from([2, 7, 1000, 1 << 20, 1 << 31]), min_size=1, max_size=8),
    seed=st.integers(0, 9),
)
def test_keys_of_any_radices_tell_rows_apart(radices, seed):
    """Also where the number of keys exceeds what 63 bits hold."""
    rng = np.random.default_rng(seed)
    digits = np.stack([rng.integers(0, min(radix, 3), 40) * (radix // 3 or 1) % radix for radix in radices])
    table = KeyTable(radices, 1)
    for part in (digits[:, :25], digits):
        codes = table.codes(list(part), part.shape[1])
        same = (part[:, :, None] == part[:, None, :]).all(axis=0)
        assert ((codes[:, None] == codes[None, :]) == same).all()
        absent, positions = table.missing(codes)
        table.add(absent, part[:, positions].sum(axis=0)[:, None].astype(float))
        assert table.rows(codes)[:, 0].tolist() == part.sum(axis=0).tolist()
