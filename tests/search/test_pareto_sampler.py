import pickle
from pathlib import Path

import numpy as np
import optuna
import pytest

from paretopress.search.factors import CostTerm
from paretopress.search.option_space import OptionSpace
from paretopress.search.pareto import hypervolume
from paretopress.search.pareto_sampler import ParetoSampler
from paretopress.search.surrogate import Guide
from paretopress.spaces.choices import Weights
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.policy import Policy

OBJECTIVES = {"accuracy": "max", "size": "min"}


@pytest.fixture
def space(toys):
    return OptionSpace.of(toys.toy_options(3))


def guide_of(toys, space):
    """The toy's true losses and savings as a table and terms."""
    losses, terms = {}, [CostTerm((), np.array(100.0))]
    for unit, choices in zip(space.units, space.options, strict=True):
        layer = int(unit[5:unit.index("/")])
        losses[unit] = [toys.LOST[choice] * (1 + (7 * layer) % 3) for choice in choices]
        terms.append(CostTerm((unit,), np.array([-toys.SAVED[choice] * (layer + 1.0) for choice in choices])))
    return Guide(lambda _policy: {}, losses=losses, terms={"size": tuple(terms)}, limits={"size": 90.0},
                 worst_value=-150.0, hopeless=150.0)


def optimise(sampler, evaluate, trials, study=None):
    study = study or optuna.create_study(directions=sampler.directions, sampler=sampler)

    def objective(trial):
        found = evaluate(sampler.suggest(trial))
        trial.set_constraint("size", found.constraints["size"])
        return found.values["accuracy"], found.values["size"]

    study.optimize(objective, n_trials=trials)
    return study


def policies(sampler, study):
    return [sampler.suggest(optuna.trial.FixedTrial(trial.params)) for trial in study.trials]


def volume(study):
    feasible = [trial for trial in study.trials if all(value <= 0 for value in trial.constraints.values())]
    return hypervolume(np.array([[-trial.values[0], trial.values[1]] for trial in feasible]), [150.0, 90.0])


def test_it_proposes_seeds_first_and_nothing_twice(toys, space):
    seeds = [Policy.of({"layer1/weights": Weights(4)}), Policy.of({"layer0/weights": Weights(2)})]
    sampler = ParetoSampler.over(space, OBJECTIVES, guide=guide_of(toys, space), seeds=seeds)
    study = optimise(sampler, toys.ToyEvaluator(budget=90.0), 80)
    found = policies(sampler, study)
    assert [policy.hash for policy in found[:3]] == [Policy.of({}).hash, *(one.hash for one in seeds)]
    assert len({policy.hash for policy in found}) == 80


@pytest.mark.parametrize("seed", range(3))
def test_sixty_of_4096_policies_give_most_of_the_exact_front(toys, space, seed):
    evaluate = toys.ToyEvaluator(budget=90.0)
    sampler = ParetoSampler.over(space, OBJECTIVES, guide=guide_of(toys, space), seed=seed)
    reached = volume(optimise(sampler, evaluate, 60))
    every = [evaluate(space.policy(space.genome_at(index))) for index in range(space.size)]
    costs = [[-one.values["accuracy"], one.values["size"]] for one in every if one.constraints["size"] <= 0]
    chance = optuna.create_study(directions=sampler.directions, sampler=optuna.samplers.RandomSampler(seed=seed))
    assert reached >= 0.97 * hypervolume(np.array(costs), [150.0, 90.0])
    assert reached > 1.1 * volume(optimise(sampler, evaluate, 60, chance))


def test_a_stored_study_is_continued_alike_by_another_sampler(toys, space, tmp_path):
    evaluate, storage = toys.ToyEvaluator(budget=90.0), f"sqlite:///{tmp_path}/study.db"
    whole = ParetoSampler.over(space, OBJECTIVES, guide=guide_of(toys, space), seed=3)
    wanted = policies(whole, optimise(whole, evaluate, 40))
    for trials in (13, 27):
        sampler = ParetoSampler.over(space, OBJECTIVES, guide=guide_of(toys, space), seed=3)
        study = optuna.create_study(directions=sampler.directions, sampler=sampler, storage=storage,
                                    study_name="one", load_if_exists=True)
        optimise(sampler, evaluate, trials, study)
    assert policies(sampler, study) == wanted
    copied = pickle.loads(pickle.dumps(whole))
    assert copied.space == whole.space


