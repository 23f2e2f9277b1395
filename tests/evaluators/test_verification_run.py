"""Verifying stored artefacts: what is captured once is captured once, and every artefact is judged on its own."""

import json

import pytest
import torch
from torch import nn

from paretopress import quantize
from paretopress.compressors import compressed_model
from paretopress.compressors.network import dense_network
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.evaluators.data import Data, prepare
from paretopress.evaluators.metrics import Metric, top1
from paretopress.evaluators.verification import ONNX, Task, output_digest, verify_artifacts
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE


class Net(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.first, self.out = nn.Linear(6, hidden), nn.Linear(hidden, 3)

    def forward(self, x):
        return self.out(torch.relu(self.first(x)))


class Other(Net):
    """Tensors of the same names and shapes, other operators."""

    def forward(self, x):
        return self.out(torch.tanh(self.first(x)))


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    sets = [(torch.randn(40, 6), torch.randint(0, 3, (40,))) for _ in range(3)]
    return prepare(Data(sets[0][0], sets[1], sets[2]))


def stored(model, batch, folder):
    """A dense artefact whose operators were captured at a batch size."""
    program = build_program(model, (torch.zeros(batch, 6),))
    compressed = realise(model, program, dense_network(program, plan(program.structure, DENSE)))
    compressed.save(folder)
    return compressed


def verify(model, tasks, data):
    return verify_artifacts(lambda _: None, model, tasks, "", data.holdout, data.metrics, 0, False)


def test_the_dense_model_is_captured_once_for_all_artefacts_of_a_run(tmp_path, data, monkeypatch):
    model, captures = Net().eval(), []
    compressed = stored(model, 4, tmp_path / "0")
    for name in ("1", "2"):
        stored(model, 4, tmp_path / name)
    stored(model, 3, tmp_path / "3")                     # another batch size is another capture
    capture = compressed_model.build_program
    monkeypatch.setattr(compressed_model, "build_program", lambda *args: captures.append(1) or capture(*args))
    digest = output_digest(compressed, data.holdout)
    results = verify(model, [Task(str(tmp_path / name), digest) for name in "0123"], data)
    assert len(captures) == 2
    assert [result.parity.problem for result in results] == [""] * 4
    assert all(result.parity.reloaded_equal for result in results)
    assert len({json.dumps(dict(result.scores)) for result in results}) == 1
    assert (tmp_path / "0" / ONNX).read_bytes() == (tmp_path / "2" / ONNX).read_bytes()


def test_an_artefact_of_another_model_is_not_judged_with_the_capture_at_hand(tmp_path, data):
    model = Net().eval()
    stored(model, 4, tmp_path / "own")
    stored(Other().eval(), 4, tmp_path / "other")
    stored(model, 4, tmp_path / "altered")
    weights = tmp_path / "altered" / compressed_model.TENSORS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    own, other, altered, again = verify(
        model, [Task(str(tmp_path / name)) for name in ("own", "other", "altered", "own")], data
    )
    assert own.parity.problem == again.parity.problem == ""
    assert other.startswith("ArtifactError: the artefact belongs to another model")
    assert altered.startswith("ArtifactError")


def first_guesses(outputs, targets):
    """The user's own function: what it counts is not known."""
    return float((outputs.argmax(1) == targets).float().mean())


@pytest.mark.parametrize("outputs", [1, 3])
def test_right_and_wrong_samples_are_known_of_first_guesses_only(tmp_path, outputs):
    """Targets of a regression are no classes, and the sign of an output is no guess."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs)).eval()
    program = build_program(model, (torch.zeros(4, 6),))
    compressed = realise(model, program, dense_network(program, plan(program.structure, DENSE)))
    inputs = torch.randn(40, 6)
    compressed.save(tmp_path / "0")

    def correct(targets, metric):
        data = prepare(Data(inputs + 1.0, (inputs + 2.0, targets), (inputs, targets), metric=metric))
        (found,) = verify(model, [Task(str(tmp_path / "0"))], data)
        return found.correct

    shape = (40,) if outputs == 1 else (40, outputs)
    errors = {"mse": Metric(lambda o, t: float(((o.reshape(t.shape) - t) ** 2).mean()), "min")}
    assert correct((torch.randn(shape) > 0).float(), errors) == ()
    classes = torch.randint(0, 3, (40,))
    assert correct(classes, {"mine": lambda _, t: float(len(t))}) == ()
    if outputs > 1:
        with torch.inference_mode():
            right = model(inputs).argmax(1) == classes
        assert correct(classes, first_guesses) == ()
        assert correct(classes, Metric(top1, label="mine")) == tuple(right.tolist())


class Embeddings(nn.Module):
    """Outputs in a mapping, as Hugging Face models have them."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(6, 32), nn.Linear(32, 48)

    def forward(self, x):
        return {"embedding": self.out(torch.relu(self.first(x))), "attentions": None}


def cosine(outputs, targets):
    """Of every embedding with the first target dimensions."""
    return float(torch.cosine_similarity(outputs["embedding"], targets).mean())


def test_scores_of_both_forms_are_compared_where_the_metric_counts_no_guesses(tmp_path):
    torch.manual_seed(0)
    model = Embeddings().eval()
    inputs = torch.randn(64, 6)
    with torch.inference_mode():
        targets = model(inputs)["embedding"] + 0.1 * torch.randn(64, 48)
    given = Data(inputs + 1.0, (inputs + 2.0, targets), (inputs, targets), metric=cosine)
    small = quantize(model, given, 8)
    small.save(tmp_path / "0")
    (sound,) = verify(model, [Task(str(tmp_path / "0"))], prepare(given))
    assert sound.parity.score_difference == pytest.approx(0.0, abs=1e-3)
    assert sound.parity.problem == ""

    with torch.no_grad():
        model.out.weight *= torch.linspace(-0.5, 1.0, 32)      # a file that computes something else
    other = quantize(model, given, 8)
    with torch.no_grad():
        model.out.weight /= torch.linspace(-0.5, 1.0, 32)
    small.save(tmp_path / "1", extra={ONNX: other.export_onnx})
    (wrong,) = verify(model, [Task(str(tmp_path / "1"))], prepare(given))
    assert wrong.parity.score_difference > 0.05
    assert "its score differs by" in wrong.parity.problem
