"""One method without a search: real models, exact bytes, one line for everything that cannot be."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import paretopress
from paretopress import applying
from paretopress.demo import factories
from paretopress.spaces.choices import Binary, Clustered, Factorised, Half, Keep, Sparse, Weights
from paretopress.spaces.errors import ArtifactError, ConfigError, DataError, PolicyError, UnsupportedModelError
from paretopress.spaces.methods import quantisation
from paretopress.spaces.plan import plan

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "methods.md"
WHOLE = factories.data()
DATA = paretopress.Data(WHOLE.calibration[:128], [tuple(one[:96] for one in WHOLE.search)], WHOLE.holdout)
ENDS = ("stem.0/weights", "classifier/weights")


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def accuracy(compressed):
    images, labels = DATA.holdout
    with torch.inference_mode():
        return float((compressed(images).argmax(1) == labels).float().mean())


@pytest.fixture(scope="module")
def demo():
    return factories.model(), DATA


@pytest.fixture(scope="module", autouse=True)
def captured_once(demo):
    """The demo's model is captured and calibrated once per set of samples; every build of it is its own."""
    programs, entries = {}, {}
    capture, calibrate = applying.captured, applying.calibrated

    def captured(model, samples):
        if model is not demo[0] or samples.count < 4:
            return capture(model, samples)
        if samples.fingerprint not in programs:
            programs[samples.fingerprint] = capture(model, samples)
        return programs[samples.fingerprint]

    def calibrated(program, samples, importance, **options):
        key = (id(program), samples.fingerprint, importance,
               *(options[name] for name in ("seed", "ranges", "rounding", "equalise")))
        if key not in entries:
            entries[key] = calibrate(program, samples, importance, **options)
        return entries[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(applying, "captured", captured)
        patch.setattr(applying, "calibrated", calibrated)
        yield patch


METHODS = [
    ("prune", {"ratio": 0.5}, Keep(0.5), 0.97),
    ("quantize", {}, Weights(8, 8), 0.98),
    ("quantize", {"bits": 3, "activations": 32}, Weights(3, 32), 0.97),
    ("quantize", {"activations": 16}, Weights(8, 16), 0.98),
    ("quantize", {"bits": 4, "activations": 4}, Weights(4, 4), 0.9),
    ("quantize", {"activations": "dynamic"}, Weights(8, ranges="dynamic"), 0.98),
    ("factorize", {"rank": 0.75}, Factorised, 0.8),
    ("factorize", {"rank": 8}, Factorised("svd", 8), 0.4),
    ("sparsify", {}, Sparse(0.5), 0.97),
    ("sparsify", {"density": "2:4"}, Sparse(0.5, "2:4"), 0.97),
    ("sparsify", {"density": "0.25 in 4x1"}, Sparse(0.25, "4x1"), 0.9),
    ("binarize", {}, Binary(1, 32), 0.95),
    ("binarize", {"bases": 2}, Binary(2, 32), 0.95),
    ("binarize", {"activations": 1}, Binary(1, 1), 0.4),
    ("cluster", {}, Clustered(4), 0.98),
    ("halve", {}, Half("fp16"), 0.99),
    ("halve", {"kind": "bf16"}, Half("bf16"), 0.99),
]


@pytest.mark.parametrize(("name", "arguments", "choice", "least"), METHODS)
def test_a_method_gives_a_model_with_exact_bytes(demo, tmp_path, name, arguments, choice, least):
    model, data = demo
    before = state_of(model)
    compressed = getattr(paretopress, name)(model, data, **arguments)
    assert same(state_of(model), before)
    stored = compressed.save(tmp_path / "small")
    on_disk = sum(path.stat().st_size for path in (tmp_path / "small").iterdir())
    assert compressed.size_bytes == compressed.plan.stored_bytes == stored["size_bytes"] < 453_632
    assert stored["disk_bytes"] == on_disk
    assert accuracy(compressed) >= least
    middle = {unit: own for unit, own in compressed.policy if unit not in ENDS}
    assert middle
    assert all(isinstance(own, choice) if isinstance(choice, type) else own == choice for own in middle.values())
    assert compressed.tier in ("refit", "entries")
    decided = {unit for unit, _ in compressed.left_dense} | set(compressed.policy.choices)
    kind = next(iter(middle)).rpartition("/")[2]
    assert decided == {unit for unit in compressed.plan.structure.units if unit.endswith(f"/{kind}")}
    assert all(reason for _, reason in (*compressed.left_dense, *compressed.adjusted))
    x = data.holdout[0][:16]
    with torch.inference_mode():
        assert torch.equal(paretopress.load(tmp_path / "small", factories.model)(x), compressed(x))


def test_nothing_depends_on_anything_but_the_seed(captured_once):
    """Without what the other tests share: two models, two captures, one result; chance outside does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        from paretopress.evaluators import construction

        patch.setattr(applying, "captured", construction.captured)
        patch.setattr(applying, "calibrated", construction.calibrated)
        found, state = [], torch.random.get_rng_state()
        for number in (1, 2):
            torch.manual_seed(number)
            model = factories.model().train()
            drawn = torch.random.get_rng_state()
            made = paretopress.prune(model, DATA.calibration, {"stage2.*": 0.5}, distil=2, seed=3)
            assert torch.equal(torch.random.get_rng_state(), drawn)
            assert model.training
            assert all(parameter.requires_grad for parameter in model.parameters())
            found.append(made)
        torch.random.set_rng_state(state)
    assert same(state_of(found[0]), state_of(found[1]))
    assert found[0].policy == found[1].policy


def test_ends_keep_eight_bits_unless_they_are_named_or_end_bits_says_otherwise(demo):
    model, data = demo
    narrow = paretopress.quantize(model, data, 2, 32, refit=False)
    assert {narrow.policy.choices[unit] for unit in ENDS} == {Weights(8, 32)}
    assert [unit for unit, _ in narrow.adjusted] == list(ENDS)
    assert "the first layer keeps at least 8 bits" in narrow.adjusted[0][1]
    signs = paretopress.binarize(model, data, activations=8, refit=False)
    assert {signs.policy.choices[unit] for unit in ENDS} == {Weights(8, 8)}
    for bits, activations, ends in ((4, 4, Weights(8, 8)), (8, 4, Weights(8, 8)), (4, 16, Weights(8, 16)),
                                    (4, "dynamic", Weights(8, ranges="dynamic"))):
        assignment = quantisation(bits, activations).assign(narrow.plan.structure)
        assert {assignment.policy.choices[unit] for unit in ENDS} == {ends}
        assert {unit for unit, _ in assignment.adjusted} == set(ENDS)
    free = paretopress.quantize(model, data, 2, 32, end_bits=2, refit=False)
    assert {choice for _, choice in free.policy} == {Weights(2, 32)}
    assert free.adjusted == ()
    named = paretopress.quantize(model, data, {"*": 2, "classifier": 3, "stage1.*": None}, 32, refit=False)
    assert named.policy.choices["classifier/weights"] == Weights(3, 32)
    assert named.policy.choices["stem.0/weights"] == Weights(8, 32)
    assert ("stage1.0.conv1.0/weights", "quantize leaves 'stage1.*' dense") in named.left_dense


def test_what_stays_dense_is_named_with_its_reason(demo):
    model, data = demo
    narrow = paretopress.factorize(model, data, 0.5, exclude=("stage1.*",), refit=False)
    reasons = dict(narrow.left_dense)
    assert reasons["stage2.0.depthwise.0/rank"] == "a depthwise convolution has no low rank"
    assert reasons["stage1.0.conv1.0/rank"] == "excluded by 'stage1.*'"
    pruned = paretopress.prune(model, data, 0.001, refit=False)
    assert dict(pruned.left_dense) == {"classifier/channels": "it reaches the model's output"}
    assert "one step is kept" in dict(pruned.adjusted)["stem.0/channels"]
    with pytest.warns(UserWarning, match="nothing was changed .stem.0/sparsity: it would store 4,902 bytes"):
        sparse = paretopress.sparsify(model, data, 0.99, refit=False)
    assert sparse.tier == "dense"
    assert len(sparse.left_dense) == len(sparse.plan.structure.layers)
    applied = paretopress.apply(model, data, paretopress.Policy.of({"classifier/weights": Half()}), refit=False)
    assert dict(applied.left_dense)["stem.0/weights"] == "the policy has no choice for it"
    assert "classifier/weights" not in dict(applied.left_dense)


@pytest.mark.parametrize("importance", ["l1", "obs"])
def test_one_ranking_decides_how_much_each_group_loses(demo, importance):
    pruned = paretopress.prune(*demo, 0.5, scope="global", importance=importance, refit=False)
    groups = {group.name: group for group in pruned.program.structure.coupling.groups if not group.frozen}
    free = {name: group for name, group in groups.items() if f"{name}/channels" not in dict(pruned.left_dense)}
    kept = {name: pruned.plan.kept[name] for name in free}
    assert 0.5 <= sum(kept.values()) / sum(group.size for group in free.values()) < 0.52
    assert len({round(kept[name] / group.size, 3) for name, group in free.items()}) > 2
    assert all(kept[name] >= 0.1 * group.size for name, group in free.items())
    assert pruned.size_bytes == pruned.plan.stored_bytes


def test_channels_below_a_threshold_go(demo):
    few, many = (paretopress.prune(*demo, level, scope="threshold", importance="l1", refit=False, exclude=["stem.0"])
                 for level in (0.9, 1.1))
    assert many.size_bytes < few.size_bytes
    assert many.plan.kept["stem.0"] == many.program.structure.group("stem.0").size
    assert ("stem.0/channels", "excluded by 'stem.0'") in many.left_dense


@pytest.mark.parametrize(("ratio", "scope", "text"), [
    ({"*": 0.5}, "global", "none of scope 'global'"), (1.5, "global", "a fraction in"), (0.0, "threshold", "above 0"),
    (0.5, "globl", "unknown scope 'globl'; did you mean 'global'"),
])
def test_rankings_that_are_none(demo, ratio, scope, text):
    with pytest.raises(ConfigError, match=text):
        paretopress.prune(*demo, ratio, scope=scope)


def test_grids_of_inputs_are_chosen_too(demo):
    scales = {}
    for ranges in ("mse", "minmax", "percentile"):
        state = paretopress.quantize(*demo, 8, 4, ranges=ranges, refit=False).network.state_dict()
        scales[ranges] = torch.cat([tensor for name, tensor in state.items() if name.endswith("input_scale")])
    assert bool((scales["minmax"] >= scales["percentile"]).all())
    assert bool((scales["minmax"] > scales["mse"]).all())


def test_ranges_of_activations_are_chosen(demo):
    scales = {ranges: paretopress.quantize(*demo, 8, ranges=ranges, refit=False).activation_scale
              for ranges in ("mse", "minmax", "percentile")}
    assert bool((scales["minmax"] >= scales["percentile"]).all())
    assert not torch.equal(scales["minmax"], scales["mse"])
    with pytest.raises(ConfigError, match="unknown choice of ranges 'min'"):
        paretopress.quantize(*demo, 8, ranges="min")


def test_rounding_is_chosen(demo):
    built = {rounding: paretopress.quantize(*demo, 3, 32, rounding=rounding, refit=False)
             for rounding in ("feedback", "nearest", "learned")}
    assert same(state_of(built["feedback"]), state_of(paretopress.quantize(*demo, 3, 32, refit=False)))
    for one, other in itertools.combinations(built, 2):
        assert not same(state_of(built[one]), state_of(built[other]))
    assert len({one.size_bytes for one in built.values()}) == 1
    assert accuracy(built["learned"]) > 0.97
    composed = paretopress.apply(*demo, built["learned"].policy, rounding="learned", refit=False)
    assert same(state_of(composed), state_of(built["learned"]))


def test_equalised_models_are_models_like_any_other(demo, tmp_path):
    model, data = demo
    built = paretopress.quantize(model, data, 4, 32, scheme="tensor", equalise=True)
    plain = paretopress.quantize(model, data, 4, 32, scheme="tensor")
    assert (built.equalised, plain.equalised) == (5, 0)
    assert built.size_bytes == plain.size_bytes
    assert accuracy(built) > 0.95
    built.save(tmp_path / "equal")
    loaded = paretopress.load(tmp_path / "equal", factories.model)
    with torch.inference_mode():
        assert torch.equal(loaded(data.holdout[0]), built(data.holdout[0]))
    trained = [paretopress.distill(one, model, data, steps=15) for one in (built, loaded)]
    assert same(state_of(trained[0]), state_of(trained[1]))
    assert trained[0].equalised == 5
    assert paretopress.apply(model, data, paretopress.Policy(), equalise=True).equalised == 0   # the model as it was


@pytest.mark.parametrize("kind", ["spatial", "tucker", "nmf"])
def test_other_kinds_of_factors_are_real_layers_too(demo, kind):
    built = paretopress.factorize(*demo, 0.75, kind=kind, refit=False)
    found = {choice.kind for _, choice in built.policy}
    assert found == {kind}
    assert built.size_bytes == built.plan.stored_bytes < 453_632
    assert any("factors" in reason for _, reason in built.left_dense) or kind == "nmf"
    with pytest.raises(PolicyError, match="tuckr"):
        paretopress.factorize(*demo, 0.75, kind="tuckr")


@pytest.mark.parametrize(("name", "level", "schedule", "least"), [
    ("prune", 0.5, "iterative", 0.95),
    pytest.param("prune", 0.5, "lasso", 0.5, marks=pytest.mark.slow),
    pytest.param("sparsify", 0.3, "lasso", 0.5, marks=pytest.mark.slow),
    pytest.param("sparsify", 0.3, "iterative", 0.95, marks=pytest.mark.slow),
])
def test_policies_are_approached_with_training_between(demo, tmp_path, name, level, schedule, least):
    model, data = demo
    before = state_of(model)
    at_once = getattr(paretopress, name)(model, data, level, refit=False)
    found = getattr(paretopress, name)(model, data, level, schedule=schedule, rounds=2, distil=60)
    assert same(state_of(model), before)
    assert found.policy == at_once.policy
    assert found.size_bytes == found.plan.stored_bytes == at_once.size_bytes
    assert accuracy(found) >= least
    found.save(tmp_path / "small")
    x = data.holdout[0][:16]
    with torch.inference_mode():
        assert torch.equal(paretopress.load(tmp_path / "small", factories.model)(x), found(x))


@pytest.mark.parametrize(("arguments", "error", "text"), [
    ({"schedule": "iterativ", "distil": 10}, ConfigError, "unknown schedule 'iterativ'; did you mean 'iterative'"),
    ({"schedule": "lasso"}, ConfigError, "trains before the last cut: give distil=True"),
    ({"schedule": "iterative", "rounds": 1, "distil": 10}, ConfigError, "rounds: got 1 .allowed: a whole number"),
])
def test_schedules_that_are_none(demo, arguments, error, text):
    with pytest.raises(error, match=text):
        paretopress.prune(*demo, **arguments)


def test_a_policy_without_degrees_has_no_steps(demo):
    policy = paretopress.Policy.of({"classifier/weights": Weights(4, 32)})
    with pytest.raises(PolicyError, match="schedule 'lasso': the policy removes no channels or weights"):
        paretopress.apply(*demo, policy, schedule="lasso", distil=10)


def test_ranks_follow_from_energy_or_from_a_budget(demo):
    much, little = (paretopress.factorize(*demo, share, scope="energy", refit=False) for share in (0.99, 0.9))
    assert little.size_bytes < much.size_bytes < 453_632
    assert any("of its energy takes rank" in reason for _, reason in much.left_dense)
    half = paretopress.factorize(*demo, 0.5, scope="budget", refit=False)
    layers = [layer for layer in half.program.structure.layers if not layer.frozen and not layer.why_no_rank]
    left = {part.layer.name: sum(torch.Size(shape).numel() for _, shape in part.parts) for part in half.plan.layers}
    weights = sum(torch.Size(layer.shape).numel() for layer in layers)
    assert 0.45 * weights <= sum(left[layer.name] for layer in layers) <= 0.5 * weights
    assert len({choice.rank for _, choice in half.policy}) > 1


@pytest.mark.parametrize(("arguments", "text"), [
    ({"rank": 0.5, "scope": "enrgy"}, "unknown scope 'enrgy'; did you mean 'energy'"),
    ({"rank": 4, "scope": "energy"}, "rank 4 is none of scope 'energy'"),
    ({"rank": 0.5, "scope": "budget", "kind": "nmf"}, "goes by singular values"),
    ({"rank": 0.001, "scope": "budget"}, "rank 0.001 of all weights is out of reach"),
])
def test_ranks_that_are_none(demo, arguments, text):
    with pytest.raises(ConfigError, match=text):
        paretopress.factorize(*demo, **arguments)


def test_depth_goes_by_name(demo):
    model, data = demo
    shallow = paretopress.prune(model, data, {"stage1.1.conv1.0": 0})
    assert shallow.policy.choices == {"stage1.1.conv1.0/channels": Keep(0.0)}
    assert shallow.size_bytes == shallow.plan.stored_bytes
    assert accuracy(shallow) > 0.9


def test_methods_compose_as_policies_on_the_dense_model(demo):
    model, data = demo
    pruned = paretopress.prune(model, data, 0.5, refit=False)
    packed = paretopress.quantize(model, data, 4, 32, refit=False)
    both = paretopress.apply(model, data, pruned.policy.replace(packed.policy.choices))
    assert set(both.policy.choices) == set(pruned.policy.choices) | set(packed.policy.choices)
    assert both.size_bytes == both.plan.stored_bytes < min(pruned.size_bytes, packed.size_bytes)
    assert accuracy(both) > 0.95
    for again in (pruned, packed):
        with pytest.raises(ConfigError, match=r"compressed already.*one\.policy\.replace"):
            paretopress.prune(again, data)


def test_distillation_takes_models_and_policies_and_changes_no_byte(demo, tmp_path):
    model, data = demo
    narrow = paretopress.quantize(model, data, 2, 32, end_bits=2, refit=False)
    trained = paretopress.distill(narrow, model, data, steps=15)
    assert trained.tier == "distilled"
    assert trained.size_bytes == narrow.size_bytes
    assert trained.left_dense == narrow.left_dense
    assert accuracy(trained) > 0.97
    narrow.save(tmp_path / "narrow")
    loaded = paretopress.load(tmp_path / "narrow", factories.model)
    assert same(state_of(paretopress.distill(loaded, model, data, steps=15)), state_of(trained))
    few = paretopress.binarize(model, data, activations=1, refit=False)   # 2 steps lose more than they gain
    assert same(state_of(paretopress.distill(few, model, data, steps=2)), state_of(few))
    policy = paretopress.Policy.of({"classifier/weights": Weights(2, 32)})
    assert paretopress.distill(policy, model, data.calibration, steps=2).policy == policy


def test_calibration_inputs_come_in_every_form(demo):
    model, data = demo
    images = data.calibration
    batches = [images[:100], images[100:]]
    forms = [images, images.numpy(), batches, iter(batches), (images, torch.zeros(len(images)))]
    found = [paretopress.quantize(model, form, refit=False) for form in forms]
    assert all(same(state_of(one), state_of(found[0])) for one in found[1:])


class Pair(nn.Module):
    """Two named inputs, a table that computes in floats, and a head."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(40, 12)
        self.mix = nn.Linear(16, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, tokens, features):
        x = torch.cat([self.table(tokens).mean(1), features], 1)
        return self.head(torch.relu(self.mix(x)))


def test_keyword_inputs_and_layers_without_an_integer_kernel():
    torch.manual_seed(0)
    model = Pair().eval()
    inputs = {"tokens": torch.randint(0, 40, (64, 5)), "features": torch.randn(64, 4)}
    integers = paretopress.quantize(model, inputs)
    assert integers.policy.choices["table/weights"] == Weights(8, 32)
    assert [unit for unit, _ in integers.adjusted] == ["table/weights"]
    for activations, reason in ((4, "what an embedding reads"), ("dynamic", "no kernel computes layers of this kind")):
        rounded = paretopress.quantize(model, inputs, 8, activations, end_bits=2)
        assert rounded.policy.choices["table/weights"] == Weights(8, 32)
        assert [(unit, why.startswith(reason)) for unit, why in rounded.adjusted] == [("table/weights", True)]
    with torch.inference_mode():
        assert (integers(**inputs) - model(**inputs)).abs().max() < 0.1
    signs = paretopress.binarize(model, inputs, end_bits=2)
    assert dict(signs.left_dense) == {"table/weights": "the rows of an embedding are no signs"}
    with pytest.raises(PolicyError, match="binarize: unit 'table/weights': the rows of an embedding are no signs"):
        paretopress.binarize(model, inputs, {"table": 1})
    with pytest.raises(PolicyError, match="factorize: unit 'table/rank'"):
        paretopress.factorize(model, inputs, {"table": 2})


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("factorize", {"rank": 0}, PolicyError, "rank 0 is below 1"),
        ("factorize", {"rank": 0.0}, ConfigError, "rank 0.0 is neither a whole number from 1 nor a fraction"),
        ("factorize", {"rank": {"stage2.0.pointwise.0": 40}}, PolicyError, "40 is not below the break-even rank 32"),
        ("factorize", {"rank": {"stage2.0.depthwise.0": 2}}, PolicyError, "a depthwise convolution has no low rank"),
        ("quantize", {"bits": 0}, PolicyError, "0 weight bits are not offered"),
        ("quantize", {"bits": 33}, PolicyError, "33 weight bits are not offered"),
        ("quantize", {"bits": "8"}, ConfigError, "bits '8' is not a whole number"),
        ("quantize", {"activations": 5}, PolicyError, "5 activation bits are not offered .allowed: 4, 8, 16, 32"),
        ("quantize", {"activations": "dynamc"}, PolicyError, "activations 'dynamc' are not offered .allowed: 4, 8"),
        ("quantize", {"activations": "dynamic", "group": 32}, PolicyError, "8-bit activations go with symmetric"),
        ("quantize", {"end_bits": 5}, ConfigError, "end_bits 5 is not offered"),
        ("quantize", {"rounding": "learnt"}, ConfigError, "unknown rounding 'learnt'; did you mean 'learned'"),
        ("quantize", {"equalise": "yes"}, ConfigError, "equalise: got 'yes' .allowed: True, False."),
        ("quantize", {"bits": {"stage1.0.conv1": 4}}, ConfigError, "did you mean 'stage1.0.conv1.0'"),
        ("quantize", {"bits": {}}, ConfigError, "the mapping of layers to values is empty"),
        ("quantize", {"exclude": ("stemm.0",)}, ConfigError, "exclude: 'stemm.0' matches no .* mean 'stem.0'"),
        ("quantize", {"exclude": "stem.0"}, ConfigError, "expected a list of globs"),
        ("quantize", {"distil": "later"}, ConfigError, "distil: got 'later'"),
        ("quantize", {"distil": 0.5}, ConfigError, "distil: got 0.5"),
        ("prune", {"ratio": 0}, ConfigError, "ratio 0 .it keeps no channel. is outside"),
        ("prune", {"ratio": 1.5}, ConfigError, "ratio 1.5 is outside"),
        ("prune", {"ratio": {"classifier": 0.5}}, PolicyError, "it reaches the model's output"),
        ("prune", {"ratio": {"stem.0": 0}}, PolicyError, "only channels inside a residual branch"),
        ("prune", {"importance": "obss"}, ConfigError, "unknown importance 'obss'; did you mean 'obs'"),
        ("sparsify", {"density": 0}, PolicyError, "density 0.0 is outside"),
        ("sparsify", {"density": 1.5}, PolicyError, "density 1.5 is outside"),
        ("sparsify", {"density": "3:2"}, PolicyError, "sparsity '3:2' is not one"),
        ("binarize", {"bases": 4}, PolicyError, "4 binary bases are not offered"),
        ("binarize", {"bases": 2, "activations": 8}, PolicyError, "several bases do not compute in 8-bit integers"),
        ("cluster", {"bits": 1}, PolicyError, "weight sharing with 1 bits is not offered"),
        ("halve", {"kind": "fp17"}, PolicyError, "unknown 16-bit float 'fp17'; did you mean 'fp16'"),
    ],
)
def test_levels_that_are_none(demo, name, arguments, error, text):
    with pytest.raises(error, match=text) as refused:
        getattr(paretopress, name)(*demo, **arguments)
    assert len(str(refused.value).splitlines()) == 1