def test_asks_in_parallel_differ_and_failures_and_foreign_trials_are_taken(toys, space):
    sampler = ParetoSampler.over(space, OBJECTIVES, guide=guide_of(toys, space))
    study = optimise(sampler, toys.ToyEvaluator(), 12)
    earlier = {policy.hash for policy in policies(sampler, study)}
    study.enqueue_trial({unit: space.labels[unit][1] for unit in space.units})
    study.add_trial(optuna.create_trial(values=[1.0, 2.0]))
    asked = [study.ask() for _ in range(5)]
    hashes = [sampler.suggest(trial).hash for trial in asked]
    assert len({*hashes, *earlier}) == 5 + 12
    study.tell(asked[0], state=optuna.trial.TrialState.FAIL)
    study.tell(asked[1], [-3.0, 50.0])
    assert sampler.suggest(study.ask()).hash not in hashes


def test_all_parameters_at_once_are_those_of_single_suggestions(toys, space, tmp_path):
    """Live trials take a short way; enqueued and fixed ones, and those of other samplers, Optuna's own."""
    evaluate = toys.ToyEvaluator()
    studies = []
    for way in ("memory", "stored"):
        sampler = ParetoSampler.over(space, OBJECTIVES, seed=3)
        storage = None if way == "memory" else f"sqlite:///{tmp_path / 'a.db'}"
        study = optuna.create_study(directions=sampler.directions, sampler=sampler, storage=storage)
        optimise(sampler, evaluate, 12, study)
        studies.append((sampler, study))
    one = ParetoSampler.over(space, OBJECTIVES, seed=3)
    slow = optuna.create_study(directions=one.directions, sampler=one)

    def single(trial):
        labels = {unit: trial.suggest_categorical(unit, choices) for unit, choices in space.labels.items()}
        found = evaluate(one.suggest(optuna.trial.FixedTrial(labels)))
        trial.set_constraint("size", found.constraints["size"])
        return found.values["accuracy"], found.values["size"]

    slow.optimize(single, n_trials=12)
    for _, study in studies:
        assert [trial.params for trial in study.trials] == [trial.params for trial in slow.trials]
        assert [trial.distributions for trial in study.trials] == [trial.distributions for trial in slow.trials]
    sampler, study = studies[0]
    wanted = {unit: labels[-1] for unit, labels in space.labels.items()}
    study.enqueue_trial(wanted)
    trial = study.ask()
    assert sampler.suggest(trial) == sampler.suggest(optuna.trial.FixedTrial(wanted))
    assert sampler.suggest(trial) == sampler.suggest(trial)   # asked again
    other = optuna.create_study(directions=sampler.directions, sampler=optuna.samplers.RandomSampler(seed=0))
    foreign = other.ask()
    assert sampler.suggest(foreign).hash
    assert foreign.params.keys() == space.labels.keys()


def test_objectives_without_terms_are_learned_and_wrong_studies_refused(toys, space):
    sampler = ParetoSampler.over(space, OBJECTIVES)
    study = optimise(sampler, toys.ToyEvaluator(budget=90.0), 60)
    assert len({policy.hash for policy in policies(sampler, study)}) == 60
    wrong = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    with pytest.raises(ConfigError, match=r"do not fit the sampler's objectives: accuracy \(max\), size \(min\)"):
        sampler.suggest(wrong.ask())
    guide = guide_of(toys, space)
    with pytest.raises(ConfigError, match="nothing to measure"):
        ParetoSampler.over(space, {"size": "min"}, guide=guide)
    with pytest.raises(ConfigError, match="objective 'size': a cost with terms is minimised"):
        ParetoSampler.over(space, {"accuracy": "max", "size": "max"}, guide=guide)


@pytest.mark.slow
def test_the_example_of_the_guide_runs():
    from paretopress.demo.factories import data, model

    text = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    code = text.partition("### Your own Optuna study")[2].partition("```python\n")[2].partition("```")[0]
    names = {"model": model(), "data": data()}
    exec(compile(code, "guide.md", "exec"), names)
    found = {policy.hash for policy in names["policies"]}
    assert len(names["study"].trials) == 50
    assert 3 <= len(found) == len(names["policies"])
    proposed = {names["sampler"].suggest(optuna.trial.FixedTrial(one.params)).hash for one in names["study"].trials}
    assert len(proposed) == 50
