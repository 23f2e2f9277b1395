"""Every storage keeps the same promises."""

import threading
import time

import pytest

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.process_identity import process_name
from paretopress.search.storage_worker import sweep
from paretopress.search.storages.opening import open_store
from paretopress.search.storages.result_text import read_result, result_text
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.search.storages.trial_store import (
    FAILURES_ALLOWED,
    LOSSES_ALLOWED,
    Proposal,
    Result,
    Status,
    Study,
    Verdict,
)
from paretopress.spaces.errors import ArtifactError, ConfigError

PRINTS = {"model": "m", "data": "d", "space": "s", "profile": "p", "evaluator": "e", "seed": "0", "versions": "v"}
TEXT = result_text(Evaluation(State.COMPLETE, {"accuracy": 0.5}), 1.0)
OTHER = result_text(Evaluation(State.COMPLETE, {"accuracy": 0.6}), 1.0)


@pytest.fixture(params=["sqlite", "journal", "postgresql", "grpc"])
def opened(request, tmp_path):
    """Opens the same storage as often as it is called, as processes on several hosts do."""
    if request.param == "grpc":
        url = request.getfixturevalue("grpc_proxy")
    elif request.param == "postgresql":
        url = request.getfixturevalue("postgresql").create(f"store_{tmp_path.name}".lower()[:60])
    else:
        url = request.param
    stores = []

    def open_another(study="toy"):
        stores.append(open_store(StorageUrl.parse(url, tmp_path), study))
        return stores[-1]

    yield open_another
    for store in stores:
        store.close()


def begun(store, trials=3):
    store.join(Study("toy", PRINTS, {"accuracy": "max"}))
    term = store.lead("coordinator", 60.0)
    assert store.enqueue(term, [Proposal(number, "{}", f"hash{number}") for number in range(trials)])
    return term


def test_a_trial_goes_from_proposal_to_result_and_never_changes_again(opened):
    store = opened()
    begun(store)
    assert store.announce("worker", 2, 60.0) == []
    assert store.slots() == 2
    claim = store.claim("worker", 60.0)
    assert (claim.number, claim.policy, claim.policy_hash, claim.failures) == (0, "{}", "hash0", 0)
    assert store.announce("worker", 2, 60.0) == [(0, claim.token)]
    assert store.tell(Result(0, claim.token, TEXT)) is Verdict.ACCEPTED
    assert store.tell(Result(0, claim.token, TEXT)) is Verdict.DUPLICATE
    assert store.tell(Result(0, claim.token + 1, OTHER)) is Verdict.DUPLICATE
    store.give_back(0, claim.token)
    row, = store.trials([0])
    assert (row.status, row.result, row.token, row.owner) == (Status.DONE, TEXT, claim.token, None)
    assert [one.number for one in opened().trials(status=Status.WAITING)] == [1, 2]
    store.leave("worker")
    assert store.slots() == 0


def test_two_workers_never_hold_one_trial(opened):
    first, second = opened(), opened()
    begun(first)
    claims = [store.claim(name, 60.0) for store, name in ((first, "a"), (second, "b"))]
    assert [claim.number for claim in claims] == [0, 1]
    third = first.claim("a", 60.0, held=[(0, claims[0].token)])
    assert third.number == 2
    assert second.claim("b", 60.0, held=[(1, claims[1].token)]) is None


def test_many_workers_at_once_get_every_trial_once(opened):
    begun(opened(), 12)
    stores = [opened() for _ in range(4)]
    got = []

    def take(store, name):   # SQLite's connections belong to the thread that made them
        held = []
        while (claim := store.claim(name, 60.0, held)) is not None:
            held.append((claim.number, claim.token))
        got.extend(held)
        store.close()

    threads = [threading.Thread(target=take, args=(store, f"w{index}")) for index, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in got) == list(range(12))


def test_a_claim_whose_answer_was_lost_is_given_again(opened):
    store = opened()
    begun(store)
    claim = store.claim("worker", 60.0)
    assert store.claim("worker", 60.0) == claim


def test_a_lapsed_lease_fences_its_holder_off_once_another_one_has_the_trial(opened):
    store = opened()
    begun(store, 1)
    late = store.claim("late", 0.0)
    swept(store)
    assert store.trials([0])[0].losses == 1
    assert store.announce("late", 1, 60.0) == []
    quick = store.claim("quick", 60.0)
    assert quick.token > late.token
    assert store.tell(Result(0, late.token, OTHER)) is Verdict.FENCED
    assert store.tell(Result(0, late.token, OTHER, failed=True)) is Verdict.FENCED
    store.give_back(0, late.token)
    assert store.tell(Result(0, quick.token, TEXT)) is Verdict.ACCEPTED
    assert store.trials([0])[0].result == TEXT


def test_a_late_result_counts_while_nobody_else_has_the_trial(opened):
    """After an outage every lease has lapsed: what was finished meanwhile is not evaluated again."""
    store = opened()
    begun(store, 1)
    late = store.claim("late", 0.0)
    swept(store)
    assert store.tell(Result(0, late.token, TEXT)) is Verdict.ACCEPTED
    assert store.claim("quick", 60.0) is None


