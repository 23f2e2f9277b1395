"""Models that are captured but cannot run on the example are refused in one line that says why."""

import pytest
import torch
from torch import nn

from paretopress.compressors.program import build_program
from paretopress.spaces.errors import UnsupportedModelError


@pytest.mark.parametrize(
    ("own", "given"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float32"), ("float32", "float16")],
)
def test_floats_of_another_width_than_the_model_s(own, given):
    """The capture takes them: the operators are only run on tensors without data."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).to(getattr(torch, own)).train()
    with pytest.raises(UnsupportedModelError) as caught:
        build_program(model, (torch.randn(2, 4, dtype=getattr(torch, given)),))
    text = str(caught.value)
    assert text.startswith("the model cannot run on the example: RuntimeError: mat1 and mat2")
    assert text.endswith(f"(the model's tensors are {own}, its inputs {given})")
    assert "\n" not in text
    assert all(module.training for module in model.modules())


def test_a_model_that_fails_on_the_values():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    with pytest.raises(UnsupportedModelError, match=r"^the model cannot run on the example: IndexError: index out"):
        build_program(model, (torch.tensor([[0, 9], [1, 2]]),))
