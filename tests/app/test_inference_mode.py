"""Inside `torch.inference_mode()`, where most people use models, everything works as outside."""

import pytest
import torch

import paretopress
from paretopress.compressors.compressed_model import CompressedModel


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_model_loads_inside_inference_mode_and_is_an_ordinary_one(run, project, number):
    import small

    folder, images = run / "models" / str(number), small.images(4, 9)
    expected = paretopress.load(folder, small.model)
    with torch.inference_mode():
        loaded = paretopress.load(folder, small.model)
        assert torch.equal(loaded(images), expected(images))
        point = paretopress.Result.load(run).front.verified[number]
        assert torch.equal(point.load(small.model())(images), expected(images))
    assert isinstance(loaded, CompressedModel)
    assert not any(tensor.is_inference() for tensor in loaded.state_dict().values())
    for parameter in loaded.parameters():   # it may still be trained further
        parameter.requires_grad_(parameter.is_floating_point())
    loaded.network(images).sum().backward()
    assert any(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.slow
def test_compress_works_inside_inference_mode(project, tmp_path):
    import small

    with torch.inference_mode():
        result = paretopress.compress(
            small.model(), data=small.data(), target="cortex-a76-tflite", trials=3, run=tmp_path / "run",
            progress=False, settings={"search": {"finalists": 1}},
        )
        assert torch.is_inference_mode_enabled()
    assert len(result.front) >= 1