def nan_images():
    images = DATA.calibration.clone()
    images[3, 0, 0, 0] = float("nan")
    return images


def nan_model():
    model = factories.model()
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "data", "error", "text"),
    [
        (None, torch.zeros(0, 1, 8, 8), DataError, "calibration is empty"),
        (None, [], DataError, "calibration is empty"),
        (None, torch.zeros(1, 1, 8, 8), DataError, "at least 2 samples"),
        (None, "digits", DataError, "got str"),
        (None, nan_images, DataError, "holds NaN or infinities in 1 of 128 samples .first: row 3"),
        (nan_model, None, UnsupportedModelError, "'classifier.weight' holds NaN or infinities in 1 of 960 places"),
        (lambda: len, None, ConfigError, "must be a torch.nn.Module, got builtin_function_or_method"),
    ],
)
def test_models_and_data_that_are_none(demo, model, data, error, text):
    given = demo[0] if model is None else model()
    inputs = demo[1].calibration if data is None else data() if callable(data) else data
    with pytest.raises(error, match=text):
        paretopress.halve(given, inputs)


def test_policies_that_are_none(demo):
    model, data = demo
    together = {"classifier/weights": Binary(), "classifier/sparsity": Sparse(0.5)}
    with pytest.raises(PolicyError, match="a sign is never zero: signs cannot be sparse"):
        paretopress.apply(model, data, paretopress.Policy.of(together))
    with pytest.raises(PolicyError, match="unknown unit 'clasifier/weights'; did you mean 'classifier/weights'"):
        paretopress.apply(model, data, paretopress.Policy.of({"clasifier/weights": Half()}))
    with pytest.raises(ConfigError, match=r"expected a paretopress\.Policy, got dict"):
        paretopress.apply(model, data, together)
    with pytest.raises(ConfigError, match="expected a compressed model or a"):
        paretopress.distill(None, model, data)
    with pytest.raises(ConfigError, match="steps 0 is not a whole number from 1"):
        paretopress.distill(paretopress.Policy(), model, data, steps=0)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ArtifactError, match="belongs to another model"):
        paretopress.distill(paretopress.apply(model, data, paretopress.Policy()), other, data, steps=1)


