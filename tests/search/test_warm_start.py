"""Searches that start from another model's run: they find as much, are repeatable, and survive wrong libraries."""

import json
from dataclasses import replace

import pytest
import torch

from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.search.ledger import read_run
from paretopress.search.observer import Silent
from paretopress.search.policy_library import recipe_of_run
from paretopress.search.policy_reuse import reuse
from paretopress.search.problem import prepare_problem
from paretopress.search.session import run_search
from paretopress.search.warm_start import cold_seeds, worth_trying
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.errors import ConfigError, PolicyError
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import Recipe


class Heard(Silent):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)

    warning = message


@pytest.fixture(scope="module")
def wider(tiny):
    """The tiny network with more channels, solved on the same samples."""

    class Wider(tiny.module.Tiny):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(1, 24, 3, padding=1, bias=False)
            self.norm = torch.nn.BatchNorm2d(24)
            self.depthwise = torch.nn.Conv2d(24, 24, 3, padding=1, groups=24)
            self.second = torch.nn.Conv2d(24, 32, 3, stride=2, padding=1)
            self.last = torch.nn.Linear(32, 4)

    torch.manual_seed(3)
    network = Wider().eval()
    inputs, labels = tiny.module.samples(512, 1)
    with torch.no_grad():
        features = torch.cat([network.features(inputs).double(), torch.ones(512, 1)], 1)
        wanted = 8 * torch.nn.functional.one_hot(labels, 4).double() - 2
        solved = torch.linalg.solve(features.T @ features + 1e-3 * torch.eye(33), features.T @ wanted)
        network.last.weight.copy_(solved[:-1].T)
        network.last.bias.copy_(solved[-1])
    return network


def searched(network, data, settings, path, library, trials):
    observer = Heard()
    settings = replace(settings, library=library, trials=trials, finalists=1)
    run_search(network, data, settings, path, observer=observer)
    return json.loads((path / "transfer.json").read_text()), observer.lines


@pytest.mark.slow
def test_a_warm_search_measures_less_and_can_be_interrupted(
    tiny, tiny_settings, tiny_run, wider, tmp_path, monkeypatch
):
    monkeypatch.setattr("paretopress.search.session.verify_finalists", lambda *_, **__: [])
    library = (recipe_of_run(tiny_run.path),)
    found, lines = searched(wider, tiny.module.data(), tiny_settings, tmp_path / "once", library, 30)
    cells = sum(len(row) - 1 for row in found["losses"].values())
    assert found["predicted"]
    assert found["measured"] < cells
    assert any("are predicted from" in line for line in lines)
    assert found["coverage"][0] > 0.9
    assert any(one["relied_on"] for one in found["rounds"])
    assert found["refined"]
    assert {"unit", "sources", "distance", "how"} <= found["mapping"]["units"][0].keys()
    searched(wider, tiny.module.data(), tiny_settings, tmp_path / "twice", library, 13)
    searched(wider, tiny.module.data(), tiny_settings, tmp_path / "twice", library, 30)
    once, twice = (read_run(tmp_path / name)[1] for name in ("once", "twice"))
    assert [one.policy.hash for one in once] == [one.policy.hash for one in twice]
    assert [dict(one.values) for one in once] == [dict(one.values) for one in twice]
    with pytest.raises(ConfigError, match="made with a different library"):
        searched(wider, tiny.module.data(), tiny_settings, tmp_path / "once", (), 30)


def test_policies_that_a_measured_table_speaks_against_are_not_tried(tiny, tiny_settings, tiny_run):
    problem = prepare_problem(tiny.module.model(), tiny.module.data(), tiny_settings)
    table = SensitivityTable(recipe_of_run(tiny_run.path).losses)
    seeds = cold_seeds(problem, table)
    unit, row = max(table.losses.items(), key=lambda pair: max(pair[1]))
    worst = problem.policy({unit: problem.space.options[unit][row.index(max(row))]})
    best = min(seeds, key=len)
    assert worth_trying(problem, table, (best, worst), seeds) == (best,)
    assert worth_trying(problem, table, (worst,), ()) == (worst,)


@pytest.mark.slow
def test_policies_of_nothing_known_are_tried_among_others(tiny, tiny_settings, wider, tmp_path, monkeypatch):
    monkeypatch.setattr("paretopress.search.session.verify_finalists", lambda *_, **__: [])
    bad = Recipe.of_policy(Policy.of({"first/channels": Keep(0.25), "second/weights": Weights(2)}), "bad")
    found, lines = searched(wider, tiny.module.data(), tiny_settings, tmp_path / "bad", (bad,), 30)
    assert not found["predicted"]
    assert found["seeds"]["cold"] > 0
    assert any("policies carried over" in line for line in lines)


def test_another_device_needs_no_search(tiny, tiny_run):
    found = reuse(recipe_of_run(tiny_run.path), tiny.module.model(), tiny.module.data(), observer=Silent())
    assert found.kind == "device"
    assert found.resolved.computed == 0
    assert all(transfer.coverage == 1.0 for _, transfer in found.transfers)
    assert not found.refused


def test_another_model_gets_predictions_and_carried_policies(tiny, tiny_run, wider):
    recipe = recipe_of_run(tiny_run.path)
    before = {name: tensor.clone() for name, tensor in wider.state_dict().items()}
    found = reuse(recipe, wider, tiny.module.data(), observer=Silent(), partial=True)
    assert found.kind == "model"
    assert found.resolved.points
    assert found.mapping.coverage == 1.0
    assert json.dumps(found.to_plain())
    foreign = Recipe.of_policy(Policy.of({"blocks.3.mlp/weights": Weights(8)}), "foreign")
    foreign = replace(foreign, provenance={"devices": recipe.provenance["devices"]})
    with pytest.raises(PolicyError, match="foreign: the policy does not fit this model"):
        reuse(foreign, wider, tiny.module.data(), observer=Silent())
    assert all(torch.equal(tensor, before[name]) for name, tensor in wider.state_dict().items())
