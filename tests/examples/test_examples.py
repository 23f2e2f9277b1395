"""The examples load strictly and reach the published dense scores on the stated protocol."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from paretopress.evaluators.data import prepare
from paretopress.evaluators.metrics import top1

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("PARETOPRESS_SHARED") or ROOT.parent / "shared")

pytestmark = pytest.mark.skipif(
    not (SHARED / "models" / "ds_cnn_kws.safetensors").is_file(),
    reason="needs the shared data folder: set PARETOPRESS_SHARED",
)


def load(name):
    path = ROOT / "examples" / name / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cifar():
    return load("cifar")


@torch.no_grad()
def correct(network, batches):
    return sum(round(top1(network(*batch.args), batch.targets) * batch.count) for batch in batches)


def test_kws_reaches_its_dense_score_on_data_that_passes_every_check():
    kws = load("kws")
    prepared = prepare(kws.data())
    assert (prepared.calibration.count, prepared.search.count, prepared.holdout.count) == (256, 256, 244)
    assert prepared.train is None
    assert correct(kws.model(), prepared.holdout) == 222  # 90.98% of 244
    assert not kws.model().training


def test_cifar_data_passes_every_check(cifar):
    prepared = prepare(cifar.data())
    sets = (prepared.calibration, prepared.search, prepared.holdout, prepared.train)
    assert [one.count for one in sets] == [1024, 2500, 2500, 20000]
    assert prepared.calibration.whole.targets is None
    assert torch.equal(prepared.calibration.whole.args[0], prepared.train.first(1024).whole.args[0])
    assert cifar.data_without_train().train is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20", 4404),  # 88.08% of 5,000
        pytest.param("resnet32", 4435, marks=pytest.mark.slow),  # 88.70%
        pytest.param("resnet56", 4469, marks=pytest.mark.slow),  # 89.38%
    ],
)
def test_cifar_networks_reach_their_dense_scores(cifar, name, expected):
    data = cifar.data()
    network = getattr(cifar, name)()
    right = 0
    for half in (data.search, data.holdout):
        with torch.no_grad():
            outputs = torch.cat([network(part) for part in half[0].split(250)])
        right += round(top1(outputs, half[1]) * len(outputs))
    assert abs(right - expected) <= 1  # processors round differently


def test_a_changed_state_dict_is_refused(cifar, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    weights = load_file(SHARED / "models" / "resnet20_cifar10_jpeg.safetensors")
    weights["layer1.0.extra"] = torch.zeros(1)
    (tmp_path / "models").mkdir()
    save_file(weights, tmp_path / "models" / "resnet20_cifar10_jpeg.safetensors")
    monkeypatch.setenv("PARETOPRESS_SHARED", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"layer1\.0\.extra"):
        cifar.resnet20()