def test_an_exported_model_computes_the_same_in_onnx_runtime(demo, tmp_path):
    from paretopress.compressors.export_onnx import run_session, session

    model, data = demo
    shared = paretopress.cluster(model, data, 3, refit=False)
    path = shared.export_onnx(tmp_path / "shared.onnx")
    images = data.holdout[0][:32]
    with torch.inference_mode():
        expected = shared(images)
    assert torch.allclose(run_session(session(path), [images])[0], expected, atol=1e-4 * float(expected.abs().max()))


def test_every_snippet_of_the_document_runs_and_its_bytes_are_right(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in zip(("model", "data"), demo, strict=True):
        monkeypatch.setattr(factories, name, lambda value=value: value)
    text = DOCUMENT.read_text()
    names = {}
    for snippet in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(snippet, str(DOCUMENT), "exec"), names)  # the document is ours
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == text.count("\nprint(")
    assert names["trained"].tier in ("distilled", "refit")
    structure = names["pruned"].program.structure

    def planned_bytes(_model, _data, decide, **_):
        return plan(structure, decide(structure).policy).stored_bytes

    monkeypatch.setattr(applying, "apply_policy", planned_bytes)
    rows = re.findall(r"^\| `((\w+)\(model, data.*?\))` \| ([\d,]+) \|", text, re.MULTILINE)
    assert {name for _, name, _ in rows} == {name for name, *_ in METHODS}
    assert [eval(f"paretopress.{call}", names) for call, *_ in rows] == [int(row[-1].replace(",", "")) for row in rows]
    monkeypatch.undo()
    policy = re.search(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    (tmp_path / "p.yaml").write_text(policy)   # also without a schema
    made = paretopress.apply(*demo, paretopress.Policy.load(tmp_path / "p.yaml"), refit=False)
    assert made.size_bytes == made.plan.stored_bytes


def test_the_table_of_combinations_is_the_rule(demo):
    structure = applying.captured(demo[0], applying.Sets.of(demo[1]).fitted).structure
    layer = "stage1.0.conv2.0"
    choices = {"prune": {"stage1.0.conv1.0/channels": Keep(0.5)}}
    formats = {"quantise": Weights(4, 32), "cluster": Clustered(4), "binarise": Binary(), "halve": Half()}
    choices |= {"factorise": {f"{layer}/rank": Factorised("svd", 8)}, "sparsify": {f"{layer}/sparsity": Sparse(0.5)}}
    choices |= {name: {f"{layer}/weights": form} for name, form in formats.items()}
    rows = re.findall(r"^\| ?(?:\*\*(\w+)\*\*)? \|(.*)\|$", DOCUMENT.read_text(), re.MULTILINE)
    heading = next(cells for name, cells in rows if not name and "factorise" in cells)
    columns = [cell.strip() for cell in heading.split("|")]
    seen = 0
    for name, cells in ((name, cells) for name, cells in rows if name):
        for column, cell in zip(columns, (cell.strip() for cell in cells.split("|")), strict=True):
            if cell:
                policy = paretopress.Policy.of({**choices[name], **choices[column]})
                seen += 1
                if cell.startswith("yes"):
                    assert plan(structure, policy).stored_bytes < 453_632
                else:
                    with pytest.raises(PolicyError, match=cell.removeprefix("no: ")):
                        plan(structure, policy)
    assert seen == 15
    inputs_too = {**choices["factorise"], f"{layer}/weights": Binary(1, 1)}
    with pytest.raises(PolicyError, match="the input of a second factor cannot be signs"):
        plan(structure, paretopress.Policy.of(inputs_too))


@pytest.fixture
def policy_file(tmp_path):
    choices = {"second/channels": Keep(0.5), "last/weights": Clustered(4), "second/weights": Weights(4, 32)}
    paretopress.Policy.of(choices).save(tmp_path / "policy.yaml")
    return tmp_path / "policy.yaml"


def test_apply_stores_measures_and_says_what_stays_dense(cli, policy_file, tmp_path):
    out = tmp_path / "small"
    arguments = ("apply", "--policy", policy_file, "--model", "small:model", "--data", "small:data", "-o", out)
    code, text, err = cli(*arguments, "--onnx", tmp_path / "small.onnx")
    assert code == 0, err
    assert re.search(r"accuracy \(holdout\) +100.0 % +\d+\.\d % +[-+]\d+\.\d pp", text)
    assert re.search(r"stored tensors +\d.* kB +.*x smaller", text)
    assert re.search(r"first/weights +the policy has no choice for it", text)
    assert f"next: paretopress verify {out}" in err
    assert (tmp_path / "small.onnx").stat().st_size > 0
    assert cli(*arguments)[0] == 2
    assert cli(*arguments, "--force", "--schedule", "iterative", "--rounds", "2", "--distil", "--time", "1s")[0] == 0
    code, text, err = cli(*arguments, "--force", "--no-refit", "--rounding", "learned", "--equalise", "--json")
    assert code == 0, err
    found = json.loads(text)
    measured = found["measured"]
    assert (found["tier"], found["equalised"]) == ("entries", 2)
    assert found["left_dense"] == [{"unit": "first/weights", "reason": "the policy has no choice for it"}]
    assert found["parity_problem"] is None
    assert measured["parity"]["reloaded_equal"] is True
    assert measured["disk_bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert measured["size_bytes"] < measured["size_bytes_baseline"]
    assert measured["accuracy_drop"] == pytest.approx(measured["accuracy_baseline"] - measured["accuracy"])


def test_apply_verifies_inputs_that_layers_round_by_what_both_put_first(cli, tmp_path):
    text = "{first/weights: {weights: 8, activations: 16}, second/weights: {weights: 4, activations: 4}, "
    text += "last/weights: {weights: 8, activations: 8, ranges: dynamic}}"
    (tmp_path / "policy.yaml").write_text(f"units: {text}")
    arguments = ("--policy", tmp_path / "policy.yaml", "--model", "small:model", "--data", "small:data")
    code, text, err = cli("apply", *arguments, "-o", tmp_path / "small", "--json")
    assert code == 0, err
    found = json.loads(text)
    assert found["parity_problem"] is None
    assert found["measured"]["parity"]["integer"] is True
    assert found["measured"]["parity"]["reloaded_equal"] is True


@pytest.mark.parametrize(
    ("policy", "more", "text"),
    [
        ("units: {frist/weights: {half: fp16}}", (), "unknown unit 'frist/weights'; did you mean 'first/weights'?"),
        ("units: {first/weights: {weights: 33}}", (), "33 weight bits are not offered"),
        ("units: {first/weights: {binary: 1}, first/sparsity: {sparse: 0.5}}", (), "signs cannot be sparse"),
        ("units: {first/rank: {factorised: svd, rank: 0}}", (), "rank 0 is below 1"),
        ("units: {}", ("--time", "5m"), "give --distil as well"),
        ("units: {}", ("--distil", "--time", "soon"), "distil: got 'soon'"),
        ("units: {}", ("--schedule", "lassso", "--distil"), "unknown schedule 'lassso'; did you mean 'lasso'?"),
        ("units: {}", ("--schedule", "lasso"), "give distil=True"),
        ("units: {first/weights: {half: fp16}}", ("--schedule", "lasso", "--distil"), "removes no channels or weights"),
        ("units: {}", ("--importance", "obss"), "did you mean 'obs'?"),
        ("units: {}", ("--rounding", "learnt"), "did you mean 'learned'?"),
        ("units: {}", ("--onnx", "nowhere/small.onnx"), "the folder nowhere does not exist"),
        ("units: {}", ("--onnx", "small/small.onnx"), "holds the model alone"),
        ("units: {}", ("--model", "small:modell"), "unknown function 'modell'"),
    ],
)
def test_apply_refuses_in_one_line(cli, tmp_path, monkeypatch, policy, more, text):
    (tmp_path / "policy.yaml").write_text(policy)
    out = tmp_path / "small"
    more = [str(out / "small.onnx") if one == "small/small.onnx" else one for one in more]
    arguments = ("apply", "--policy", tmp_path / "policy.yaml", "--model", "small:model", "--data", "small:data")
    code, printed, err = cli(*arguments, "-o", out, *more)
    assert (code, printed) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert text in err.splitlines()[-1]
    assert not out.exists()
    assert cli("apply", "--policy", tmp_path / "absent.yaml", *arguments[3:], "-o", out)[0] in (2, 74)
