"""At least what Torch-Pruning can prune of every model; `benchmarks/spaces/coverage.py` recorded what that is.

"claims" are all its groups, "runs" those after which the model still runs: only these are what it can do.
"""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # the zoo is a package beside the tests' folders

from zoo import parity
from zoo.registry import ZOO

RECORDED = json.loads((Path(__file__).parents[1] / "zoo" / "torch_pruning.json").read_text())
FAST = (
    "resnet18", "mobilenet_v3", "unet", "convnext", "vit", "mlp_mixer", "bert", "whisper", "ds_cnn", "wavenet", "mlp",
)
CASES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ZOO]


@pytest.mark.parametrize("name", CASES)
def test_no_less_than_torch_pruning(name):
    item = parity.subject(name)
    share = parity.prunable_share(item.model, item.program)
    recorded = RECORDED[name]
    assert share > 0.8
    if "error" not in recorded:
        assert share >= recorded["runs"] - 1e-9
    half = parity.share_at_half(item.model, item.program)
    assert half < 0.6   # not just touched at an edge: about half of the rows and half of the columns go


def test_the_record_names_every_model():
    assert RECORDED.keys() == ZOO.keys()
    assert all({"claims", "runs"} <= entry.keys() or entry.get("error") for entry in RECORDED.values())
