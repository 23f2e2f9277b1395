"""Blocks: where a graph is divided, and that training them one by one brings a network nearer to the dense model."""

from dataclasses import replace

import pytest
import torch
from artefact_models import choices_of, prepared, same
from torch.utils import _pytree as pytree

from paretopress.compressors.block_reconstruction import blocks, reconstruct
from paretopress.compressors.calibration import base_network
from paretopress.compressors.compressed_model import run_batches
from paretopress.compressors.distillation import DistillationSettings, distil
from paretopress.compressors.distillation_loss import output_loss, relative_error
from paretopress.compressors.network import forward, runner, select
from paretopress.compressors.realise import realise
from paretopress.spaces.choices import Binary, Clustered, Sparse

MODELS = ("resnet", "depthwise", "mlp", "keyword", "conv1d", "group_norm", "tied", "fixed_batch", "activated")
POLICIES = {
    "narrow w4": {"keep": True, "bits": 4},
    "ranks w8a8": {"rank": True, "bits": 8, "activations": 8},
    "clustered": {"form": Clustered(2), "keep": True},
    "signs": {"form": Binary(1, 1)},
    "sparse": {"sparse": Sparse(0.5, "2:4"), "bits": 3},
}


def trained_nodes(item):
    return [layer.node for layer in item.program.structure.layers if not layer.frozen]


def border_error(item, network, batches):
    """What is trained for: relative errors at all borders, and the divergence of the outputs."""
    program = item.program.under(network.plan.structure)
    divided = blocks(program.structure, trained_nodes(item))
    names = frozenset(block.border for block in divided if block.border)
    outputs = program.graph.outputs
    axes, total = network.plan.structure.coupling.values, 0.0
    base = base_network(item.program)
    for batch in batches:
        with torch.inference_mode():
            wanted = item.program.run(batch, runner(item.program, base), keep=names)
            found = program.run(batch, runner(program, network), keep=names)
        for name in names:
            known = axes.get(name) or (None,) * found[name].ndim
            total += float(relative_error(select(wanted[name], known, network.selection), found[name]))
        total += float(output_loss([wanted[name] for name in outputs], [found[name] for name in outputs]))
    return total


def mini_batches(item, count=6, seed=0):
    size = len(item.inputs[0]) if item.program.graph.dynamic_batch else item.program.graph.batch
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(len(item.inputs[0]), (min(size, 16),), generator=generator) for _ in range(count)]
    return [[tensor[chosen] for tensor in item.inputs] for chosen in rows]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_blocks_cover_a_graph_in_order_and_one_value_of_a_layer_passes_each_border(name, layers):
    item = prepared(name)
    graph, trained = item.program.graph, trained_nodes(item)
    divided = blocks(item.program.structure, trained, layers)
    assert [name for block in divided for name in block.nodes] == [
        node.name for node in graph.nodes if node.op not in ("input", "output")]
    assert sorted(node for block in divided for node in block.layers) == sorted(trained)
    assert divided[-1].border == ""
    assert all(len(block.layers) >= layers for block in divided[:-1])
    computed = item.program.downstream(trained)
    for block in divided[:-1]:
        end = graph.position[block.border]
        passing = {one.name for one in graph.nodes[: end + 1] if one.name in computed
                   and any(graph.position[user] > end for user in graph.users[one.name])}
        assert passing == {block.border}


def test_residual_blocks_end_behind_their_sums():
    item = prepared("resnet")
    borders = {block.border for block in blocks(item.program.structure, trained_nodes(item), 3) if block.border}
    graph = item.program.graph
    sums = [node.name for node in graph.nodes if node.short_op.startswith("add")]
    activated = {user for name in sums for user in graph.users[name]}
    assert len(sums) == 2
    assert borders
    assert borders <= activated


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["resnet", "depthwise", "mlp"])
def test_it_brings_a_network_nearer_and_changes_nothing_but_the_layers(name, policy):
    item = prepared(name)
    network = item.network(choices_of(item, **POLICIES[policy]))
    batches = mini_batches(item)
    with torch.inference_mode(mode=False), torch.enable_grad():
        found = reconstruct(item.program, network, batches, steps=120, learning_rate=0.03)
    assert border_error(item, found, batches) < border_error(item, network, batches)
    assert found.ranges == network.ranges
    assert found.state.keys() == network.state.keys()
    assert all(same(found.state[key], network.state[key]) for key in found.state)
    assert {node: [part.weight.shape for part in parts] for node, parts in found.parts.items()} == {
        node: [part.weight.shape for part in parts] for node, parts in network.parts.items()}


@pytest.mark.parametrize("name", MODELS)
def test_what_it_makes_is_realised_as_it_computes(name):
    item = prepared(name)
    network = item.network(choices_of(item, bits=3))
    with torch.inference_mode(mode=False), torch.enable_grad():
        found = reconstruct(item.program, network, mini_batches(item), steps=12, learning_rate=0.03)
    compressed = realise(item.model, item.program, found)
    with torch.inference_mode():
        pairs = zip(*(pytree.tree_leaves(one) for one in (
            compressed(*item.args, **item.kwargs), forward(item.program, found, item.inputs))), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_blocks_that_training_makes_worse_stay_as_they_were():
    item = prepared("depthwise")
    network = item.network(choices_of(item, bits=4))
    with torch.inference_mode(mode=False), torch.enable_grad():
        found = reconstruct(item.program, network, mini_batches(item), steps=40, learning_rate=1e3)
    for node, parts in network.parts.items():
        assert all(same(one.weight, other.weight) for one, other in zip(parts, found.parts[node], strict=True))


def test_the_dense_network_has_nothing_to_gain():
    item = prepared("resnet")
    base = base_network(item.program)
    with torch.inference_mode(mode=False), torch.enable_grad():
        found = reconstruct(item.program, base, mini_batches(item), steps=10, learning_rate=0.03)
    batch = mini_batches(item, 1)[0]
    with torch.inference_mode():
        one, other = (run_batches(item.program, network, list(batch)) for network in (base, found))
    assert torch.allclose(one, other, atol=1e-5)


def test_distillation_counts_the_steps_of_blocks_and_of_what_follows():
    item, seen = prepared("mlp"), []
    network = item.network(choices_of(item, keep=True, bits=4))
    settings = DistillationSettings(steps=10, batch_size=16, blocks=0.6)
    distil(item.program, network, item.inputs, settings, progress=lambda *step: seen.append(step))
    assert seen == [(step, 10) for step in range(1, 11)]
    seen.clear()
    distil(item.program, network, item.inputs, replace(settings, blocks=1.0), progress=lambda *step: seen.append(step))
    assert seen == [(step, 10) for step in range(1, 11)]


def test_no_time_changes_nothing():
    item = prepared("mlp")
    network = item.network(choices_of(item, keep=True))
    settings = DistillationSettings(steps=10, batch_size=16, blocks=1.0, seconds=0.0)
    assert distil(item.program, network, item.inputs, settings).network is network


def test_the_same_batches_give_the_same_network():
    item = prepared("depthwise")
    network = item.network(choices_of(item, keep=True, bits=4))
    with torch.inference_mode(mode=False), torch.enable_grad():
        one, other = (reconstruct(item.program, network, mini_batches(item), steps=200, learning_rate=0.03)
                      for _ in range(2))
    assert any(not same(part.weight, before.weight) for node, parts in network.parts.items()
               for before, part in zip(parts, one.parts[node], strict=True))
    for node, parts in one.parts.items():
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(parts, other.parts[node], strict=True))
