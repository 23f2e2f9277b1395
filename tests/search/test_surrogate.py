"""The surrogate: exact where the divergence is a product over choices, and its descent stays within limits."""

import itertools
import math
import random

import numpy as np
import pytest

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import SerialExecutor
from paretopress.search.exploration import ExplorationSettings, explore
from paretopress.search.ledger import Run
from paretopress.search.option_space import OptionSpace
from paretopress.search.records import TrialState
from paretopress.search.surrogate import FEWEST, Guide, Surrogate, descend
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.policy import DENSE, Policy

UNITS = tuple(f"layer{index}" for index in range(8))
OPTIONS = {
    **{f"{unit}/channels": (None, Keep(0.75), Keep(0.5), Keep(0.25)) for unit in UNITS},
    **{f"{unit}/weights": (None, Weights(8), Weights(4), Weights(2)) for unit in UNITS},
}
SPACE = OptionSpace.of(OPTIONS)
OBJECTIVES = {"accuracy": "max", "latency": "min", "size": "min"}
RNG = np.random.default_rng(0)
EFFECT = {unit: (0.0, *np.sort(RNG.uniform(0.02, 1.2, 3))) for unit in SPACE.units}


def logarithm(genome):
    """Of the divergence: a sum over the choices."""
    return -6.0 + sum(EFFECT[unit][option] for unit, option in zip(SPACE.units, genome, strict=True))


def costs(policy):
    """Time by channels alone, bytes by both."""
    time, size = 0.0, 0.0
    for unit in UNITS:
        keep, weights = policy.choices.get(f"{unit}/channels"), policy.choices.get(f"{unit}/weights")
        ratio = keep.ratio if keep else 1.0
        time += ratio
        size += ratio * (weights.bits if weights else 32) / 32
    return {"latency": time, "size": size}


def price(genome):
    found = costs(SPACE.policy(genome))
    return [found["latency"], found["size"]]


def taught(count, losses=None, seed=0):
    rng, surrogate = random.Random(seed), Surrogate(SPACE, losses or {}, ("latency", "size"))
    for _ in range(count):
        genome = SPACE.scattered(SPACE.dense, rng)
        surrogate.add(genome, {"divergence": math.exp(logarithm(genome)), **costs(SPACE.policy(genome))})
    return surrogate


def others(count):
    rng = random.Random(99)
    return [tuple(rng.randrange(len(options)) for options in SPACE.options) for _ in range(count)]


@pytest.mark.parametrize(("trials", "worst"), [(40, 0.6), (400, 0.06), (4000, 0.01)])
def test_predictions_come_near_the_sum_with_few_trials_and_with_more_than_features(trials, worst):
    surrogate, genomes = taught(trials), others(200)
    errors = surrogate.divergences(genomes) - [logarithm(genome) for genome in genomes]
    spread = np.std([logarithm(genome) for genome in genomes])
    assert np.std(errors) < worst * spread


def test_the_table_makes_up_for_trials():
    """Divergences that are the sum of single losses: a few trials are enough to know how far they add up."""
    losses = {unit: tuple(0.01 * effect for effect in EFFECT[unit]) for unit in SPACE.units}
    genomes = others(200)

    def total(genome):
        return sum(losses[unit][option] for unit, option in zip(SPACE.units, genome, strict=True))

    def errors(table):
        rng, surrogate = random.Random(1), Surrogate(SPACE, table, ("latency", "size"))
        for _ in range(FEWEST):
            genome = SPACE.scattered(SPACE.dense, rng)
            surrogate.add(genome, {"divergence": 3.0 * total(genome), **costs(SPACE.policy(genome))})
        return np.std(surrogate.divergences(genomes) - np.log([3.0 * total(genome) for genome in genomes]))

    assert errors(losses) < 0.5 * errors({})


def test_a_trial_without_divergence_teaches_costs_alone():
    surrogate = taught(FEWEST - 1)
    assert not surrogate.informed
    surrogate.add(SPACE.dense, {"latency": 8.0, "size": 8.0})
    surrogate.add(SPACE.dense, {"latency": math.inf, "size": 8.0, "divergence": 1.0})
    assert not surrogate.informed
    surrogate.add(SPACE.dense, {"latency": 8.0, "size": 8.0, "divergence": 0.1})
    assert surrogate.informed