def test_two_sweepers_return_a_trial_once(opened):
    first, second = opened(), opened()
    begun(first, 1)
    first.claim("gone", 0.0)
    assert swept(first) == 1
    assert second.sweep() == 0
    assert second.trials([0])[0].losses == 1


def test_a_lease_that_is_renewed_holds(opened):
    store = opened()
    begun(store, 1)
    claim = store.claim("worker", 60.0)
    assert store.sweep() == 0
    assert store.announce("worker", 1, 60.0) == [(0, claim.token)]


def test_a_trial_that_fails_again_is_quarantined_with_what_it_said(opened):
    store = opened()
    begun(store, 1)
    for attempt in range(FAILURES_ALLOWED + 1):
        claim = store.claim("worker", 60.0)
        assert claim.failures == attempt
        assert store.tell(Result(0, claim.token, OTHER, failed=True)) is Verdict.ACCEPTED
    row, = store.trials([0])
    assert (row.status, row.result, row.failures) == (Status.DONE, OTHER, FAILURES_ALLOWED + 1)
    assert store.claim("worker", 60.0) is None


def test_a_trial_that_takes_its_workers_along_is_given_up(opened):
    store = opened()
    begun(store, 1)
    for _ in range(LOSSES_ALLOWED):
        store.claim("gone", 0.0)
        assert swept(store) == 1
    row, = store.trials([0])
    assert row.status is Status.DONE
    assert "quarantined" in read_result(row.result, "row")[0].reason


def test_a_policy_is_evaluated_once_and_its_result_reused(opened):
    store = opened()
    term = begun(store, 2)
    assert store.enqueue(term, [Proposal(2, "{}", "hash0")])
    claims = [store.claim("worker", 60.0, held) for held in ([], [(0, 1)])]
    assert [claim.number for claim in claims] == [0, 1]
    assert store.claim("worker", 60.0, [(0, 1), (1, 1)]) is None
    store.tell(Result(0, 1, TEXT))
    row, = store.trials([2])
    assert (row.status, row.result) == (Status.DONE, TEXT)


def test_proposals_are_added_once_and_by_the_coordinator_of_the_term(opened):
    first, second = opened(), opened()
    term = begun(first, 1)
    assert second.lead("another", 60.0) is None
    assert first.lead("coordinator", 0.0) == term
    time.sleep(0.1)
    later = second.lead("another", 60.0) or second.lead("another", 60.0)
    assert later == term + 1
    assert not first.enqueue(term, [Proposal(1, "{}", "late")])
    assert second.enqueue(later, [Proposal(0, "{}", "changed"), Proposal(1, "{}", "new")])
    assert [row.policy_hash for row in first.trials()] == ["hash0", "new"]
    second.resign("another")
    assert first.lead("coordinator", 60.0) == later + 1


def test_processes_of_this_host_that_died_are_known_without_waiting(opened):
    store = opened()
    begun(store, 2)
    host = process_name().partition("-")[0]
    store.announce(f"{host}-999999999-dead", 1, 3600.0)
    store.claim(f"{host}-999999999-dead", 3600.0)
    alive = process_name()
    store.announce(alive, 1, 3600.0)
    store.claim(alive, 3600.0)
    swept(store)
    assert store.trials([0])[0].status is Status.WAITING
    assert store.trials([1])[0].owner == alive
    assert store.slots() == 1


def test_whoever_joins_with_something_else_is_told_what(opened):
    store = opened()
    begun(store)
    for key in PRINTS:
        with pytest.raises(ConfigError, match=f"different {key};"):
            store.join(Study("toy", {**PRINTS, key: "changed"}, {"accuracy": "max"}))
    with pytest.raises(ConfigError, match="different objectives;"):
        opened().join(Study("toy", PRINTS, {"accuracy": "min"}))
    opened().join(Study("toy", PRINTS, {"accuracy": "max"}))


def test_a_study_is_found_by_name_with_its_settings(opened):
    opened().join(Study("toy", PRINTS, {"accuracy": "max"}, {"trials": 3}))
    other = opened()
    assert other.studies() == ["toy"]
    assert other.study() == Study("toy", PRINTS, {"accuracy": "max"}, {"trials": 3})


@pytest.mark.parametrize("text", [
    "{}", "[]", "not JSON", TEXT.replace("0.5", "NaN"), TEXT.replace("0.5", '"0.5"'), TEXT.replace("complete", "done"),
    TEXT.replace("0.5", "true"), TEXT.replace("0.5", "1e999"),
])
def test_what_a_storage_holds_is_not_trusted(text):
    with pytest.raises(ArtifactError, match="row"):
        read_result(text, "row")


def swept(store):
    """Sweep until something came of it: a clock that only ticks tell needs one after the lease and one later."""
    for _ in range(20):
        count = sweep(store)
        if count:
            return count
        time.sleep(0.05)
    return 0
