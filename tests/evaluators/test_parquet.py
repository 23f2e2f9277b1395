"""Sets from parquet files, and inputs as tokenizers and collators give them."""

import io

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

import paretopress
from paretopress.evaluators.data import normalise_set
from paretopress.spaces.errors import ConfigError, DataError


def picture(seed, mode="RGB"):
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}, pixels


@pytest.fixture
def folder(tmp_path):
    rows = {
        "text": ["a", "bb", "ccc", "dd"], "features": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
        "image": [picture(seed)[0] for seed in range(4)], "label": [0, 1, 1, 0], "gap": [1, None, 2, 3],
        "ragged": [[1], [1, 2], [1], [1]],
    }
    for start in (0, 2):
        part = {name: values[start : start + 2] for name, values in rows.items()}
        parquet.write_table(pyarrow.table(part), tmp_path / f"train-{start}.parquet")
    return tmp_path


def test_columns_become_tensors_in_the_order_of_the_files(folder):
    inputs, targets = paretopress.parquet_set(folder / "train-*.parquet", "features", "label")
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]
    assert targets.tolist() == [0, 1, 1, 0]
    assert paretopress.parquet_set(folder / "train-*.parquet", "features", limit=3).shape == (3, 2)
    several, _ = paretopress.parquet_set(folder / "train-0.parquet", ["features", "label"], "label")
    assert set(several) == {"features", "label"}
    assert normalise_set((inputs, targets), "search", 3, needs_targets=True).count == 4


def test_pictures_are_decoded(folder):
    inputs = paretopress.parquet_set([folder / "train-0.parquet", folder / "train-2.parquet"], "image")
    assert inputs.shape == (4, 3, 5, 6)
    assert torch.equal(inputs[2], torch.from_numpy(picture(2)[1].transpose(2, 0, 1) / np.float32(255.0)))


def test_a_transform_reads_what_is_no_number(folder):
    def lengths(columns):
        return torch.tensor([[len(text)] for text in columns["text"]])

    inputs, targets = paretopress.parquet_set(folder / "train-*.parquet", "text", "label", transform=lengths)
    assert inputs.tolist() == [[1], [2], [3], [2]]
    assert len(targets) == 4


@pytest.mark.parametrize(
    ("file", "column", "error", "text"),
    [
        ("no.parquet", "label", ConfigError, "no file"),
        ("train-0.parquet", "labels", ConfigError, "did you mean 'label'"),
        ("train-0.parquet", "gap", DataError, "row 1 holds null"),
        ("train-0.parquet", "ragged", DataError, "give transform="),
        ("train-0.parquet", "text", DataError, "got str; give transform="),
        ("bad.parquet", "label", DataError, "bad.parquet: "),
    ],
)
def test_what_cannot_be_read_is_one_line(folder, file, column, error, text):
    (folder / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(error, match=text) as raised:
        paretopress.parquet_set(folder / file, column)
    assert "\n" not in str(raised.value)


def test_labels_of_a_mapping_are_targets_in_batches_and_whole_sets():
    batches = [{"ids": torch.tensor([[1, 2], [3, 4]]), "mask": torch.ones(2, 2), "labels": torch.tensor([0, 1])}] * 2
    found = normalise_set(batches, "search", 8, needs_targets=True)
    assert set(found.whole.kwargs) == {"ids", "mask"}
    assert found.targets.tolist() == [0, 1, 0, 1]
    whole = normalise_set({"ids": torch.ones(3, 2), "label": torch.arange(3)}, "calibration", 8, needs_targets=False)
    assert whole.targets.tolist() == [0, 1, 2]
    only = normalise_set({"labels": torch.ones(3, 2)}, "calibration", 8, needs_targets=False)
    assert set(only.whole.kwargs) == {"labels"}   # a model whose one input has that name


def test_a_hugging_face_model_takes_encodings_and_collated_batches(tmp_path):
    import transformers
    from torch.utils.data import DataLoader

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(1, 40, (96, 8), generator=torch.Generator().manual_seed(1))
    encoding = transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    rows = [{"input_ids": ids[row], "attention_mask": torch.ones(8, dtype=torch.long), "labels": row % 3}
            for row in range(96)]
    loader = DataLoader(rows, batch_size=40)
    compressed = paretopress.quantize(model, encoding, bits=8, activations=32)
    assert compressed.size_bytes < 0.5 * sum(one.numel() * 4 for one in model.parameters())
    data = paretopress.Data(calibration=encoding, search=loader, holdout=[dict(rows[0] | {
        "input_ids": ids[:4] * 0 + 39, "attention_mask": torch.ones(4, 8, dtype=torch.long),
        "labels": torch.zeros(4, dtype=torch.long)})])
    from paretopress.evaluators.data import prepare

    prepared = prepare(data)
    assert prepared.search.count == 96
    assert sorted(prepared.search.whole.kwargs) == ["attention_mask", "input_ids"]
    found = compressed.export(tmp_path / "bert.pt2", inputs=encoding, runs=0)
    assert found.difference <= 1e-4
    outputs = torch.export.load(tmp_path / "bert.pt2").module()(**dict(encoding))
    assert type(outputs) is dict
    assert torch.allclose(outputs["logits"], compressed(**encoding).logits, atol=1e-5)
