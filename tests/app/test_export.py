"""`export`, picks, and models that come back from a run."""

import json
import shutil

import pytest
import torch

import paretopress
from paretopress import Result
from paretopress.selection import dominates, pick_point
from paretopress.spaces.errors import ArtifactError, ConfigError, InfeasibleError


@pytest.mark.parametrize(
    ("pick", "number"),
    [
        ("knee", 1),
        ("fastest", 2),
        ("smallest", 2),
        ("id:4", 4),
        ("id:100", 100),
        ("latency<=95us", 2),
        ("latency<=0.5ms", 0),
        ("latency <= -60%", 1),
        ("size<=1KB", 1),
        ("macs<=20K", 1),
        ("accuracy>=0.985", 1),
        ("accuracy >= 98 %", 2),
        ("accuracy>=.987", 0),
    ],
)
def test_picks(run, pick, number):
    assert pick_point(Result.load(run).front, pick).id == number


@pytest.mark.parametrize(
    ("pick", "error", "text"),
    [
        ("knees", ConfigError, "allowed: knee, fastest, smallest"),
        ("id:7", ConfigError, "unknown id '7'"),
        ("latencies<=5ms", ConfigError, "did you mean 'latency'?"),
        ("latency<=5", ConfigError, "the unit is missing"),
        ("latency<=1us", InfeasibleError, "the front reaches latency 90.0 µs"),
        ("latency@phone<=1ms", ConfigError, "unknown target 'phone'"),
        ("latency>=1us", ConfigError, "a limit on a cost is an upper one"),
        ("accuracy>=0.99", InfeasibleError, "the front reaches accuracy 98.9 %"),
        ("accuracy<=0.99", ConfigError, "allowed: 'accuracy>=0.97' or 'accuracy>=97%'"),
        ("accuracy>=1pp", ConfigError, "allowed: 'accuracy>=0.97'"),
    ],
)
def test_bad_picks(run, pick, error, text):
    with pytest.raises(error, match=text.replace("(", r"\(").replace("?", r"\?")):
        pick_point(Result.load(run).front, pick)


def test_select_minimises_within_limits(run):
    front = Result.load(run).front
    assert front.select(minimize="size").id == 2
    assert front.select(minimize="size", max_drop="0.4pp").id == 1
    assert front.select(minimize="accuracy", max_latency="-10%").id == 1
    with pytest.raises(ConfigError, match="did you mean 'max_latency'"):
        front.select(max_latencies="5ms")
    with pytest.raises(ConfigError, match="unknown objective"):
        front.select(minimize="speed")


def test_the_knee_is_derived_where_none_is_marked(run, tmp_path):
    document = json.loads((run / "front.json").read_text())
    for point in document["points"]:
        point["knee"] = False
    (tmp_path / "front.json").write_text(json.dumps(document))
    assert Result.load(tmp_path).knee().id == 1


def test_dominates_needs_all_three_objectives(run):
    front = Result.load(run).front
    by_id = {point.id: point for point in front.verified}
    assert dominates(by_id[1], by_id[4], front.metric) is True
    assert dominates(by_id[1], by_id[2], front.metric) is False
    assert dominates(by_id[1], by_id[1], front.metric) is False


def test_exported_folder_loads_and_equals_the_stored_model(cli, run, tmp_path):
    import small

    code, out, err = cli("export", run, "-o", tmp_path / "out")
    assert code == 0
    assert "point 1, accuracy 98.6 %, latency 100 µs" in out
    assert "next: paretopress verify" in err
    loaded = paretopress.load(tmp_path / "out", small.model)
    stored = Result.load(run).knee().load(small.model)
    x = small.images(4, 9)
    assert loaded(x).shape == (4, 4)
    assert torch.equal(loaded(x), stored(x))
    assert loaded.policy.hash == Result.load(run).knee().policy_hash


def test_exported_onnx_is_the_stored_file_and_runs(cli, run, tmp_path):
    import onnxruntime
    import small

    code, out, _ = cli(
        "export", run, "--pick", "id:0", "--format", "onnx", "-o", tmp_path / "dense.onnx", "--json"
    )
    assert code == 0
    assert json.loads(out)["id"] == 0
    assert (tmp_path / "dense.onnx").read_bytes() == (run / "models" / "0" / "model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(str(tmp_path / "dense.onnx"), providers=["CPUExecutionProvider"])
    x = small.images(4, 9)
    (scores,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(scores), small.model()(x), atol=1e-4)


def test_a_coded_export_loads_and_equals_the_stored_model(cli, run, tmp_path):
    import small

    assert cli("export", run, "-o", tmp_path / "out", "--huffman")[0] == 0
    assert Result.load(run).save_pretrained(tmp_path / "again", huffman=True) == tmp_path / "again"
    stored, x = Result.load(run).knee(), small.images(4, 9)
    assert torch.equal(paretopress.load(tmp_path / "out", small.model)(x), stored.load(small.model)(x))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "out", stored.stored())]
    assert sizes[0] <= sizes[1]
    code, _, err = cli("export", run, "--format", "onnx", "--huffman", "-o", tmp_path / "m.onnx")
    assert code == 2
    assert "runtimes read no coded ONNX file" in err


def test_python_exports(run, tmp_path):
    result = Result.load(run)
    assert result.save_pretrained(tmp_path / "a", pick="smallest") == tmp_path / "a"
    assert result.export(tmp_path / "m.onnx", pick=result.front.points[0]).stat().st_size > 0
    with pytest.raises(ConfigError, match="not empty"):
        result.save_pretrained(tmp_path / "a")
    result.save_pretrained(tmp_path / "a", overwrite=True)
    assert paretopress.Policy.load(tmp_path / "a" / "policy.yaml").hash == result.knee().policy_hash


def test_force_replaces_exports_only(cli, run, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    for extra in ((), ("--force",)):
        code, _, err = cli("export", run, "-o", target, *extra)
        assert code == 2
        assert err.count("\n") == 1
    assert (target / "thesis.txt").read_text() == "years of work"
    (tmp_path / "m.onnx").write_text("old")
    assert cli("export", run, "--format", "onnx", "-o", tmp_path / "m.onnx")[0] == 2
    assert (tmp_path / "m.onnx").read_text() == "old"
    assert cli("export", run, "--format", "onnx", "-o", tmp_path / "m.onnx", "--force")[0] == 0


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "model"])
def test_an_altered_model_is_not_exported(cli, run, tmp_path, damage):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    tensors = copy / "models" / "1" / "model.safetensors"
    content = bytearray(tensors.read_bytes())
    if damage == "truncate":
        tensors.write_bytes(content[:-1])
    elif damage == "flip":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "remove":
        tensors.unlink()
    else:
        shutil.rmtree(copy / "models" / "1")
    code, _, err = cli("export", copy, "-o", tmp_path / "out")
    assert code == 2
    assert str(copy / "models" / "1") in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_load_refuses_another_model(run):
    from torch import nn

    with pytest.raises(ArtifactError):
        Result.load(run).knee().load(lambda: nn.Sequential(nn.Linear(3, 3)))


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_a_full_disk_is_one_line_and_leaves_nothing(process, run, tmp_path, form):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    ended = process(
        "export",
        run,
        "--format",
        form,
        "-o",
        tmp_path / "out",
        preexec_fn=limit,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert ended.returncode == 74
    assert ended.stderr.startswith("error: cannot write ")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_full_standard_output_exits_74(process, run):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ended = process("front", run, capture_output=False, stdout=full, stderr=-1)
    assert ended.returncode == 74
    assert [line for line in ended.stderr.splitlines() if not line.startswith("next:")] == [
        "error: the disk is full"
    ]
