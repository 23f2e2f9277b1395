"""Pruning by the coupling's axes is exact: checked by really removing channels of every group."""

import copy

import pytest
import torch
from space_zoo import ZOO, run_graph, specimen
from torch import nn

from paretopress.spaces.capture import capture
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.structure import analyse

# Every group that can be pruned, with its size and step; what is missing here must be frozen.
FREE_GROUPS = {
    "cifar_resnet": {
        "conv1": (8, 1),   # the first stage and the middle half of the second, which the shortcut pads
        "layer2.0.conv2:0": (4, 1),   # where the shortcut has zeros
        "layer2.0.conv2:12": (4, 1),
        "layer1.0.conv1": (8, 1),
        "layer1.1.conv1": (8, 1),
        "layer2.0.conv1": (16, 1),
        "layer2.1.conv1": (16, 1),
    },
    "projection": {"stem.0": (8, 1), "conv1": (12, 1), "conv2": (10, 1)},
    "inverted_residual": {"stem": (8, 1), "expand.0": (24, 1)},
    "squeeze_excite": {"conv": (12, 1), "squeeze": (6, 1)},
    "vgg": {"features.0": (8, 1), "features.3": (12, 1), "classifier.0": (20, 1)},
    "dense_block": {"stem": (8, 1), "conv1": (6, 1), "conv2": (6, 1)},
    "group_norm": {"conv1": (2, 1), "conv3": (8, 1)},
    "layer_norm_mlp": {"embed": (16, 1), "up": (32, 1)},
    "conv1d": {"net.0": (8, 1), "net.4": (10, 1)},
    "grouped": {"conv1": (4, 1), "grouped": (4, 1), "conv2": (6, 1)},
    "tied": {"c": (8, 1)},
    "twice": {"first": (8, 1), "wide": (6, 1)},
    "layer_scale": {"conv": (8, 1), "mid": (8, 1)},
    "attention": {"qkv": (4, 1), "up": (24, 1)},
    "mixer": {"tokens_up": (10, 1), "up": (12, 1)},
    "fixed_view": {"conv": (8, 1)},
    "in_place": {"a": (6, 1)},
    "keywords": {"left": (8, 1)},
}
# Sizes are written in the models' own code: test_coupling_parity.py runs them as captured.
OWN_CODE_FAILS = {
    ("attention", "qkv"), ("fixed_view", "conv"),
    ("cifar_resnet", "layer2.0.conv2:0"), ("cifar_resnet", "layer2.0.conv2:12"),
}
NOT_EXACT = {("layer_norm_mlp", "embed")}  # layer normalisation sees every channel
CASES = [(name, group) for name, groups in FREE_GROUPS.items() for group in groups]
CASES = [case for case in CASES if case not in OWN_CODE_FAILS]


def positions(axis, kept):
    """Indices along a dimension that remain when `kept` maps groups to their kept channels."""
    result, offset = [], 0
    for segment in axis:
        for channel in kept.get(segment.group, range(segment.size)):
            start = offset + channel * segment.inner
            result += range(start, start + segment.inner)
        offset += segment.size * segment.inner
    return torch.tensor(result)


def pruned(example, kept):
    """A copy of the model with every parameter indexed by its axes, and the modules' sizes set."""
    model = copy.deepcopy(example.model)
    for name, axes in example.structure.coupling.parameters.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = getattr(module, attribute)
        for dim, axis in enumerate(axes):
            if axis is not None:
                tensor = tensor.index_select(dim, positions(axis, kept))
        if isinstance(getattr(module, attribute), nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        setattr(module, attribute, tensor)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == module.in_channels > 1:
            module.groups = module.weight.shape[0] * module.groups // module.out_channels
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, nn.GroupNorm):
            module.num_groups = len(module.weight) * module.num_groups // module.num_channels
    return model


