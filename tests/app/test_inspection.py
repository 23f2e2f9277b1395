"""`inspect --json` is what its documentation says, and shares are those of the devices' predictions."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import paretopress
from paretopress.cli.inspect import inspection_text
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.search.inspection import GroupRow, LayerRow, NodeRow, TimeRow, inspection
from paretopress.search.problem import SearchSettings, prepare_problem
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.overview import OverviewEdge
from paretopress.spaces.policy import DENSE

ZEN, PHONE, GPU = "x86-zen4-vnni-onnxruntime", "cortex-a76-tflite", "h200-sxm"
DOCUMENT = Path(__file__).parents[2] / "docs" / "inspect.md"


class Blocks(nn.Module):
    """A residual block, a layer that is used twice, and a forward with a size written in it."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.outer, self.twice = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.wide, self.fc = nn.Conv2d(8, 12, 1), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        x = self.wide(self.twice(torch.relu(self.twice(x)))).mean((2, 3))
        return self.fc(x * torch.ones(12))


def prepared(model, *targets):
    torch.manual_seed(0)
    images = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    labels = torch.zeros(8, dtype=torch.long)
    data = paretopress.Data(images[0], (images[1], labels), (images[2], labels))
    return prepare_problem(model, data, SearchSettings(targets=targets))


@pytest.fixture(scope="module")
def problem():
    return prepared(Blocks().eval(), ZEN, PHONE, GPU)


@pytest.fixture(scope="module")
def found(problem):
    return json.loads(json.dumps(inspection(problem), allow_nan=False))


def test_keys_are_those_of_the_documentation(found):
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE))
    assert list(rows) == list(found)
    lists = {
        "layers": LayerRow, "groups": GroupRow, "other_time": TimeRow, "nodes": NodeRow, "edges": OverviewEdge,
    }
    for key, row in lists.items():
        shown = found["graph"][key] if key in ("nodes", "edges") else found[key]
        text = rows["graph" if key in ("nodes", "edges") else key]
        names = [name for name in row.__slots__ if name]
        assert shown
        for entry in shown:
            assert list(entry) == names
        assert all(f"`{name}`" in text for name in names), key
    assert all(list(entry) == ["unit", "choice", "reason"] for entry in found["dropped"])
    assert all(set(row) == {"minimum", "baseline", "limit", "satisfiable"} for row in found["objectives"].values())


def test_values_have_their_types(found):
    def is_share(value):
        return isinstance(value, float) and 0.0 <= value <= 1.0

    text = (str, type(None))
    for layer in found["layers"]:
        assert all(isinstance(size, int) for size in layer["shape"])
        assert isinstance(layer["macs"], int)
        assert isinstance(layer["bytes"], int)
        assert all(map(is_share, layer["share"].values()))
        assert isinstance(layer["end"], text)
        assert isinstance(layer["frozen"], text)
    for group in found["groups"]:
        assert all(isinstance(group[key], int) for key in ("channels", "step", "inner", "macs", "bytes"))
        assert isinstance(group["droppable"], bool)
        assert isinstance(group["own_code"], text)
        assert isinstance(group["frozen"], text)
    names = {node["name"] for node in found["graph"]["nodes"]}
    assert {edge[end] for edge in found["graph"]["edges"] for end in ("source", "target")} <= names
    assert all(isinstance(options, list) for options in found["options"].values())
    assert all(found["options"].values())
    assert all(entry["reason"] for entry in found["dropped"])


def test_shares_are_of_the_predicted_time_of_every_target(problem, found):
    assert [row["name"] for row in found["other_time"]] == [f"latency@{ZEN}", f"latency@{PHONE}", f"relative@{GPU}"]
    for row in found["other_time"]:
        assert row["model"] == "dense"
        layers = sum(layer["share"][row["name"]] for layer in found["layers"])
        assert layers + row["kernels"] + row["conversions"] + row["call"] == pytest.approx(1.0)
        nodes = sum(node["share"].get(row["name"], 0.0) for node in found["graph"]["nodes"])
        assert nodes == pytest.approx(layers + row["kernels"])
    device = problem.costs.devices[0]
    view = cost_view(problem.plan(DENSE))
    of_inner = [kernel for kernel in view.kernels if kernel.layer == "inner"]
    expected = device.kernel_us(of_inner).sum() / 1e3 / device.latency_ms(view).mid
    assert next(row for row in found["layers"] if row["name"] == "inner")["share"][f"latency@{ZEN}"] == (
        pytest.approx(expected)
    )
    assert load_profile(ZEN).tier != "T0"


def test_what_is_frozen_says_why(found):
    layers = {layer["name"]: layer for layer in found["layers"]}
    groups = {group["name"]: group for group in found["groups"]}
    assert layers["twice"]["frozen"] == "its weight is used 2 times in one forward pass"
    assert groups["fc"]["frozen"] == "it reaches the model's output"
    assert (layers["stem"]["end"], layers["fc"]["end"], layers["inner"]["end"]) == ("first", "last", None)
    assert groups["inner"]["droppable"]
    assert not groups["stem"]["droppable"]
    assert groups["inner"]["macs"] == layers["inner"]["macs"] == 64 * 16 * 8 * 9
    assert groups["inner"]["bytes"] == layers["inner"]["bytes"] == 4 * 16 * 8 * 9


def test_code_with_sizes_in_it_is_named():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.free, self.down = nn.Linear(192, 12), nn.Linear(12, 10), nn.Linear(10, 4)

        def forward(self, x):
            y = torch.relu(self.up(x.flatten(1)))
            y = y.reshape(x.shape[0], 12)   # the size stands in the code
            return self.down(torch.relu(self.free(y)))

    shown = json.loads(json.dumps(inspection(prepared(Written().eval(), ZEN))))
    groups = {group["name"]: group for group in shown["groups"]}
    assert groups["up"]["frozen"] is None
    assert groups["up"]["own_code"]
    assert groups["free"]["own_code"] is None
    text = " ".join(inspection_text(shown, 100).split())
    assert f"note: without all of up the model runs as it was captured: {groups['up']['own_code'].split()[0]}" in text


def test_residual_edges_go_around_their_branch(found):
    nodes = {node["name"]: node for node in found["graph"]["nodes"]}
    residual = [edge for edge in found["graph"]["edges"] if edge["residual"]]
    assert [(nodes[edge["source"]]["layer"], nodes[edge["target"]]["kind"]) for edge in residual] == [("stem", "add")]
    kinds = [node["kind"] for node in found["graph"]["nodes"]]
    assert (kinds[0], kinds[-1]) == ("input", "output")
    assert {node["layer"] for node in nodes.values()} >= {layer["name"] for layer in found["layers"]}


def test_inspecting_leaves_the_model_as_it_was():
    model = Blocks().train()
    model.stem.weight.requires_grad_(False)
    model.fc.eval()

    def state():
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        return tensors, modes, [(id(one), one.requires_grad, one.grad) for one in model.parameters()]

    before = state()
    inspection(prepared(model, ZEN))
    after = state()
    assert before[1:] == after[1:]
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
