import itertools
import json

import numpy as np
import pytest

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.additive_model import AdditiveModel
from paretopress.search.cost_tables import CostTables, LearnedCosts
from paretopress.search.executors import SerialExecutor
from paretopress.search.exploration import explore
from paretopress.search.factors import CostTerm, ExactProblem, evaluate
from paretopress.search.improvement import Attained
from paretopress.search.ledger import Run
from paretopress.search.metric_link import MetricLink
from paretopress.search.option_space import OptionSpace
from paretopress.search.pareto import hypervolume
from paretopress.search.reweighting import Decoder
from paretopress.search.samplers import ExplorationSettings
from paretopress.search.surrogate import Guide
from paretopress.spaces.choices import Keep, Sparse, Weights
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.policy import DENSE

OBJECTIVES = {"accuracy": "max", "size": "min"}


@pytest.fixture
def space(toys):
    return OptionSpace.of(toys.toy_options(3))


def terms_of(space, rng):
    sizes = [len(choices) for choices in space.options]
    pairs = [(0, 1), (1, 2), (3,), (2, 4, 5), ()]
    return tuple(CostTerm(tuple(space.units[one] for one in units), rng.random([sizes[one] for one in units]))
                 for units in pairs)


def rows_of(space, rng, count):
    return np.stack([rng.integers(len(choices), size=count) for choices in space.options], axis=1)


def test_costs_are_the_sums_of_the_terms(space):
    rng = np.random.default_rng(0)
    terms = {"time": terms_of(space, rng), "size": terms_of(space, rng)}
    rows = rows_of(space, rng, 50)
    options = {unit: len(choices) for unit, choices in zip(space.units, space.options, strict=True)}
    expected = [evaluate(ExactProblem(options, {}, one), rows)[0] for one in terms.values()]
    np.testing.assert_allclose(CostTables(space, terms).at(rows), np.stack(expected, axis=1), rtol=1e-12)


def test_costs_without_terms_are_learned(space):
    rng = np.random.default_rng(1)
    parts = [rng.random(len(choices)) for choices in space.options]
    rows = rows_of(space, rng, 300)
    costs = np.array([[sum(part[option] for part, option in zip(parts, row, strict=True)), -5.0] for row in rows])
    learned = LearnedCosts(space, 2)
    for row, cost in zip(rows[:250].tolist(), costs[:250], strict=True):
        learned.add(tuple(row), cost)
    np.testing.assert_allclose(learned.at(rows[250:]), costs[250:], rtol=0.02)


def test_canonical_rows_are_canonical_genomes():
    options = {"a/channels": (None, Keep(0.5), Keep(0.0)), "b/sparsity": (None, Sparse(0.5)),
               "b/weights": (None, Weights(8), Weights(4)), "c/weights": (None, Weights(8))}
    space = OptionSpace.of(options, inside={"a/channels": ("b/weights", "b/sparsity")})
    genomes = list(itertools.product(*(range(len(choices)) for choices in space.options)))
    rows = space.canonical_rows(np.array(genomes))
    assert [tuple(row) for row in rows.tolist()] == [space.canonical(genome) for genome in genomes]


def test_the_model_learns_weights_and_interactions_and_its_interval_holds(space):
    rng = np.random.default_rng(2)
    losses = {unit: [0.0, *np.cumsum(rng.gamma(1.0, 0.02, 3)).tolist()] for unit in space.units}
    table = np.array([losses[unit] for unit in space.units])
    weights = np.exp(rng.normal(0.0, 0.7, len(space.units)))

    def truth(row):
        parts = weights * table[np.arange(len(row)), row]
        return float(parts.sum() + np.sqrt(parts[0] * parts[3])) * float(np.exp(rng.normal(0.0, 0.05)))

    model = AdditiveModel(space, losses, {unit: int(unit[5]) for unit in space.units})
    rows = rows_of(space, rng, 400)
    found = np.array([truth(row) for row in rows])
    plain = np.abs(model.predict(rows[200:])[0] - np.log(found[200:]))
    for row, loss in zip(rows[:200].tolist(), found[:200].tolist(), strict=True):
        model.add(tuple(row), loss)
    learned = np.abs(model.predict(rows[200:])[0] - np.log(found[200:]))
    low, high = model.interval(rows[200:], 0.9)
    assert np.median(learned) < 0.3 * np.median(plain)
    assert 0.8 <= np.mean((low <= found[200:]) & (found[200:] <= high)) <= 0.98
    assert np.corrcoef(np.log(model.multipliers()), np.log(weights))[0, 1] > 0.8


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_the_expected_improvement_is_the_mean_of_true_improvements(costs):
    rng = np.random.default_rng(costs)
    front, reference = rng.random((8, costs + 1)), np.ones(costs + 1)
    attained = Attained(np.zeros(costs), np.ones(costs), 1.0)
    for point in front:
        attained.add(point[:-1], float(point[-1]))
    candidates, losses, errors = 0.5 * rng.random((4, costs)), 0.6 * rng.random(4), rng.uniform(0.02, 0.1, 4)
    before = hypervolume(front, reference)
    expected = []
    for cost, loss, error in zip(candidates, losses, errors, strict=True):
        draws = rng.normal(loss, error, 100)
        expected.append(np.mean([hypervolume(np.vstack([front, [*cost, draw]]), reference) - before for draw in draws]))
    found = attained.improvements(candidates, losses, errors)
    np.testing.assert_allclose(found, expected, rtol=0.15, atol=0.01)