def silenced(example, group, kept):
    """A dense copy whose removed channels are zero: rows of their producers and affine parameters."""
    model = copy.deepcopy(example.model)
    for name, axes in example.structure.coupling.parameters.items():
        if axes and axes[0] is not None and not name.endswith(("running_mean", "running_var")):
            keep = positions(axes[0], kept)
            mask = torch.zeros(model.get_parameter(name).shape[0], dtype=torch.bool)
            mask[keep] = True
            model.get_parameter(name).data[~mask] = 0.0
    return model


def keep_sets(group, seed):
    """Random sets of one block, half of the blocks, and all blocks but one."""
    blocks = group.size // group.step
    generator = torch.Generator().manual_seed(seed)
    for count in sorted({1, blocks - 1, max(1, blocks // 2)}):
        chosen = sorted(torch.randperm(blocks, generator=generator)[:count].tolist())
        yield [block * group.step + i for block in chosen for i in range(group.step)]


@pytest.mark.parametrize("name", ZOO)
def test_groups_are_found_and_the_rest_is_frozen_with_a_reason(name):
    structure = specimen(name).structure
    groups = structure.coupling.groups
    free = {g.name: (g.size, g.step) for g in groups if not structure.units[f"{g.name}/channels"]}
    assert free == FREE_GROUPS[name]


def test_every_axis_has_the_length_of_its_dimension():
    for name in ZOO:
        example = specimen(name)
        graph, coupling = example.captured.graph, example.structure.coupling
        shapes = {node.name: node.shape for node in graph.nodes}
        state = {key: tuple(value.shape) for key, value in example.model.state_dict().items()}
        known = [(shapes[node], axes) for node, axes in coupling.values.items()]
        known += [(state[key], axes) for key, axes in coupling.parameters.items()]
        for shape, axes in known:
            assert len(shape) == len(axes)
            for size, axis in zip(shape, axes, strict=True):
                assert axis is None or sum(s.length for s in axis) == size
        sizes = {group.name: group.size for group in coupling.groups}
        assert all(s.size == sizes[s.group] for _, axes in known for axis in axes for s in axis or ())


@pytest.mark.parametrize(("name", "group_name"), CASES)
def test_removing_channels_keeps_shapes_and_is_exact(name, group_name):
    example = specimen(name)
    structure = example.structure
    group = structure.group(group_name)
    for kept in keep_sets(group, seed=len(name)):
        policy = Policy.of({f"{group_name}/channels": Keep(len(kept) / group.size)})
        planned = plan(structure, policy)
        assert planned.kept[group_name] == len(kept)
        small = pruned(example, {group_name: kept})
        graph = capture(small, example.args, example.kwargs).graph
        assert [node.name for node in graph.nodes] == [node.name for node in structure.graph.nodes]
        for node in graph.nodes:
            if node.dtype and node.op not in ("parameter", "constant"):
                assert planned.shape(node.name)[1:] == node.shape[1:], node.name
        for layer in planned.layers:
            assert tuple(small.get_parameter(layer.layer.weight).shape) == layer.shape
        if (name, group_name) not in NOT_EXACT:
            expected = example.outputs(silenced(example, group_name, {group_name: kept}))
            for mine, dense in zip(example.outputs(small), expected, strict=True):
                torch.testing.assert_close(mine, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, groups in FREE_GROUPS.items() if len(groups) > 1])
def test_all_groups_together_keep_shapes(name):
    example = specimen(name)
    groups = [example.structure.group(group) for group in FREE_GROUPS[name] if (name, group) not in OWN_CODE_FAILS]
    kept = {group.name: next(iter(keep_sets(group, seed=3))) for group in groups}
    ratios = {f"{g.name}/channels": Keep(len(kept[g.name]) / g.size) for g in groups}
    planned = plan(example.structure, Policy.of(ratios))
    graph = capture(pruned(example, kept), example.args, example.kwargs).graph
    for node in graph.nodes:
        if node.dtype and node.op not in ("parameter", "constant"):
            assert planned.shape(node.name)[1:] == node.shape[1:], node.name


@pytest.mark.parametrize(
    ("name", "unit", "reason"),
    [
        ("cifar_resnet", "fc/channels", "reaches the model's output"),
        ("grouped", "grouped/rank", "grouped convolution has no low rank"),
        ("tied", "a/channels", "reads a dimension of fixed size"),
        ("tied", "a/weights", "its weight is used 2 times"),
        ("twice", "shared/weights", "its weight is used 2 times"),
        ("attention", "project/channels", "size is fixed"),
        ("mixer", "tokens_down/channels", "size is fixed"),
    ],
)
def test_frozen_units_say_why(name, unit, reason):
    assert reason in specimen(name).structure.units[unit]


class Merging(nn.Module):
    """Operators that mix, move or normalise a channel dimension in one particular way."""

    def __init__(self, tail):
        super().__init__()
        self.first, self.second, self.tail = nn.Linear(6, 8), nn.Linear(8, 8), tail

    def forward(self, x):
        return self.tail(self.second(torch.relu(self.first(x)))).sum(dim=-1)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (lambda x: x[..., ::3], "takes one entry of every 3"),
        (lambda x: x.select(-1, 0).unsqueeze(-1), "constant part"),
        (lambda x: x.cumsum(-1), "order of this dimension"),
        (lambda x: x.flip(-1), "order of this dimension"),
        (lambda x: torch.linalg.svd(x)[1], "no channel rule"),
        (lambda x: nn.functional.layer_norm(x, (3, 8)), "normalises over several dimensions"),
        (lambda x: nn.functional.avg_pool1d(x, 2), "mixes this dimension"),
        (lambda x: nn.functional.pad(x, (1, 1), mode="reflect"), "pads this dimension"),
        (lambda x: x[..., torch.tensor([3, 1, 2])], "looks entries of this dimension up"),
        (lambda x: x + torch.arange(8.0), "size is fixed"),
    ],
)
def test_every_mixing_operator_freezes(tail, reason):
    model = Merging(tail)
    units = analyse(capture(model, (torch.randn(2, 3, 6),)), model).units
    assert reason in units["second/channels"]
    assert units["first/channels"] == ""


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(6, 2, 1)
        self.up = nn.Sequential(nn.PixelShuffle(2), nn.ConvTranspose2d(4, 6, 2, 2), nn.PReLU(6))

    def forward(self, x):
        left, right = self.first(x).chunk(2, 1)
        return self.last(self.up(torch.cat([right, left], 1)))


