"""The examples on text and on drawn shapes: data that pass every check, networks that reach their dense scores."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from paretopress.evaluators.batches import Batches
from paretopress.evaluators.data import prepare

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("PARETOPRESS_SHARED") or ROOT.parent / "shared")
needs_text = pytest.mark.skipif(
    not (SHARED / "data" / "text" / "tinyshakespeare.txt").is_file(),
    reason="needs the shared data folder: set PARETOPRESS_SHARED",
)


def load(name):
    path = ROOT / "examples" / name / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def score(network, metric, batches: Batches):
    outputs = [network(*batch.args, **batch.kwargs) for batch in batches]
    return metric(torch.cat(outputs), batches.targets)


@needs_text
def test_minilm_ranks_pairs_as_people_do_and_no_sentence_stands_in_two_sets():
    minilm = load("minilm")
    sets = minilm.parts(minilm.read_pairs())
    assert [len(one) for one in sets] == [200, 300, 1000]
    sentences = [{sentence for pair in one for sentence in pair[:2]} for one in sets]
    assert sum(map(len, sentences)) == len(set.union(*sentences))
    prepared = prepare(minilm.data())
    assert (prepared.calibration.count, prepared.search.count, prepared.holdout.count) == (400, 600, 2000)
    network = minilm.model()
    assert sum(parameter.numel() for parameter in network.parameters()) == 22_565_376
    assert score(network, minilm.spearman, prepared.search.first(64)) > 0.8


@needs_text
def test_gpt_reaches_its_perplexity():
    gpt = load("gpt")
    prepared = prepare(gpt.data())
    sets = (prepared.calibration, prepared.search, prepared.holdout, prepared.train)
    assert [one.count for one in sets] == [256, 500, 1200, 4000]
    assert gpt.data_without_train().train is None
    assert score(gpt.model(), gpt.perplexity, prepared.search.first(100)) < 7.0


def test_unet_finds_the_shapes():
    unet = load("unet")
    prepared = prepare(unet.data())
    sets = (prepared.calibration, prepared.search, prepared.holdout, prepared.train)
    assert [one.count for one in sets] == [128, 200, 400, 1000]
    assert unet.data_without_train().train is None
    assert score(unet.model(), unet.overlap, prepared.search.first(60)) > 0.8


def test_the_text_classifier_knows_the_topics_and_keeps_its_head(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    textclass = load("textclass")
    network = textclass.small_model()
    assert [path.name for path in (tmp_path / "paretopress").iterdir()] == ["textclass-128-4.safetensors"]
    state = torch.get_rng_state()
    again = textclass.small_model()  # from the cache
    assert torch.equal(state, torch.get_rng_state())
    prepared = prepare(textclass.data())
    part = prepared.holdout.first(200)
    assert score(network, prepared.metrics[0], part) == score(again, prepared.metrics[0], part) > 0.85
