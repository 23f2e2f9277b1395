"""Every stored form of every verified point is the same model, and every size is what lies on disk."""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def document(tiny_run):
    return json.loads((tiny_run.path / "front.json").read_text())


@pytest.fixture(scope="module")
def points(document):
    return document["points"]


def test_a_run_verifies_the_baseline_the_comparisons_and_the_finalists(points):
    assert [point["id"] for point in points] == list(range(len(points)))
    assert [point["name"] for point in points[:3]] == ["dense", "uniform int8", "uniform half width"]
    assert len(points) == 3 + 1
    assert len({point["policy_hash"] for point in points}) == len(points)
    assert all(point["measured"] for point in points)


def test_reloaded_models_equal_those_in_memory_and_onnx_agrees(points):
    integer = 0
    for point in points:
        parity = point["measured"]["parity"]
        assert parity["reloaded_equal"] is True
        integer += parity["integer"]
        if parity["integer"]:
            assert parity["onnx_agreement"] >= 0.99
        else:
            assert parity["onnx_difference"] <= 1e-4
    assert 1 <= integer < len(points)


def test_verification_s_parity_is_what_an_independent_reload_finds(tiny, tiny_run, points):
    """The same comparison by hand, through the public `load` and a plain ONNX Runtime session."""
    import onnxruntime

    from paretopress import load

    inputs, targets = tiny.module.data().holdout
    for point in points:
        folder = tiny_run.path / "models" / str(point["id"])
        artefact = load(folder, tiny.module.model)
        with torch.inference_mode():
            found = artefact(inputs)
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        (other,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        agreement = float((found.argmax(1) == torch.from_numpy(other).argmax(1)).double().mean())
        parity = point["measured"]["parity"]
        assert agreement == pytest.approx(parity["onnx_agreement"], abs=0.006)   # one batch instead of two
        if not parity["integer"]:
            assert float((found - torch.from_numpy(other)).abs().max()) <= 1e-4 * float(found.abs().max())
        accuracy = float((found.argmax(1) == targets).double().mean())
        assert accuracy == pytest.approx(point["measured"]["accuracy"], abs=1e-9)


def test_the_dense_point_is_the_user_s_model(tiny, tiny_run, points):
    from paretopress import load

    inputs, targets = tiny.module.data().holdout
    model, artefact = tiny.module.model(), load(tiny_run.path / "models" / "0", tiny.module.model)
    with torch.inference_mode():
        expected, found = model(inputs), artefact(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert points[0]["measured"]["accuracy"] == float((expected.argmax(1) == targets).double().mean())


def test_sizes_are_the_bytes_on_disk(tiny, tiny_run, points):
    from safetensors import safe_open

    from paretopress import load

    for point in points:
        folder = tiny_run.path / "models" / str(point["id"])
        with safe_open(folder / "model.safetensors", "pt") as stored:
            tensors = [stored.get_tensor(name) for name in stored.keys()]  # noqa: SIM118 - not a mapping
        payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        measured = point["measured"]
        planned = load(folder, tiny.module.model).plan
        assert measured["size_bytes"] == payload == planned.stored_bytes == point["predicted"]["size"]
        files = {path.name: path.stat().st_size for path in folder.iterdir()}
        assert measured["onnx_bytes"] == files.pop("model.onnx")
        assert measured["disk_bytes"] == sum(files.values())


def test_manifests_hold_and_cover_the_onnx_file(tiny_run, points):
    from paretopress.compressors.artefact_folder import read_folder
    from paretopress.spaces.errors import ArtifactError

    for point in points:
        folder = tiny_run.path / "models" / str(point["id"])
        contents = read_folder(folder, ("model.onnx", "model.safetensors"))
        assert set(contents) == {"model.onnx", "model.safetensors"}
    altered = tiny_run.path / "models" / "1" / "model.onnx"
    content = altered.read_bytes()
    altered.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(ArtifactError, match=r"model\.onnx: altered"):
            read_folder(altered.parent, ("model.onnx",))
    finally:
        altered.write_bytes(content)


def test_policies_models_and_the_front_name_the_same_choices(tiny, tiny_run, points):
    from paretopress import load
    from paretopress.spaces.policy import Policy

    for point in points:
        stored = Policy.load(tiny_run.path / "policies" / f"{point['id']}.yaml")
        artefact = load(tiny_run.path / "models" / str(point["id"]), tiny.module.model)
        assert stored.hash == artefact.policy.hash == point["policy_hash"]
        assert stored.model != ""


def test_measured_times_name_their_host(points, document):
    for point in points:
        measured = point["measured"]
        if measured["latency_ms"] is None:
            assert measured["host"] is None
            assert measured["device"] is None
        else:
            assert document["host"]["runtime"] in measured["host"]
            assert measured["device"] == "x86-zen4-vnni-onnxruntime"
            assert measured["latency_ms_iqr"][0] <= measured["latency_ms"] <= measured["latency_ms_iqr"][1]
            assert measured["runs"] == 5


def test_the_input_model_is_as_it_was(tiny_run):
    assert tiny_run.after == tiny_run.before


def test_the_search_leaves_torch_s_generator_and_threads_alone(tiny, tiny_settings, tmp_path, monkeypatch):
    from paretopress.search import session

    monkeypatch.setattr(session, "verify_finalists", lambda *_: [])
    model, data = tiny.module.model(), tiny.module.data()
    torch.manual_seed(7)
    threads, drawn = torch.get_num_threads(), torch.rand(3)
    torch.manual_seed(7)
    session.run_search(model, data, tiny_settings, tmp_path / "run")
    assert torch.equal(torch.rand(3), drawn)
    assert torch.get_num_threads() == threads