@pytest.mark.parametrize("limits", [(5.0, 8.0), (8.0, 1.0), (6.0, 1.2), (math.inf, 2.0)])
def test_a_descent_ends_within_the_limits_near_the_best_that_there_is(limits):
    surrogate = taught(600)
    start = tuple(len(options) - 1 for options in SPACE.options)
    seen = {start}
    found = descend(surrogate, SPACE, start, price, limits, seen, random.Random(0))
    assert found is not None
    assert all(cost <= limit for cost, limit in zip(price(found), limits, strict=True))
    best = min(logarithm(genome) for genome in within(limits))
    assert logarithm(found) < best + 0.25 * (logarithm(start) - best)
    again = descend(surrogate, SPACE, start, price, limits, {*seen, found}, random.Random(0))
    assert again != found


def within(limits):
    """Per layer all choices are alike in cost but not in effect: the best of each number of layers per choice."""
    pairs = list(itertools.product(range(4), range(4)))
    states = {(0.0, 0.0): (0.0, ())}
    for unit in UNITS:
        fresh = {}
        for (time, size), (value, chosen) in states.items():
            for keep, bits in pairs:
                policy = {f"{unit}/channels": OPTIONS[f"{unit}/channels"][keep],
                          f"{unit}/weights": OPTIONS[f"{unit}/weights"][bits]}
                ratio = policy[f"{unit}/channels"].ratio if keep else 1.0
                width = policy[f"{unit}/weights"].bits if bits else 32
                place = (time + ratio, round(size + ratio * width / 32, 6))
                worth = value + EFFECT[f"{unit}/channels"][keep] + EFFECT[f"{unit}/weights"][bits]
                if place not in fresh or worth < fresh[place][0]:
                    fresh[place] = (worth, (*chosen, (keep, bits)))
        states = fresh
    best = min((value, chosen) for (time, size), (value, chosen) in states.items()
               if time <= limits[0] and size <= limits[1])
    options = {f"{unit}/{kind}": option for unit, pair in zip(UNITS, best[1], strict=True)
               for kind, option in zip(("channels", "weights"), pair, strict=True)}
    return [tuple(options[unit] for unit in SPACE.units)]


def one_by_one(surrogate, space, start, price, limits, seen, rng):
    """The rule of a descent with a genome at a time, as it was before it worked on arrays."""
    generator = np.random.default_rng(rng.getrandbits(64))
    sizes = np.array([len(choices) for choices in space.options])
    current, value, costs = start, float(surrogate.divergences([start])[0]), price(start)
    best = None
    for _ in range(12):
        rows = np.tile(np.array(current), (384, 1))
        for change in range(3):
            changed = np.flatnonzero(generator.integers(3, size=384) >= change)
            units = generator.integers(len(sizes), size=len(changed))
            rows[changed, units] = generator.integers(sizes[units])
        found = [one for one in dict.fromkeys(space.canonical(tuple(row)) for row in rows.tolist()) if one != current]
        worth = []
        for place, one in enumerate(found):
            expected = np.log(costs) + surrogate.costs([one])[0] - surrogate.costs([current])[0]
            if (expected <= np.log(limits) + 0.02).all():
                worth.append((float(surrogate.divergences([one])[0]), place))
        for predicted, place in sorted(worth)[:12]:
            priced = price(found[place])
            if all(cost <= limit for cost, limit in zip(priced, limits, strict=True)):
                if found[place] not in seen and (best is None or predicted < best[0]):
                    best = (predicted, found[place])
                break
        else:
            break
        if predicted >= value:
            break
        current, value, costs = found[place], predicted, priced
    return None if best is None else best[1]


