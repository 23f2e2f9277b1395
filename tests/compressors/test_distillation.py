"""Distillation: every trained tensor gets gradients, nothing else changes, and the result is stored as before."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from artefact_models import choices_of, prepared, rounds, same
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.utils import _pytree as pytree

from paretopress.compressors import distillation
from paretopress.compressors.augmentation import Augmentation, Augmenter
from paretopress.compressors.calibration import base_network, calibrate
from paretopress.compressors.compressed_model import load, network_of, run_batches
from paretopress.compressors.distillation import (
    COMPARED,
    DistillationSettings,
    Student,
    distil,
    output_divergence,
)
from paretopress.compressors.distillation_latents import LatentPart, quantise_activation
from paretopress.compressors.distillation_loss import output_loss
from paretopress.compressors.distillation_optimiser import LARGEST_SIDE, Optimiser, orthogonalised
from paretopress.compressors.distillation_schedule import FAR, relative_step, schedule
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.matrices import Matrix, in_format
from paretopress.compressors.network import Part, forward
from paretopress.compressors.program import build_program
from paretopress.compressors.quantisation import largest_level, quantise_tensor
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit, settle
from paretopress.compressors.stored import Integers, Shared, Signs, SparseWeight
from paretopress.compressors.trained_inputs import latent_inputs
from paretopress.evaluators.divergence import divergence
from paretopress.spaces.choices import Binary, Clustered, Half, Keep, Sparse, Weights
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

QUICK = DistillationSettings(steps=25, batch_size=16)
POLICIES = {
    "prune": {"keep": True},
    "rank": {"rank": True},
    "w8a8": {"bits": 8, "activations": 8},
    "w3": {"bits": 3},
    "mixed": {"keep": True, "rank": True, "bits": 4, "activations": 8},
    "clustered": {"form": Clustered(2), "keep": True},
    "signs": {"form": Binary(1, 1), "keep": True},
    "bases": {"form": Binary(3)},
    "sparse": {"sparse": Sparse(0.5, "2:4"), "bits": 4},
    "sparse fp16": {"sparse": Sparse(0.5), "form": Half("fp16"), "keep": True},
    "w4a4": {"form": Weights(4, 4), "rank": True},
    "w8 dynamic": {"form": Weights(8, ranges="dynamic"), "keep": True},
}
WITHOUT_CHOICE = {("keyword", "prune")}
CASES = [
    *((model, policy) for model in ("resnet", "depthwise", "mlp", "keyword") for policy in list(POLICIES)[:5]),
    *(("resnet", policy) for policy in list(POLICIES)[5:]),
    *((model, "mixed") for model in ("conv1d", "group_norm", "tied", "fixed_batch", "activated")),
]


@pytest.fixture(params=[case for case in CASES if case not in WITHOUT_CHOICE], ids="-".join)
def case(request):
    model, policy = request.param
    item = prepared(model)
    return item, item.network(choices_of(item, **POLICIES[policy]))


@pytest.fixture
def trained(monkeypatch):
    """Distil without the comparison, so that the trained network is what comes back."""
    def train(*args, **settings):
        losses = iter((1.0, 0.0))
        with monkeypatch.context() as patch:
            patch.setattr(distillation, "output_divergence", lambda *_: next(losses))
            return distil(*args, replace(QUICK, **settings)).network
    return train


def trained_tensors(network):
    return [tensor for node in sorted(network.parts) for part in network.parts[node]
            for tensor in (part.weight, part.bias) if tensor is not None]


def has_scales(stored):
    values = stored.values if isinstance(stored, SparseWeight) else stored
    return isinstance(values, Integers | Shared | Signs)


def test_gradients_reach_every_trained_tensor(case):
    item, network = case
    student = Student(item.program, network, QUICK)
    expected = sum(1 + (part.bias is not None) + has_scales(part.stored) + len(latent_inputs(part.inputs))
                   for layer in network.plan.layers if not layer.layer.frozen
                   for part in network.parts[layer.layer.node])
    assert len(student.trained) == expected
    size = item.program.graph.batch if not item.program.graph.dynamic_batch else 24
    student.loss([tensor[:size].clone() for tensor in item.inputs]).backward()
    for tensor in student.trained:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    reached = sum(bool(tensor.grad.abs().sum() > 0) for tensor in student.trained)
    # Integers start on their grid: no rounding error yet, and no gradient for scales without a weight at the end of it.
    resting = sum(has_scales(part.stored) and not isinstance(part.stored, Signs) for parts in network.parts.values()
                  for part in parts)
    assert reached >= expected - resting - 1   # the bias of a layer before a normalisation may have no effect


def test_what_comes_back_is_never_further_from_the_dense_model_where_it_is_compared(case):
    item, network = case
    compared = []

    def watch(program, one, inputs):
        compared.append(output_divergence(program, one, inputs))
        return compared[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "output_divergence", watch)
        result = distil(item.program, network, item.inputs, QUICK).network
    before, after = compared
    assert (result is network) == (after >= before)


def test_the_guard_keeps_the_network_that_training_made_worse():
    item = prepared("depthwise")
    network = item.network(choices_of(item, keep=True))
    ruinous = replace(QUICK, learning_rate=1e3)
    assert distil(item.program, network, item.inputs, ruinous).network is network


def test_the_guard_compares_on_variations_that_neither_refit_nor_training_has_seen():
    item, compared = prepared("depthwise"), []
    network = item.network(choices_of(item, keep=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "output_divergence", lambda *args: compared.append(args[2][0]) or 1.0)
        distil(item.program, network, item.inputs, QUICK)
    before, after = compared
    assert torch.equal(before, after)
    assert len(before) == COMPARED
    known = item.inputs[0].flatten(1)
    assert not any(bool((known == one).all(dim=1).any()) for one in before.flatten(1))


def test_distance_is_nothing_from_the_dense_model_itself_and_more_the_more_is_removed():
    item = prepared("depthwise")
    near, far = (item.network(choices_of(item, bits=bits)) for bits in (8, 2))
    for features in (0.0, 1.0):
        settings = replace(QUICK, features=features)
        same, close, away = (Student(item.program, one, settings).distance(item.inputs)
                             for one in (base_network(item.program), near, far))
        assert same == pytest.approx(0.0, abs=1e-6)
        assert same < close < away


def test_outputs_of_narrowed_layers_are_compared_unless_they_are_left_free():
    item = prepared("depthwise")
    network = item.network(choices_of(item, keep=True))
    narrowed = {part.layer.node for part in network.plan.layers if part.shape[0] < part.layer.shape[0]}
    kernels = {kernel.output: kernel.main for kernel in network.plan.structure.fusion.kernels}
    every, whole = ({kernels[name] for name in Student(item.program, network, replace(QUICK, narrowed=free)).features}
                    for free in (True, False))
    assert every & narrowed
    assert whole == every - narrowed
    assert distil(item.program, network, item.inputs, replace(QUICK, narrowed=False)).network is not network


def test_steps_are_in_proportion_to_the_root_of_the_distance_and_at_most_full():
    assert relative_step(0.25 * FAR) == pytest.approx(0.5)
    assert relative_step(0.0) == 0.0
    assert relative_step(FAR) == relative_step(7.0 * FAR) == relative_step(math.nan) == 1.0


@pytest.mark.parametrize("shape", [(12, 12), (8, 40), (40, 8), (1, 5)])
def test_orthogonalised_matrices_keep_directions_and_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrix = left * torch.logspace(-1, 2, min(shape), dtype=torch.float64) @ right
    found = left.T @ orthogonalised(matrix) @ right.T
    assert found.shape == (min(shape), min(shape))
    kept = torch.diagonal(found)[torch.logspace(-1, 2, min(shape)) > 2.0]
    assert bool(((kept > 0.6) & (kept < 1.4)).all())
    torch.testing.assert_close(found - torch.diag(torch.diagonal(found)), torch.zeros_like(found), rtol=0, atol=1e-6)
    assert not orthogonalised(torch.zeros(shape)).any()


def test_the_optimiser_steps_every_tensor_by_about_the_rate_whatever_the_size_of_its_gradient():
    torch.manual_seed(0)
    shapes = [(16, 24), (16, 8, 3, 3), (16, 1, 3, 3), (16,), (LARGEST_SIDE + 1, LARGEST_SIDE + 2)]
    tensors = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    optimiser = Optimiser(tensors)
    assert [len(tensor) for tensor in optimiser.matrices] == [16, 16]
    for tensor, size in zip(tensors, (1e-3, 1.0, 1e3, 1.0, 1e3), strict=True):
        tensor.grad = size * torch.randn(tensor.shape)
    optimiser.step(0.01)
    for tensor in tensors:
        assert 0.1 * 0.01 < float(tensor.detach().square().mean().sqrt()) < 1.01 * 0.01
        assert float((tensor.detach() * tensor.grad).sum()) < 0.0
    optimiser.forget_gradients()
    assert all(tensor.grad is None for tensor in tensors)


def test_only_weights_biases_and_integers_change(case, trained):
    item, network = case
    before = [tensor.clone() for tensor in trained_tensors(network)]
    dense = {name: tensor.clone() for name, tensor in item.program.state.items()}
    result = trained(item.program, network, item.inputs)
    assert all(torch.equal(old, new) for old, new in zip(before, trained_tensors(network), strict=True))
    assert all(torch.equal(dense[name], tensor) for name, tensor in item.program.state.items())
    assert (result.plan, result.ranges, result.folded) == (network.plan, network.ranges, network.folded)
    assert all(torch.equal(network.state[name], tensor) for name, tensor in result.state.items())
    frozen = {layer.layer.node for layer in network.plan.layers if layer.layer.frozen}
    for node, parts in result.parts.items():
        for old, new in zip(network.parts[node], parts, strict=True):
            assert type(new.stored) is type(old.stored)
            if isinstance(new.stored, Integers | Shared):
                assert bool((new.stored.scales > 0).all())
            if isinstance(new.stored, Shared):
                assert torch.equal(old.stored.codebook, new.stored.codebook)
            if isinstance(new.stored, SparseWeight):
                assert torch.equal(old.stored.mask, new.stored.mask)
            assert torch.equal(old.weight, new.weight) or node not in frozen
            assert not new.weight.requires_grad
    assert not all(torch.equal(old, new) for old, new in zip(before, trained_tensors(result), strict=True))


def test_scales_get_the_gradient_of_learned_step_sizes():
    """Inside the grid the rounding error of a weight in steps, outside the outermost level (Esser et al., 2020)."""
    scales = torch.tensor([0.5, 0.25])
    part = Part(torch.tensor([[0.5, -0.5], [0.25, 0.0]]), None, Integers(
        torch.tensor([[1, -1], [1, 0]], dtype=torch.int8), scales, 3))
    latent = LatentPart.of(part)
    with torch.no_grad():
        latent.weight.copy_(torch.tensor([[0.8, -9.0], [0.3, 0.05]]) / latent.weight_unit)
    outer = torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    (latent.current().weight * outer).sum().backward()
    steps = torch.tensor([[0.8, -9.0], [0.3, 0.05]]) / scales.unsqueeze(1)
    wanted = torch.where(steps.abs() < 3.0, steps.round() - steps, 3.0 * steps.sign()) * scales.unsqueeze(1)
    assert latent.stretch is not None
    assert torch.allclose(latent.stretch.grad, (outer * wanted).sum(dim=1, keepdim=True), atol=1e-5)
    with torch.no_grad():
        latent.stretch.copy_(torch.tensor([[2.0], [1.0]]))
    stored = latent.finished().stored
    assert stored.scales.tolist() == [1.0, 0.25]
    assert stored.integers.tolist() == [[1, -3], [1, 0]]


FORMS = (
    Weights(3, 32), Weights(3, 32, "tensor"), Weights(4, 32, "asymmetric"), Weights(4, 32, "asymmetric", 16),
    Clustered(2), Half(),
)


@pytest.mark.parametrize(("form", "sparse"), [
    (Binary(2), None), *((form, sparse) for form in FORMS for sparse in (None, Sparse(0.5))),
], ids=str)
def test_what_is_stored_in_the_end_is_what_was_trained(form, sparse):
    """Scales that training changed are stored, in every format and wherever rows share them."""
    torch.manual_seed(0)
    moments = torch.eye(33)
    part = in_format(Matrix(torch.randn(6, 32), None), moments, form, sparse).part((6, 32))
    latent = LatentPart.of(part)
    with torch.no_grad():
        if latent.stretch is not None:
            latent.stretch.mul_(torch.linspace(0.7, 1.6, len(latent.stretch)).unsqueeze(1))
        latent.weight.add_(0.3 * torch.randn(6, 32))
    assert (latent.stretch is None) == isinstance(form, Half)
    current, finished = latent.current().weight, latent.finished()
    assert torch.allclose(current, finished.weight, atol=1e-6)
    assert torch.equal(finished.weight, finished.stored.weight())


def test_integers_stay_on_their_grid(case, trained):
    item, network = case
    result = trained(item.program, network, item.inputs, learning_rate=0.3)
    for parts in result.parts.values():
        for part in parts:
            if isinstance(part.stored, Integers):
                assert part.stored.integers.dtype == torch.int8
                assert int(part.stored.integers.abs().max()) <= largest_level(part.stored.bits)
            if part.stored is not None:
                assert torch.equal(part.weight, part.stored.weight().reshape(part.weight.shape))


def test_it_is_realised_saved_loaded_and_exported_as_before(case, trained, tmp_path):
    item, network = case
    result = trained(item.program, network, item.inputs)
    compressed = realise(item.model, item.program, result)
    assert compressed.size_bytes == network.plan.stored_bytes
    with torch.inference_mode():
        expected = run_batches(item.program, result, item.inputs)
        assert same(compressed(*item.args, **item.kwargs), expected)
        compressed.save(tmp_path / "artefact")
        assert same(load(tmp_path / "artefact", item.model)(*item.args, **item.kwargs), expected)
    if not item.program.graph.dynamic_batch:
        return
    export_onnx(item.program, network_of(compressed), tmp_path / "model.onnx")
    found = run_session(session(tmp_path / "model.onnx"), item.inputs)
    for one, other in zip(pytree.tree_leaves(expected), found, strict=True):
        # Integer kernels may round a tie elsewhere: a step of an activation, seldom.
        tolerance = (0.05 if rounds(result) else 1e-4) * float(one.abs().max())
        assert float((one - other).abs().max()) <= tolerance


@pytest.mark.parametrize("policy", ["prune", "mixed"])
def test_the_same_seed_gives_the_same_tensors_and_another_seed_others(policy, trained):
    item = prepared("depthwise")
    network = item.network(choices_of(item, **POLICIES[policy]))
    one, again = (trained_tensors(trained(item.program, network, item.inputs)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    other = trained_tensors(distil(item.program, network, item.inputs, QUICK, seed=1).network)
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def residual():
    """A residual network one of whose blocks is dropped; its sums are in place."""
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
            y += x
            return F.relu(y, inplace=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(Block(), Block(), Block())
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))

    torch.manual_seed(3)
    model, inputs = Net().eval(), torch.randn(192, 3, 1, 1) + torch.randn(192, 3, 8, 8)
    with torch.no_grad():
        model.fc.weight *= 40.0   # otherwise all classes are equally likely whatever the input
    program = build_program(model, (inputs[:4],))
    return model, program, Entries(program, calibrate(program, [(inputs,)])), inputs


@pytest.mark.parametrize("integers", [False, True], ids=["float", "int8"])
def test_training_recovers_more_of_a_dropped_branch_than_solving_layer_by_layer(residual, integers):
    model, program, entries, inputs = residual
    names = [layer.name for layer in program.structure.without(["blocks.1.conv1"]).layers]
    weights = {f"{name}/weights": Weights(8) for name in names} if integers else {}
    planned = plan(program.structure, Policy.of({"blocks.1.conv1/channels": Keep(0.0), **weights}))
    seen, unseen = inputs[:128], inputs[128:]
    with torch.inference_mode():
        network = refit(program, entries, planned, (seen,))
        result = distil(program, network, (seen,), DistillationSettings(steps=200, batch_size=32)).network
    before, after = (output_divergence(program, one, (unseen,)) for one in (network, result))
    assert after < before
    compressed = realise(model, program, result)
    with torch.inference_mode():
        assert torch.equal(compressed(unseen), forward(program, result, (unseen,)))


@pytest.mark.parametrize("integers", [False, True], ids=["float", "int8"])
def test_training_in_bfloat16_recovers_nearly_as_much_and_stores_32_bits(residual, integers, monkeypatch):
    _, program, entries, inputs = residual
    names = [layer.name for layer in program.structure.layers]
    weights = {f"{name}/weights": Weights(8) for name in names} if integers else {}
    pruned = {f"blocks.{block}.conv1/channels": Keep(0.25) for block in range(2)}
    planned = plan(program.structure, Policy.of({**pruned, **weights}))
    seen, unseen = inputs[:128], inputs[128:]
    settings, found = DistillationSettings(steps=150, batch_size=32), {}
    with torch.inference_mode():
        network = settle(entries, planned)[0]   # what was solved again leaves little to gain
        before = output_divergence(program, network, (unseen,))
        for supported in (True, False):
            monkeypatch.setattr(distillation, "computes_in_bfloat16", lambda supported=supported: supported)
            found[supported] = distil(program, network, (seen,), replace(settings, bfloat16=True)).network
        exact = distil(program, network, (seen,), settings).network
    after = output_divergence(program, found[True], (unseen,))
    assert after < before
    assert before - after > 0.9 * (before - output_divergence(program, exact, (unseen,)))
    assert {tensor.dtype for tensor in trained_tensors(found[True])} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(trained_tensors(found[False]), trained_tensors(exact), strict=True))


@pytest.mark.parametrize(("avx", "amx", "narrow", "used"), [
    (True, False, 0.5, True), (False, True, 0.5, True), (True, False, 2.0, False), (False, False, 0.5, False)])
def test_products_are_in_bfloat16_only_where_that_is_faster(avx, amx, narrow, used, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(distillation, "_product_seconds",
                        lambda matrix: narrow if matrix.dtype == torch.bfloat16 else 1.0)
    assert distillation.computes_in_bfloat16.__wrapped__() is used


def test_training_recovers_a_pruned_perceptron_on_samples_it_never_saw():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with torch.no_grad():
        model[4].weight *= 20.0
    inputs = torch.randn(400, 6)
    program = build_program(model, (inputs[:4],))
    seen, unseen = inputs[:256], inputs[256:]
    entries = Entries(program, calibrate(program, [(seen,)]))
    planned = plan(program.structure, Policy.of({"0/channels": Keep(0.5), "2/channels": Keep(0.5)}))
    with torch.inference_mode():
        network = refit(program, entries, planned, (seen,))
    result = distil(program, network, (seen,), DistillationSettings(steps=300)).network
    before, after = (output_divergence(program, one, (unseen,)) for one in (network, result))
    assert after < 0.85 * before


def test_frozen_layers_keep_their_weights(trained):
    item = prepared("activated")
    structure = item.program.structure
    network = item.network(choices_of(item, bits=8, activations=32))
    frozen = [layer.node for layer in structure.layers if layer.frozen]
    result = trained(item.program, network, item.inputs)
    for node in frozen:
        assert all(old is new or torch.equal(old.weight, new.weight)
                   for old, new in zip(network.parts[node], result.parts[node], strict=True))


def test_the_dense_model_comes_back_as_it_is():
    item = prepared("resnet")
    network = item.network({})
    assert distil(item.program, network, item.inputs, QUICK).network is network


def test_a_network_without_trainable_layers_or_samples_comes_back():
    item = prepared("mlp")
    network = item.network(choices_of(item, keep=True))
    assert distil(item.program, network, [tensor[:1] for tensor in item.inputs], QUICK).network is network
    assert distil(item.program, network, item.inputs, replace(QUICK, seconds=0.0)).network is network


def test_progress_counts_steps():
    item, seen = prepared("mlp"), []
    network = item.network(choices_of(item, keep=True))
    distil(item.program, network, item.inputs, replace(QUICK, steps=3), progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_quantised_activations_are_those_of_the_artefact_and_pass_gradients_inside_the_range():
    x = torch.linspace(-2.0, 3.0, 101, requires_grad=True)
    found = quantise_activation(x, 0.01, 100)
    torch.testing.assert_close(found, quantise_tensor(x.detach(), 0.01, 100), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    inside = (x > -1.0) & (x < 1.55)
    assert torch.equal(gradient[inside], torch.ones(int(inside.sum())))
    assert not gradient[(x < -1.01) | (x > 1.56)].any()


@pytest.mark.parametrize("bits", [None, 8, 2])
def test_latent_parts_start_where_the_part_is(bits):
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3) * torch.tensor([1e-3, 1.0, 50.0, 0.0]).reshape(-1, 1, 1, 1)
    part = Part(weight, torch.randn(4))
    if bits:
        level = largest_level(bits)
        scales = torch.tensor([1e-3, 1.0, 50.0, 1.0])
        stored = Integers(torch.randint(-level, level + 1, (4, 27)).to(torch.int8), scales, bits)
        part = Part(stored.weight().reshape(4, 3, 3, 3), torch.randn(4), stored)
    latent = LatentPart.of(part)
    for found in (latent.current(), latent.finished()):
        torch.testing.assert_close(found.weight, part.weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.bias, part.bias, rtol=1e-6, atol=1e-7)
    if bits:
        assert torch.equal(latent.finished().stored.integers, part.stored.integers)
        torch.testing.assert_close(latent.current().weight.detach(), latent.finished().weight)


def test_the_loss_at_temperature_one_is_the_divergence_that_finalists_are_compared_by():
    torch.manual_seed(0)
    scores, values = torch.randn(20, 6), torch.randn(20, 4, 3)
    scores[:, 2] = -math.inf
    other = scores + torch.randn(20, 6)
    outputs = [scores, values, torch.arange(20), "text"]
    found = [other.requires_grad_(True), values + 0.3 * torch.randn(20, 4, 3), torch.arange(20), "text"]
    loss = output_loss(outputs, found)
    plain = [value.detach() if isinstance(value, torch.Tensor) else value for value in found]
    assert float(loss.detach()) == pytest.approx(divergence(outputs, plain), rel=1e-5)
    loss.backward()
    assert torch.isfinite(other.grad).all()
    assert float(output_loss(outputs, outputs, temperature=4.0)) == pytest.approx(0.0, abs=1e-6)


def test_the_dense_model_is_no_distance_from_itself():
    item = prepared("resnet")
    assert output_divergence(item.program, base_network(item.program), item.inputs) == pytest.approx(0.0, abs=1e-6)


def test_augmentation_keeps_inputs_together_and_leaves_indices_alone():
    values = torch.arange(40.0).reshape(10, 4)
    indices = torch.arange(10)
    augmenter = Augmenter((values, values * 2.0, indices), Augmentation(mixup=1.0, noise=0.0, difference=0.0),
                          torch.Generator().manual_seed(0))
    first, second, third = augmenter.batch(25)
    assert torch.allclose(second, 2.0 * first)
    assert set(third.tolist()) <= set(range(10))
    assert third.dtype == indices.dtype
    share = (first - values[third]).abs().amax(dim=1) / values.max()
    assert (share <= 0.5).all()
    assert (share > 0.0).any()


def test_differences_stay_in_the_span_of_the_samples():
    direction = torch.randn(1, 6)
    values = torch.randn(30, 1) * direction
    settings = Augmentation(mixup=0.0, noise=0.0, difference=1.0)
    batch = Augmenter((values,), settings, torch.Generator().manual_seed(0)).batch(30)[0]
    assert torch.linalg.matrix_rank(batch, tol=1e-4) == 1
    known = values @ direction.T
    assert ((batch @ direction.T - known.T).abs().amin(dim=1) > 1e-5).float().mean() > 0.8


def test_augmentation_can_be_switched_off_and_covers_every_sample():
    values = torch.randn(12, 2, 6)
    settings = Augmentation(mixup=0.0, noise=0.0, difference=0.0)
    batch = Augmenter((values,), settings, torch.Generator().manual_seed(0)).batch(12)[0]
    assert sorted(batch.sum(dim=(1, 2)).tolist()) == pytest.approx(sorted(values.sum(dim=(1, 2)).tolist()))


def test_a_share_of_the_images_is_mirrored_and_nothing_else_is():
    generator = torch.Generator().manual_seed(0)
    images, vectors = torch.randn(1, 3, 4, 5).expand(400, -1, -1, -1), torch.randn(400, 6)
    settings = Augmentation(mixup=0.0, noise=0.0, difference=0.0, mirror=0.25)
    varied, others = Augmenter((images, vectors), settings, generator).batch(400)
    mirrored = (varied == images.flip(3)).flatten(1).all(1)
    assert ((varied == images).flatten(1).all(1) ^ mirrored).all()
    assert 60 < int(mirrored.sum()) < 140   # 100 are expected
    assert torch.equal(others.sort(0).values, vectors.sort(0).values)


def test_noise_is_in_proportion_to_each_feature_and_shifts_only_roll():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, 3, 10) * torch.tensor([1.0, 100.0, 0.0]).reshape(1, 3, 1)
    noisy = Augmenter((values,), Augmentation(mixup=0.0, noise=0.5, difference=0.0), generator).batch(64)[0]
    assert (noisy[:, 2] == 0.0).all()
    rolled = Augmenter((values,), Augmentation(mixup=0.0, noise=0.0, difference=0.0, shift=0.3), generator).batch(64)[0]
    rolls = torch.stack([values.roll(step, dims=2) for step in range(-3, 4)], dim=1)   # (rows, steps, channels, length)
    matches = (rolled[:, None, None] == rolls[None]).all(dim=(-1, -2))                 # (rolled, rows, steps)
    assert (matches.any(dim=2).sum(dim=1) == 1).all()
    assert matches.any(dim=0).any(dim=0).sum() > 1


def test_the_schedule_rises_and_falls_to_zero():
    rates = [schedule(step / 100) for step in range(101)]
    assert rates[0] == 0.0
    assert max(rates) == rates[5] == 1.0
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(rates[5:]))


@pytest.mark.parametrize(("make", "said"), [
    (lambda: DistillationSettings(steps=0), "steps: got 0"),
    (lambda: DistillationSettings(batch_size=0), "batch_size: got 0"),
    (lambda: DistillationSettings(learning_rate=0.0), "learning_rate: got 0.0"),
    (lambda: DistillationSettings(temperature=math.nan), "temperature: got nan"),
    (lambda: DistillationSettings(features=-1.0), "features: got -1.0"),
    (lambda: DistillationSettings(held_out=1.0), "held_out: got 1.0"),
    (lambda: DistillationSettings(blocks=1.5), "blocks: got 1.5"),
    (lambda: Augmentation(mirror=1.5), "mirror: got 1.5"),
    (lambda: Augmentation(shift=-0.1), "shift: got -0.1"),
    (lambda: Augmentation(noise=math.inf), "noise: got inf"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_settings_that_nothing_can_be_trained_with_are_named(make, said):
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        make()
