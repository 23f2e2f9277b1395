"""The overview has every fused kernel with what it really reads, and knows what goes around a residual branch."""

import pytest
import torch
from space_zoo import ZOO, specimen
from torch import nn

from paretopress.spaces.capture import capture
from paretopress.spaces.overview import overview
from paretopress.spaces.structure import analyse


@pytest.mark.parametrize("name", ZOO)
def test_nodes_are_the_fused_kernels_and_edges_point_forward(name):
    structure = specimen(name).structure
    found = overview(structure)
    names = [node.name for node in found.nodes]
    kernels = [kernel.output for kernel in structure.fusion.kernels]
    assert names == [*structure.graph.inputs, *kernels, "output"]
    place = {name: index for index, name in enumerate(names)}
    assert all(place[edge.source] < place[edge.target] for edge in found.edges)
    assert len({(edge.source, edge.target) for edge in found.edges}) == len(found.edges)
    assert {node.layer for node in found.nodes if node.layer} == {layer.name for layer in structure.layers}
    read, makes = {edge.source for edge in found.edges}, {edge.target for edge in found.edges}
    assert set(kernels) <= makes   # in these models no operator computes from nothing
    assert set(names[:-1]) <= read | {"output"}
    known = {group.name for group in structure.coupling.groups}
    assert all(set(node.groups) <= known for node in found.nodes)


def test_edges_by_hand():
    found = overview(specimen("projection").structure)
    layer = {node.name: node.layer or node.kind for node in found.nodes}
    edges = [(layer[edge.source], layer[edge.target]) for edge in found.edges]
    assert edges == [
        ("input", "stem.0"), ("stem.0", "conv1"), ("conv1", "conv2"), ("stem.0", "project"),
        ("conv2", "add"), ("project", "add"), ("add", "global_pool"), ("global_pool", "fc"), ("fc", "output"),
    ]
    groups = {node.layer: node.groups for node in found.nodes if node.layer}
    assert groups["project"] == groups["conv2"] == ("conv2",)
    assert not any(edge.residual for edge in found.edges)   # the projection is a branch of its own


def test_residual_edges_skip_what_the_other_operand_is_computed_from():
    found = overview(specimen("cifar_resnet").structure)
    layer = {node.name: node.layer or node.kind for node in found.nodes}
    residual = [(layer[edge.source], layer[edge.target]) for edge in found.edges if edge.residual]
    assert residual == [("conv1", "add"), ("add", "add"), ("add", "add")]   # the fourth goes through a slice and a pad


def test_parts_of_a_split_are_read_from_what_is_split_and_sizes_carry_nothing():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 3)

        def forward(self, x, y):
            one, other = self.first(x).chunk(2, dim=1)
            return self.second(one * other).reshape(y.shape[0], 3)

    model = Split().eval()
    structure = analyse(capture(model, (torch.randn(3, 6), torch.randn(3, 5))), model)
    found = overview(structure)
    kinds = {node.name: node.layer or node.operators or node.kind for node in found.nodes}
    edges = {(kinds[edge.source], kinds[edge.target]) for edge in found.edges}
    part = ("python.operator.getitem",)
    assert {("first", part), (part, ("mul",)), (("mul",), "second"), ("second", "output")} <= edges
    second = structure.graph.inputs[1]
    assert not [edge for edge in found.edges if edge.source == second]
