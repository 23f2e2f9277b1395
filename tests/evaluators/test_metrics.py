"""Metrics: values, names, refusals, and joining outputs of any structure."""

import functools
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch

from paretopress.evaluators.metrics import (
    Metric,
    concatenate_outputs,
    normalise_metric,
    score,
    top1,
)
from paretopress.spaces.errors import ConfigError, DataError

SCORES = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
TARGETS = torch.tensor([1, 0, 0, 0])


class ModelOutput(OrderedDict):
    """As Hugging Face returns them: a mapping whose members are also attributes."""

    def __init__(self, **members):
        super().__init__(members)
        self.__dict__.update(members)


def test_top1_counts_correct_first_guesses():
    assert top1(SCORES, TARGETS) == 0.75
    assert top1((SCORES, "state"), TARGETS) == 0.75
    assert top1(ModelOutput(logits=SCORES), TARGETS) == 0.75


def test_top1_takes_classes_from_dimension_1_for_dense_predictions():
    scores = torch.randn(2, 5, 3, 3)
    assert top1(scores, scores.argmax(1)) == 1.0


@pytest.mark.parametrize(
    ("outputs", "targets", "says"),
    [
        (SCORES, TARGETS[:3], r"\(4, 2\) and \(3,\)"),
        (SCORES[:, :1], TARGETS, r"\(4, 1\)"),
        (SCORES[:, 0], TARGETS, r"\(4,\)"),
        (SCORES * float("nan"), TARGETS, "NaN"),
        ({"scores": SCORES}, TARGETS, "logits"),
    ],
)
def test_top1_refuses_what_it_cannot_count(outputs, targets, says):
    with pytest.raises(DataError, match=says):
        top1(outputs, targets)


def test_a_bare_callable_is_maximised_accuracy():
    (metric,) = normalise_metric(top1)
    assert (metric.name, metric.direction, metric.label) == ("accuracy", "max", "top1")


def test_the_first_of_a_mapping_is_accuracy_and_directions_survive():
    error = Metric(lambda outputs, targets: 1 - top1(outputs, targets), direction="min")
    first, second = normalise_metric({"f1": top1, "error": error})
    assert (first.name, first.label, first.direction) == ("accuracy", "f1", "max")
    assert (second.name, second.direction) == ("error", "min")
    assert score((first, second), SCORES, TARGETS) == {"accuracy": 0.75, "error": 0.25}


def test_a_bare_metric_keeps_its_direction():
    (metric,) = normalise_metric(Metric(top1, direction="min"))
    assert (metric.name, metric.direction) == ("accuracy", "min")


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ({}, "empty"),
        ({"ok": top1, "accuracy": top1}, "belongs to the first"),
        ({"latency": top1}, r"'latency' is reserved .*allowed: any other name, such as 'my_latency'"),
        ({"f1": top1, "divergence": top1}, "'divergence' is reserved"),
        ({"f1": top1, "latency_ms": top1}, "'latency_ms' is reserved"),
        ({"relative": top1}, "'relative' is reserved"),
        ({"latency@local": top1}, "letters, digits"),
        ({"f1@x": top1}, "letters, digits"),
        ({"f1": 3}, "expected a callable, got int"),
        ("top1", "expected a callable, got str"),
    ],
)
def test_malformed_metrics_are_refused(metric, says):
    with pytest.raises(ConfigError, match=says):
        normalise_metric(metric)


def test_names_that_only_resemble_reserved_ones_are_allowed():
    metrics = normalise_metric({"f1": top1, "accuracy_top5": top1, "latency_score": top1, "sizes": top1})
    assert [metric.name for metric in metrics] == ["accuracy", "accuracy_top5", "latency_score", "sizes"]


def test_an_unknown_direction_names_the_allowed_ones():
    with pytest.raises(ConfigError, match=r"'maximum'.*did you mean 'max'"):
        Metric(top1, direction="maximum")


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int64(1), torch.tensor(0.5), torch.ones(1)])
def test_any_real_number_becomes_a_float(value):
    result = Metric(lambda *_: value)(SCORES, TARGETS)
    assert type(result) is float
    assert result == float(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.5", True, 1j, torch.zeros(2)])
def test_anything_else_is_refused_with_the_metrics_name(value):
    (metric,) = normalise_metric({"f1": lambda *_: value})
    with pytest.raises(DataError, match="metric 'f1' returned"):
        metric(SCORES, TARGETS)


def test_what_a_metric_raises_is_one_line_with_its_name_and_place():
    (metric,) = normalise_metric({"f1": lambda *_: 1 / 0})
    with pytest.raises(DataError, match=r"metric 'f1' raised ZeroDivisionError: division by zero at .*\.py:\d+$"):
        metric(SCORES, TARGETS)
    with pytest.raises(DataError, match=r"^top1 needs outputs"):   # our own refusals are not wrapped
        Metric(top1)(SCORES, TARGETS[:3])


def test_identity_tells_functions_and_directions_apart():
    def other(outputs, targets):
        return 0.0

    identities = [Metric(top1), Metric(top1, "min"), Metric(other), Metric(top1, name="f1")]
    assert len({str(metric.identity()) for metric in identities}) == 4
    assert Metric(top1).identity() == Metric(top1).identity()
    assert Metric(functools.partial(top1)).identity()[2] == "paretopress.evaluators.metrics.top1"


def test_outputs_are_joined_in_the_structure_they_came_in():
    Pair = namedtuple("Pair", "scores hidden")
    parts = [SCORES[:3], SCORES[3:]]
    joined = concatenate_outputs([Pair(part, {"h": [part + 1]}) for part in parts])
    assert isinstance(joined, Pair)
    assert torch.equal(joined.scores, SCORES)
    assert torch.equal(joined.hidden["h"][0], SCORES + 1)
    output = concatenate_outputs([ModelOutput(logits=part, cache=None, loss=part.mean()) for part in parts])
    assert isinstance(output, ModelOutput)
    assert torch.equal(output.logits, SCORES)
    assert output.cache is None
    assert output.loss.shape == (2,)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([], "no outputs"),
        ([SCORES, (SCORES,)], "differ in type"),
        ([SCORES, SCORES[:, :1]], r"sample shape between batches: \(1,\), \(2,\)"),
        ([{"a": SCORES}, {"b": SCORES}], "keys"),
        ([(SCORES,), (SCORES, SCORES)], "length"),
        ([3, 4], "type int differ"),
    ],
)
def test_outputs_that_do_not_belong_together_are_refused(outputs, says):
    with pytest.raises(DataError, match=says):
        concatenate_outputs(outputs)