@pytest.mark.parametrize(
    ("model", "shape", "free", "frozen"),
    [
        (Recurrent(), (2, 5, 6), {"cells"}, {}),
        (Shuffle(), (2, 3, 4, 4), {"first", "up.1"}, {}),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            (2, 5, 8),
            {"self_attn.in_proj_weight", "linear1"},
            {},
        ),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1)), (2, 3, 4, 4), set(), {}),
    ],
    ids=["lstm", "shuffle", "transformer", "weight_norm"],
)
def test_units_of_other_modules_and_nothing_fails(model, shape, free, frozen):
    model = model.eval().requires_grad_(False)
    inputs = torch.randn(shape)
    captured = capture(model, (inputs,))
    structure = analyse(captured, model)
    units = {
        unit.removesuffix("/channels"): why for unit, why in structure.units.items() if "/channels" in unit
    }
    assert {unit for unit, reason in units.items() if not reason} == free
    assert {unit: units[unit] for unit in frozen} == frozen
    value = run_graph(captured, model, [inputs])[captured.graph.outputs[0]]
    torch.testing.assert_close(value, model(inputs), atol=1e-5, rtol=1e-4)
    bytes_of = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    integers = structure.takers(Weights(8, 8))
    assert plan(structure, Policy()).stored_bytes == sum(bytes_of.values())
    for policy in (Policy(), Policy.of(integers)):
        view = cost_view(plan(structure, policy))
        assert len({kernel.name for kernel in view.kernels}) == len(view.kernels) > 0


def test_steps_of_two_group_normalisations_combine():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.GroupNorm(6, 12), nn.Conv2d(12, 2, 1))
    structure = analyse(capture(model, (torch.randn(2, 3, 4, 4),)), model)
    group = structure.group("0")
    assert (group.size, group.inner) == (2, 6)  # blocks of 3 and blocks of 2
