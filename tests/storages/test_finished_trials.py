"""Mirrored trials are written in a few statements, and what Optuna reads back is what it would have written itself."""

import contextlib

import pytest

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.option_space import OptionSpace
from paretopress.search.records import TrialRecord
from paretopress.search.storages.optuna_mirror import OptunaMirror, optuna_storage
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.spaces.choices import Weights
from paretopress.spaces.policy import Policy

optuna = pytest.importorskip("optuna")

OBJECTIVES = {"accuracy": "max", "size": "min"}
MANY = 60   # parameters


def space_of(parameters, *bits):
    return OptionSpace.of({f"layer{number}/weights": (None, *map(Weights, bits)) for number in range(parameters)})


def records(space):
    """Complete, screened and failed trials."""
    states = [State.COMPLETE, State.COMPLETE, State.SCREENED, State.FAILED, State.COMPLETE]
    found = []
    for number, state in enumerate(states):
        unit = space.units[number % len(space.units)]
        policy = Policy.of({unit: space.options[space.units.index(unit)][1 + number % 2]})
        values = {"accuracy": number / 7.0, "size": 100.0 - number, "divergence": 0.25}
        evaluation = Evaluation(
            state, values if state is State.COMPLETE else {"divergence": 0.5} if state is State.SCREENED else {},
            {"size": number - 2.5} if state is not State.FAILED else {},
            reason="" if state is State.COMPLETE else "too large",
        )
        found.append(TrialRecord.of(number, policy, evaluation, 0.5))
    return found


def read_back(url, name):
    trials = optuna.load_study(study_name=name, storage=optuna_storage(url)).get_trials()
    return [(one.number, one.state, one.values, one.params, one.distributions, one.user_attrs, one.system_attrs,
             one.constraints) for one in trials]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param != "postgresql":
        return StorageUrl.parse(request.param, tmp_path)
    return StorageUrl.parse(request.getfixturevalue("postgresql").create(f"finished{tmp_path.name[-3:]}"), tmp_path)


@pytest.mark.parametrize("url", ["sqlite", "postgresql", "journal"], indirect=True)
def test_optuna_reads_what_it_would_have_written(url, monkeypatch):
    space = space_of(5, 8, 4)
    OptunaMirror(url, "fast", OBJECTIVES, space).catch_up(records(space))
    monkeypatch.setattr("paretopress.search.storages.finished_trials.has_known_tables", lambda: False)
    monkeypatch.delattr("paretopress.search.storages.finished_trials.FinishedTrialsJournal.create_new_trial")
    OptunaMirror(url, "plain", OBJECTIVES, space).catch_up(records(space))
    found = read_back(url, "fast")
    assert found == read_back(url, "plain")
    assert [one[0] for one in found] == list(range(5))
    assert found[4][3]["layer4/weights"] == space.labels["layer4/weights"][1]


def test_tables_that_are_not_known_are_written_by_optuna_alone(tmp_path, monkeypatch):
    """Also trials without parameters, which have nothing that would have to be checked first."""
    from paretopress.search.storages import finished_trials

    monkeypatch.setattr(finished_trials, "has_known_tables", lambda: False)
    monkeypatch.setattr(finished_trials, "_insert", lambda *_: pytest.fail("written past Optuna"))
    url = StorageUrl.parse("sqlite", tmp_path)
    failed = [TrialRecord.of(number, Policy(), Evaluation(State.FAILED, reason="x"), 0.1) for number in range(3)]
    OptunaMirror(url, "none", OBJECTIVES, OptionSpace.of({})).catch_up(failed)
    assert len(read_back(url, "none")) == 3


def test_a_journal_is_read_by_whoever_reads(tmp_path):
    """The writer itself sees what it has written, in the order of the journal."""
    url, space = StorageUrl.parse("journal", tmp_path), space_of(4, 8, 4)
    mirror = OptunaMirror(url, "own", OBJECTIVES, space)
    mirror.catch_up(records(space)[:2])
    mirror.catch_up(records(space))
    assert [one.user_attrs["number"] for one in mirror._study.get_trials()] == list(range(5))
    trial = mirror._study.ask()
    mirror._study.tell(trial, [0.5, 1.0])
    assert read_back(url, "own")[5][2] == [0.5, 1.0]


@contextlib.contextmanager
def counted_statements(storage):
    import sqlalchemy

    seen = []
    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    yield seen


def test_the_number_of_statements_does_not_grow_with_the_parameters(url):
    space = space_of(MANY, 8, 4)
    mirror = OptunaMirror(url, "many", OBJECTIVES, space)
    found = records(space)
    mirror.catch_up(found[:1])
    with counted_statements(mirror._study._storage._backend) as seen:
        mirror.catch_up(found[:2])
    assert 5 <= len(seen) <= 16


def test_other_choices_than_the_studys_are_refused_by_optuna(url):
    OptunaMirror(url, "same", OBJECTIVES, space_of(3, 8, 4)).catch_up(records(space_of(3, 8, 4)))
    other = space_of(3, 8, 4, 2)
    mirror = OptunaMirror(url, "same", OBJECTIVES, other)
    with pytest.raises(ValueError, match="CategoricalDistribution"):
        mirror.catch_up([*records(other), TrialRecord.of(5, Policy(), Evaluation(State.FAILED, reason="x"), 0.1)])
    assert len(read_back(url, "same")) == 5