def test_the_link_is_monotone_and_follows_the_trials():
    rng = np.random.default_rng(3)
    link = MetricLink(0.2)
    logs = rng.uniform(-6.0, 0.0, 300)
    for log in logs:
        link.add(float(log), float(0.1 * np.exp(log) + rng.normal(0.0, 0.002)))
    at = np.linspace(-5.0, -0.1, 40)
    means, errors = link.at(at, np.full(40, 1e-6))
    assert (np.diff(means) >= -1e-12).all()
    np.testing.assert_allclose(means, 0.1 * np.exp(at), atol=0.004)
    assert ((errors > 0.0005) & (errors < 0.006)).all()


def test_decoded_policies_are_the_best_ones_by_brute_force(space):
    rng = np.random.default_rng(4)
    losses = {unit: [0.0, *np.cumsum(rng.random(3)).tolist()] for unit in space.units}
    terms = {"time": terms_of(space, rng), "size": terms_of(space, rng)}
    decoder = Decoder(space, losses, terms, hopeless=3.0)
    rows = np.array(list(itertools.product(*(range(len(choices)) for choices in space.options))))
    costs = CostTables(space, terms).at(rows)
    costs = costs / costs[0]
    table = np.array([losses[unit] for unit in space.units])[np.arange(len(space.units)), rows]
    for _ in range(5):
        multipliers, mix, price = rng.uniform(0.2, 3.0, len(space.units)), rng.dirichlet([1, 1]), rng.uniform(0.1, 5.0)
        score = table @ multipliers + price * costs @ mix
        genome = decoder.decode(multipliers, mix, price)
        assert score[(rows == genome).all(axis=1)][0] == pytest.approx(score.min())
    assert decoder.prices[0] < decoder.prices[1]


def guide_of(toys, space):
    losses, terms = {}, [CostTerm((), np.array(100.0))]
    for unit, choices in zip(space.units, space.options, strict=True):
        layer = int(unit[5:unit.index("/")])
        losses[unit] = [toys.LOST[choice] * (1 + (7 * layer) % 3) for choice in choices]
        terms.append(CostTerm((unit,), np.array([-toys.SAVED[choice] * (layer + 1.0) for choice in choices])))

    def price(policy):
        genome = space.genome(policy)
        return {"size": float(CostTables(space, {"size": terms}).at(np.array([genome]))[0, 0])}

    stages = {unit: int(unit[5]) for unit in space.units}
    return Guide(price, losses=losses, terms={"size": tuple(terms)}, stages=stages, hopeless=150.0)


@pytest.mark.parametrize(("sampler", "encoding"), [
    ("pareto", "auto"), ("pareto", "full"), ("nsga2", "reweighted"), ("tpe", "reweighted"),
    pytest.param("gp", "reweighted", marks=pytest.mark.slow), pytest.param("gp", "full", marks=pytest.mark.slow),
])
def test_encodings_resume_to_the_same_lines(toys, tmp_path, space, sampler, encoding):
    trials = 24 if sampler == "gp" else 50
    toy = toys.ToyEvaluator(budget=90.0)

    def evaluate(policy):
        found = toy(policy)
        return found if int(policy.hash, 16) % 7 else Evaluation(State.SCREENED, {}, {}, "proxy")

    def search(path, count):
        settings = ExplorationSettings(sampler, count, seed=4, population=8, encoding=encoding)
        with Run.open(path, {"seed": "4"}, {}) as run, SerialExecutor(evaluate, None) as executor:
            explore(toys.toy_options(3), OBJECTIVES, [DENSE], executor, run, settings, ["size"],
                    guide=guide_of(toys, space))
        lines = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]

    whole = search(tmp_path / "whole", trials)
    assert len({line["policy_hash"] for line in whole}) == trials
    for count in (9, trials // 2, trials):
        parts = search(tmp_path / "parts", count)
    assert parts == whole


def test_what_does_not_go_together_is_refused(toys, tmp_path):
    options = toys.toy_options(12)
    with Run.open(tmp_path, {}, {}) as run, SerialExecutor(toys.ToyEvaluator(), None) as executor:
        with pytest.raises(ConfigError, match=r"gp: 24 units are too many .* at most 20; or encoding reweighted"):
            explore(options, OBJECTIVES, [DENSE], executor, run, ExplorationSettings("gp", 5))
        settings = ExplorationSettings("tpe", 5, encoding="reweighted")
        with pytest.raises(ConfigError, match="there is no sensitivity table to reweight"):
            explore(options, OBJECTIVES, [DENSE], executor, run, settings)
    with pytest.raises(ConfigError, match="sampler evolution proposes a choice per unit"):
        ExplorationSettings("evolution", 5, encoding="reweighted")
    with pytest.raises(ConfigError, match="unknown encoding 'low'"):
        ExplorationSettings("tpe", 5, encoding="low")
