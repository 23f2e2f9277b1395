"""The embedded demo: shipped files, dense scores, data that pass every check, an exportable network."""

import json
from importlib.resources import files

import pytest
import torch
from torch import nn

from paretopress.demo import factories
from paretopress.evaluators.data import prepare
from paretopress.evaluators.metrics import top1


@pytest.fixture(scope="module")
def network():
    return factories.model()


@pytest.fixture(scope="module")
def prepared():
    return prepare(factories.data())


@torch.no_grad()
def accuracy(network, batches):
    return top1(torch.cat([network(*batch.args) for batch in batches]), batches.targets)


def test_the_split_passes_every_check_and_calibration_is_a_part_of_train(prepared):
    sets = (prepared.calibration, prepared.search, prepared.holdout, prepared.train)
    assert [one.count for one in sets] == [256, 400, 500, 897]
    assert sum(one.count for one in sets[1:]) == 1797
    assert prepared.calibration.row_hashes() == prepared.train.row_hashes()[:256]
    assert set(prepared.train.row_hashes()).isdisjoint(prepared.search.row_hashes())
    assert prepared.holdout.targets.unique().tolist() == list(range(10))


def test_the_shipped_network_has_the_scores_it_claims(network, prepared):
    claimed = json.loads(files("paretopress.demo").joinpath("digits.json").read_text())
    assert accuracy(network, prepared.search) == pytest.approx(claimed["accuracy"]["search"], abs=0.0026)
    assert accuracy(network, prepared.holdout) == pytest.approx(claimed["accuracy"]["holdout"], abs=0.0021)
    assert min(claimed["accuracy"].values()) >= 0.98
    assert sum(parameter.numel() for parameter in network.parameters()) == claimed["parameters"] <= 150_000


def test_the_network_is_in_eval_mode_and_holds_every_kind_of_convolution(network):
    assert not any(module.training for module in network.modules())
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    kinds = {(module.kernel_size, module.groups > 1) for module in convolutions}
    assert {((3, 3), False), ((3, 3), True), ((1, 1), False)} <= kinds


def test_the_network_exports_with_a_dynamic_batch(network):
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(network, (torch.rand(4, 1, 8, 8),), dynamic_shapes=({0: batch},))
    images = torch.rand(7, 1, 8, 8)
    torch.testing.assert_close(exported.module()(images), network(images))


def test_the_shipped_data_are_scikit_learns_digits():
    train = pytest.importorskip("paretopress.demo.train")
    pytest.importorskip("sklearn")
    split = train.split_digits(seed=0)
    data = factories.data()
    for name in ("train", "search", "holdout"):
        images, labels = getattr(data, name)
        assert torch.equal(images, train.inputs_of(split[f"{name}_images"]))
        assert torch.equal(labels, torch.from_numpy(split[f"{name}_labels"]).long())
