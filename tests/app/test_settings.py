"""Settings files, overrides and flags."""

import os

import pytest

from paretopress.settings import (
    Document,
    override,
    parse_budgets,
    parse_duration,
    read_settings,
    search_settings,
    with_arguments,
)
from paretopress.spaces.errors import ConfigError

FULL = """
version: 1
targets: [local, stm32-h7a3]
budgets: {latency: "<=5ms", size: "-50%", latency@local: "2ms"}
max_drop: 1pp
search: {trials: 40, seed: 7, sampler: tpe, importance: l2, finalists: 5, workers: 2}
space:
  keep: [0.25, 0.5, 1]
  rank: [0.5]
  bits: [8, 4]
  exclude: ["head*"]
  pin: {"fc/weights": {weights: 8}}
distillation: {steps: 90, learning_rate: 0.01, bfloat16: true, blocks: 0.5, augmentation: {mirror: 0.5, noise: 0}}
timing: {runs: 50}
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def test_a_full_file_arrives_in_the_search(write):
    from paretopress.spaces.choices import Weights

    settings = search_settings(read_settings(write(FULL)), name="run")
    assert settings.targets == ("local", "stm32-h7a3")
    assert [(b.objective, b.kind, b.limit) for b in settings.budgets] == [
        ("latency", "absolute", 5.0),
        ("size", "relative", 0.5),
        ("latency@local", "absolute", 2.0),
        ("accuracy", "drop", 0.01),
    ]
    assert (settings.trials, settings.seconds, settings.seed, settings.finalists) == (40, None, 7, 5)
    assert (settings.sampler, settings.importance) == ("tpe", "l2")
    assert (settings.workers, settings.executor, settings.timing_runs) == (2, "process", 50)
    assert settings.space.keep == (0.25, 0.5, 1.0)
    assert settings.space.pin == {"fc/weights": Weights(8)}
    trained = settings.distillation
    assert (trained.steps, trained.learning_rate, trained.bfloat16, trained.blocks, trained.seconds) == (
        90, 0.01, True, 0.5, None)
    assert (trained.augmentation.mirror, trained.augmentation.noise) == (0.5, 0.0)
    assert settings.name == "run"


def test_an_empty_file_gives_the_defaults(write):
    from paretopress.search.problem import SearchSettings

    settings = search_settings(read_settings(write("")))
    assert settings.seconds == 300.0
    default = SearchSettings()
    for name in (
        "targets",
        "budgets",
        "trials",
        "seed",
        "ray",
        "sampler",
        "importance",
        "distillation",
        "finalists",
        "space",
        "timing_runs",
    ):
        assert getattr(settings, name) == getattr(default, name), name


def test_branches_may_be_dropped_unless_the_space_says_no():
    assert search_settings({}).space.depth
    assert not search_settings({"space": {"depth": False}}).space.depth


def test_first_and_last_layers_keep_8_bits_unless_the_space_says_otherwise():
    assert search_settings({}).space.end_bits == 8
    assert search_settings({"space": {"end_bits": 2}}).space.end_bits == 2
    with pytest.raises(ConfigError, match=r"space\.end_bits: .* got 5"):
        search_settings({"space": {"end_bits": 5}})


def test_workers_are_one_per_core_unless_a_number_of_trials_asks_for_repeatable_runs():
    timed = search_settings({"search": {"time": "1m"}})
    cores = min(8, len(os.sched_getaffinity(0)))
    assert (timed.workers, timed.executor) == (cores, "process" if cores > 1 else "serial")
    counted = search_settings({"search": {"trials": 5}})
    assert (counted.workers, counted.executor) == (1, "serial")
    assert search_settings({"search": {"trials": 5, "workers": 3}}).executor == "process"


def test_a_ray_address_chooses_the_executor():
    settings = search_settings(with_arguments({}, search={"ray": "auto", "workers": 4}))
    assert (settings.executor, settings.ray, settings.workers) == ("ray", "auto", 4)


@pytest.mark.parametrize(("search", "executor", "workers"), [
    ({"executor": "processes", "trials": 5}, "process", 1),
    ({"executor": "serial", "time": "1m"}, "serial", 1),
    ({"executor": "tune", "ray": "local", "workers": 2, "scheduler": "asha"}, "tune", 2),
    ({"executor": "ray", "workers": 3}, "ray", 3),
])
def test_an_executor_by_name(search, executor, workers):
    settings = search_settings({"search": search})
    assert (settings.executor, settings.workers) == (executor, workers)


def test_what_a_worker_takes_and_where_tune_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search = {"executor": "tune", "worker_resources": "cpu=2,gpu=0.5,licence=1", "storage_path": "results"}
    settings = search_settings({"search": search})
    assert settings.resources.amounts == {"CPU": 2.0, "GPU": 0.5, "licence": 1.0}
    assert settings.storage_path == str(tmp_path / "results")
    assert settings.to_plain()["resources"] == {"cpus": 2, "gpus": 0.5, "custom": {"licence": 1.0}}
    assert "tune_callbacks" not in settings.to_plain()
    remote = search_settings({"search": {**search, "storage_path": "s3://bucket/results"}})
    assert remote.storage_path == "s3://bucket/results"


@pytest.mark.parametrize(("search", "message"), [
    ({"executor": "rai"}, "search.executor: unknown value 'rai'; did you mean 'ray'?"),
    ({"executor": "serial", "workers": 2}, "search.workers: executor serial has one, not 2"),
    ({"executor": "processes", "ray": "auto"}, "search.ray: executor processes has no cluster"),
    ({"worker_resources": "gpu=1", "workers": 2}, "search.worker_resources: executor processes has no cluster"),
    ({"executor": "ray", "worker_resources": "gpu"}, "worker resources 'gpu': expected cpu=1,gpu=0.5,NAME=AMOUNT"),
    ({"executor": "ray", "scheduler": "asha"}, "search.scheduler is for executor tune, not ray"),
    ({"storage_path": "results"}, "search.storage_path is for executor tune, not"),
])
def test_settings_of_executors_that_do_not_go_together(search, message):
    with pytest.raises(ConfigError) as caught:
        search_settings({"search": search})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "search: {trails: 5}",
            "search.trails: unknown key; did you mean 'trials'? (allowed: effort, trials, time, ",
        ),
        ("serach: {}", "serach: unknown key; did you mean 'search'?"),
        ("space: {bit: [8]}", "space.bit: unknown key; did you mean 'bits'?"),
        ("search: {trials: ten}", "search.trials: expected a whole number, got 'ten'"),
        ("search: {trials: 2.5}", "search.trials: expected a whole number, got 2.5"),
        ("search: {trials: true}", "search.trials: expected a whole number, got True"),
        ("search: {trials: 0}", "search.trials: should be greater than or equal to 1, got 0"),
        ("search: {time: 5}", "search.time: expected text such as '5m', got 5"),
        ("search: {importance: obd}", "search.importance: unknown value 'obd'; did you mean 'obs'?"),
        ("distillation: {step: 9}", "distillation.step: unknown key; did you mean 'steps'?"),
        ("distillation: {steps: 0}", "distillation: steps: got 0 (allowed: from 1)"),
        ("distillation: {features: much}", "distillation.features: expected a number, got 'much'"),
        ("distillation: {augmentation: {miror: 1}}", "distillation.augmentation.miror: unknown key; did you mean"),
        ("distillation: {augmentation: {mirror: 2}}", "augmentation: mirror: got 2.0 (allowed: from 0 to 1)"),
        ("search: 5", "search: expected keys with values, got 5"),
        ("targets: local", "targets: expected a list, got 'local'"),
        ("targets: []", "targets: "),
        ("space: {keep: [1.5]}", "space.keep.0: should be less than or equal to 1, got 1.5"),
        ("space: {bits: [5]}", "space.bits.0: "),
        ("space: {clusters: [9]}", "space.clusters.0: should be less than or equal to 8, got 9"),
        ("space: {binary: [0]}", "space.binary.0: should be greater than or equal to 1, got 0"),
        ("space: {halves: [fp8]}", "space.halves.0: "),
        ("space: {groups: [24]}", "space.groups.0: "),
        ("space: {sparsity: [0.5, '4:2']}", "space.sparsity[1]: sparsity '4:2' is not one"),
        ("space: {sparsity: [1.5]}", "space.sparsity[0]: sparsity 1.5 is not one"),
        ("version: 2", "version: "),
        ("budgets: {latency: 5}", "budgets.latency: expected text such as '-50%', '<=5ms' or '<=200kB', got 5"),
        ("max_drop: 0.01", "max_drop: expected text such as '1pp' or '2%', got 0.01"),
        ("model: pkg.mod:factory", "model: a settings file is data and names no code; pass --model"),
        ("data: {loader: x}", "data: a settings file is data and names no code; pass --data"),
        ("[1, 2]", "expected keys such as targets and search, got [1, 2]"),
        ("a: !!python/object:os.system x", "tag"),
        ("a: [", "run.yaml:1:"),
    ],
)
def test_a_bad_file_names_path_value_and_nearest_key(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError) as raised:
        read_settings(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_overrides_are_typed_and_reach_every_level():
    plain = override({"search": {"seed": 3}}, "search.trials=50")
    assert plain == {"search": {"seed": 3, "trials": 50}}
    assert override({}, "space.bits=[8, 4]") == {"space": {"bits": [8, 4]}}
    assert override({}, "max_drop=2%") == {"max_drop": "2%"}
    assert override({}, "budgets.latency=<=5ms") == {"budgets": {"latency": "<=5ms"}}
    with pytest.raises(ConfigError, match=r"^--set search.time=5: search.time: expected text such as '5m', got 5"):
        override({}, "search.time=5")


def test_flags_beat_the_file_and_time_replaces_trials():
    plain = {
        "search": {"trials": 40, "seed": 7},
        "budgets": {"size": "-50%", "latency": "5ms"},
        "max_drop": "2pp",
    }
    changed = with_arguments(
        plain, ["local"], {"latency": "1ms", "macs": None}, "1pp", {"time": "5m", "seed": None}
    )
    assert changed == {
        "search": {"time": "5m", "seed": 7},
        "budgets": {"size": "-50%", "latency": "1ms"},
        "max_drop": "1pp",
        "targets": ["local"],
    }
    assert with_arguments({"search": {"time": "5m"}}, search={"trials": 3})["search"] == {"trials": 3}
    assert plain["search"] == {"trials": 40, "seed": 7}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("5min", 300),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("0.5m", 30),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text, "time") == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "0s", "-5m", "5 minutes", "m", "5x", "1m1h", "nan", "1e3s", "9" * 400 + "h"]
)
def test_bad_durations(text):
    with pytest.raises(ConfigError, match="time: got"):
        parse_duration(text, "time")


def test_budgets_name_known_objectives_and_targets():
    budgets = parse_budgets({"latency@a": "5ms"}, None, ["a", "b"])
    assert [budget.objective for budget in budgets] == ["latency@a"]
    with pytest.raises(ConfigError, match="unknown target 'c'"):
        parse_budgets({"latency@c": "5ms"}, None, ["a", "b"])
    with pytest.raises(ConfigError, match="limited with max_drop"):
        parse_budgets({"accuracy": "1pp"}, None, ["a"])


def test_the_schema_is_closed_at_every_level():
    for model in (
        Document,
        *(
            field.annotation
            for field in Document.model_fields.values()
            if hasattr(field.annotation, "model_config")
        ),
    ):
        assert model.model_config["extra"] == "forbid"
        assert model.model_config["strict"] is True


@pytest.mark.parametrize(("effort", "expected"), [
    ("quick", (90.0, 10, 100, 600)), ("balanced", (300.0, 22, 200, 1500)), ("thorough", (1800.0, 40, 400, 4000)),
])
def test_an_effort_sets_what_nothing_else_sets(effort, expected):
    found = search_settings({"search": {"effort": effort}})
    assert (found.seconds, found.finalists, found.timing_runs, found.distillation.steps) == expected
    plain = {"search": {"effort": effort, "time": "7s", "finalists": 3}, "timing": {"runs": 5},
             "distillation": {"steps": 11}}
    own = search_settings(plain)
    assert (own.seconds, own.finalists, own.timing_runs, own.distillation.steps) == (7.0, 3, 5, 11)
    assert search_settings({"search": {"effort": effort, "trials": 5}}).seconds is None


def test_samplers_and_encodings_are_checked():
    with pytest.raises(ConfigError, match=r"search.sampler: unknown value 'evolve'; did you mean 'evolution'"):
        search_settings({"search": {"sampler": "evolve"}})
    with pytest.raises(ConfigError, match=r"search.effort: unknown value 'fast'"):
        search_settings({"search": {"effort": "fast"}})
    assert search_settings({"search": {"sampler": "gp", "encoding": "reweighted"}}).encoding == "reweighted"