@pytest.mark.parametrize("seed", range(6))
def test_a_descent_on_arrays_is_the_descent_one_by_one(seed):
    """Random tables, with branches that hide the units inside them."""
    rng = np.random.default_rng(seed)
    inside = {"layer1/channels": ("layer2/channels", "layer2/weights")}
    options = {**OPTIONS, "layer1/channels": (None, Keep(0.75), Keep(0.0))}
    space = OptionSpace.of(options, inside=inside)
    effects = [rng.uniform(0.0, 1.0, len(choices)) for choices in space.options]
    shares = [rng.uniform(0.2, 1.0, (2, len(choices))) for choices in space.options]

    def priced(genome):
        return sum(share[:, option] for share, option in zip(shares, genome, strict=True)).tolist()

    table = {unit: effect.tolist() for unit, effect in zip(space.units, effects, strict=True)} if seed % 2 else {}
    surrogate, draw = Surrogate(space, table, ("latency", "size")), random.Random(seed)
    for _ in range(150):
        genome = space.canonical(space.scattered(space.dense, draw))
        values = dict(zip(("latency", "size"), priced(genome), strict=True))
        effect = sum(one[option] for one, option in zip(effects, genome, strict=True))
        surrogate.add(genome, {"divergence": math.exp(effect - 9.0), **values})
    start = space.canonical(space.scattered(space.dense, draw))
    for limits in (priced(start), [0.9 * priced(start)[0], math.inf]):
        found = [rule(surrogate, space, start, priced, limits, {start}, random.Random(seed))
                 for rule in (descend, one_by_one)]
        assert found[0] == found[1]


def test_nothing_is_proposed_where_nothing_unseen_is_affordable():
    surrogate = taught(100)
    start = SPACE.dense
    assert descend(surrogate, SPACE, start, price, (0.1, 0.1), {start}, random.Random(0)) is None


def test_what_a_device_cannot_execute_is_never_proposed():
    surrogate, start = taught(400), (len(OPTIONS["layer0/weights"]) - 1,) * len(SPACE.units)

    def refusing(genome):
        time, size = price(genome)
        return [time if genome[SPACE.units.index("layer0/weights")] else math.inf, size]

    limits, seen = (math.inf, math.inf), set()
    for seed in range(5):
        found = descend(surrogate, SPACE, start, refusing, limits, seen, random.Random(seed))
        assert found is not None
        assert found[SPACE.units.index("layer0/weights")] != 0
        seen.add(found)


def search(path, guide, trials):
    def evaluate(policy):
        genome, found = SPACE.genome(policy), costs(policy)
        over = {"latency": found["latency"] - LIMIT}
        if over["latency"] > 0.1 * LIMIT:
            return Evaluation(State.SCREENED, found, over, "too slow")
        divergence = math.exp(logarithm(genome))
        return Evaluation(State.COMPLETE, {"accuracy": 0.9 - divergence, "divergence": divergence, **found}, over)

    seeds = [DENSE, Policy.of({f"{unit}/channels": Keep(0.5) for unit in UNITS})]
    with Run.open(path, {}, {}) as run, SerialExecutor(evaluate, None) as executor:
        return explore(OPTIONS, OBJECTIVES, seeds, executor, run, ExplorationSettings("nsga2", trials),
                       constraints=("latency",), guide=guide)


LIMIT = 5.0


def test_a_guided_exploration_finds_less_divergent_policies_within_a_budget_in_as_many_trials(tmp_path):
    def least(records):
        return min(one.values["divergence"] for one in records if one.state is TrialState.COMPLETE and one.feasible)

    guided = search(tmp_path / "guided", Guide(costs, {"latency": LIMIT}), 150)
    plain = search(tmp_path / "plain", None, 150)
    best = math.exp(min(logarithm(genome) for genome in within((LIMIT, math.inf))))
    assert least(guided) < 0.9 * least(plain)
    assert least(guided) < 1.25 * best


def test_a_guided_exploration_that_is_continued_equals_an_uninterrupted_one(tmp_path):
    guide = Guide(costs, {"latency": LIMIT})
    whole = search(tmp_path / "whole", guide, 120)
    search(tmp_path / "parts", guide, 70)
    parts = search(tmp_path / "parts", guide, 120)
    assert [one.policy.hash for one in parts] == [one.policy.hash for one in whole]
