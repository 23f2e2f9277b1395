"""The settings that workers read from a storage are the coordinator's."""

import json
from dataclasses import replace

import pytest

from paretopress.spaces.errors import ConfigError

DOCUMENT = {
    "targets": ["cortex-a76-tflite", "stm32-h7a3"], "max_drop": "1pp", "budgets": {"size": "-50%", "latency": "-30%"},
    "search": {"trials": 9, "sampler": "tpe", "importance": "l2", "distil": "calibration"},
    "space": {"bits": [8], "exclude": ["last*"], "sparsity": ["2:4"], "pin": {"first/weights": {"weights": 8,
                                                                                             "activations": 8}}},
    "distillation": {"steps": 7, "augmentation": {"mixup": 0.25}},
}


@pytest.fixture
def settings():
    from paretopress.settings import search_settings

    return search_settings(DOCUMENT, name="shared")


def test_settings_survive_the_storage(settings):
    from paretopress.search.stored_settings import settings_from_plain

    stored = json.loads(json.dumps(settings.to_plain()))
    assert settings_from_plain(stored, "storage") == settings
    started = replace(settings, warm_start="runs/other")
    assert settings_from_plain(json.loads(json.dumps(started.to_plain())), "storage") == settings
    again = replace(settings, trials=None, seconds=5.0)
    assert settings_from_plain(json.loads(json.dumps(again.to_plain())), "storage") == again


@pytest.mark.parametrize("change", [
    {"unknown": 1}, {"resources": {"cpus": "many"}}, {"space": {}}, {"space": 5}, {"budgets": [{}]},
    {"distillation": {"unknown": 1}}, {"targets": None},
])
def test_what_is_no_such_data_is_refused(settings, change):
    from paretopress.search.stored_settings import settings_from_plain

    stored = {**json.loads(json.dumps(settings.to_plain())), **change}
    with pytest.raises(ConfigError, match="storage"):
        settings_from_plain(stored, "storage")
