"""Tests of the tests: with any protection switched off, a test that is named here fails."""

import contextlib
import inspect

import pytest
import test_journal
import test_outbox
import test_shared_search
import test_storage_url
import test_storage_worker
import test_trial_store
from mutation import mutated

from paretopress.search import (
    outbox,
    patience,
    process_executor,
    process_identity,
    storage_executor,
    storage_worker,
)
from paretopress.search.outbox import Outbox
from paretopress.search.storages import journal, log_state, result_text, sql_store, storage_url, trial_store
from paretopress.search.storages.opening import open_store
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.spaces import documents

SQL = {"opened": "sqlite"}
LOG = {"opened": "journal"}

# Protection: module, what protects, what is left without it, the test that must fail, its fixtures' parameters.
PROTECTIONS = {
    "fencing token on tell (SQL)": (
        sql_store, "(status = 'RUNNING' AND token = :token OR", "(status = 'RUNNING' OR",
        test_trial_store.test_a_lapsed_lease_fences_its_holder_off_once_another_one_has_the_trial, SQL),
    "fencing token on tell (log)": (
        log_state, 'entry.status is Status.RUNNING and entry.token == record["token"]\n        if record["failed"]',
        'entry.status is Status.RUNNING\n        if record["failed"]',
        test_trial_store.test_a_lapsed_lease_fences_its_holder_off_once_another_one_has_the_trial, LOG),
    "results never change (SQL)": (
        sql_store, "OR status = 'WAITING' AND same_as IS NULL)", "OR status <> 'RUNNING')",
        test_trial_store.test_a_trial_goes_from_proposal_to_result_and_never_changes_again, SQL),
    "leases lapse": (
        sql_store, "AND status = 'RUNNING' AND lease_until < {now}", "AND status = 'RUNNING' AND lease_until < 0",
        test_trial_store.test_two_sweepers_return_a_trial_once, SQL),
    "leases hold until they lapse": (
        sql_store, "AND status = 'RUNNING' AND lease_until < {now}", "AND status = 'RUNNING'",
        test_trial_store.test_a_lease_that_is_renewed_holds, SQL),
    "retry once": (
        log_state, "given_up = entry.failures >= FAILURES_ALLOWED", "given_up = False",
        test_trial_store.test_a_trial_that_fails_again_is_quarantined_with_what_it_said, LOG),
    "trials that take workers along are given up": (
        sql_store, "CASE WHEN losses + 1 >= :allowed THEN 'DONE' ELSE 'WAITING' END", "'WAITING'",
        test_trial_store.test_a_trial_that_takes_its_workers_along_is_given_up, SQL),
    "one evaluation per policy": (
        log_state, "same = None if original == number else original", "same = None",
        test_trial_store.test_a_policy_is_evaluated_once_and_its_result_reused, LOG),
    "coordinator's term": (
        sql_store, "AND term = :term {self._database.for_update}", "{self._database.for_update}",
        test_trial_store.test_proposals_are_added_once_and_by_the_coordinator_of_the_term, SQL),
    "coordinator notices the loss of its term": (
        storage_executor, "if added is False:\n            self._lost()", "if added is False:\n            pass",
        test_shared_search.test_a_coordinator_that_lost_its_term_proposes_nothing_more, {}),
    "answers to claims may be lost": (
        sql_store, "if forgotten:\n                return forgotten", "if False:\n                return forgotten",
        test_trial_store.test_a_claim_whose_answer_was_lost_is_given_again, SQL),
    "fingerprints on joining": (
        trial_store, "if changed:\n        raise ConfigError(", "if False:\n        raise ConfigError(",
        test_trial_store.test_whoever_joins_with_something_else_is_told_what, SQL),
    "the dead of this host": (
        process_identity, "except (OSError, IndexError):\n        return True",
        "except (OSError, IndexError):\n        return False",
        test_storage_worker.test_names_of_processes, {}),
    "other hosts' processes are not judged": (
        process_identity, "if host != _host() or not number.isdecimal():", "if not number.isdecimal():",
        test_storage_worker.test_names_of_processes, {}),
    "outbox: what waits is told on the return": (
        storage_worker, "self._untold.append(self._outbox.commit(claim, text, failed=failed))",
        "self._store.tell(self._outbox.commit(claim, text, failed=failed).result)",
        test_storage_worker.test_while_the_storage_is_away_results_wait_in_the_outbox, {}),
    "committed results are used": (
        storage_worker, "if earlier is None:\n            return False", "if True:\n            return False",
        test_storage_worker.test_a_result_that_was_committed_and_not_told_is_used, {}),
    "policies are checked against their hashes": (
        storage_worker, "if policy.hash != claim.policy_hash:", "if False:",
        test_storage_worker.test_a_policy_that_is_none_fails_without_being_evaluated, {}),
    "manifest's hashes": (
        outbox, "if found != digest:", "if False:",
        test_outbox.test_a_damaged_result_is_put_into_quarantine_and_evaluated_again,
        {"name": "policy.json", "damage": "flip"}),
    "contents synced before the rename": (
        outbox, "stream.flush()\n        os.fsync(stream.fileno())", "stream.flush()",
        test_outbox.test_contents_are_on_disk_before_the_manifest_says_so, {}),
    "folder synced after the rename": (
        outbox, "temporary.rename(folder)\n            sync_folder(self._waiting)", "temporary.rename(folder)",
        test_outbox.test_contents_are_on_disk_before_the_manifest_says_so, {}),
    "manifest synced before its rename": (
        documents, "stream.flush()\n            os.fsync(stream.fileno())", "stream.flush()",
        test_outbox.test_contents_are_on_disk_before_the_manifest_says_so, {}),
    "only own temporary files are swept": (
        outbox, "if _TEMPORARY.fullmatch(path.name) and", 'if path.name.endswith(".tmp") and',
        test_outbox.test_what_crashed_writers_left_is_swept_after_an_hour_and_nothing_else, {}),
    "journal: torn tails are cut before anything is appended": (
        journal, "self._cut_torn_tail(descriptor)\n            unread", "unread",
        test_journal.test_a_torn_tail_costs_that_record_alone, {"cut": 10}),
    "journal: checksums": (
        journal, "if int(checksum, 16) != zlib.crc32(text):", "if False:",
        test_journal.test_damage_in_the_middle_is_refused_with_its_place, {"where": 0}),
    "journal: absolute path": (
        journal, "self._path = path.absolute()", "self._path = path",
        test_journal.test_a_relative_path_means_the_same_file_wherever_the_process_goes, {}),
    "journal: a failed append is undone": (
        journal, "if os.write(descriptor, line) != len(line):", "if os.write(descriptor, line) < 0:",
        test_journal.test_a_full_disk_leaves_the_journal_as_it_was, {}),
    "values are finite": (
        documents, 'raise ValueError(f"{text} is not a finite number")\n    return float(text)', "pass\n    return 0.0",
        test_trial_store.test_what_a_storage_holds_is_not_trusted,
        {"text": test_trial_store.TEXT.replace("0.5", "NaN")}),
    "results are checked on reading": (
        result_text, "if any(isinstance(number, bool) or not", "if any(False and not",
        test_trial_store.test_what_a_storage_holds_is_not_trusted,
        {"text": test_trial_store.TEXT.replace("0.5", "true")}),
    "credentials in messages": (
        storage_url, "text = text.replace(word, HIDDEN)", "text = text",
        test_storage_url.test_passwords_are_never_shown, {"text": test_storage_url.SECRET}),
    "credentials of evaluating processes": (
        process_executor, "if name not in SECRETS}", "}",
        test_storage_url.test_evaluating_processes_do_not_get_the_credentials, {}),
    "unencrypted proxies": (
        storage_url, 'if kind == "grpc" and not _is_loopback(host or ""):', "if False:",
        test_storage_url.test_what_is_no_address_is_refused_in_one_line,
        {"text": "grpc://db.example:13000", "words": ("neither encrypts",)}),
    "patience ends": (
        patience, "if now - self._since >= self._timeout:", "if False:",
        test_storage_worker.test_patience_ends, {}),
    "pauses grow": (
        patience, "if self.away and self._clock() < self._next:", "if False:",
        test_storage_worker.test_patience_ends, {}),
}


def test_there_are_enough_of_them():
    assert len(PROTECTIONS) >= 15


@pytest.mark.parametrize("name", PROTECTIONS)
def test_without_it_a_named_test_fails(name, tmp_path, monkeypatch):
    module, old, new, test, parameters = PROTECTIONS[name]
    with contextlib.ExitStack() as stack:
        arguments = {
            fixture: parameters[fixture] if fixture in parameters and fixture != "opened"
            else FIXTURES[fixture](stack, tmp_path, monkeypatch, parameters)
            for fixture in inspect.signature(test).parameters
        }
        stack.enter_context(mutated(module, old, new))
        with pytest.raises(BaseException) as failed:   # an assertion, or what the protection keeps from happening
            test(**arguments)
    assert not isinstance(failed.value, KeyboardInterrupt | SystemExit | TypeError)


def _opened(stack, tmp_path, _monkeypatch, parameters):
    def open_another(study="toy"):
        store = open_store(StorageUrl.parse(parameters["opened"], tmp_path), study)
        stack.callback(store.close)
        return store

    return open_another


# What the tests above get from their fixtures.
FIXTURES = {
    "opened": _opened,
    "tmp_path": lambda _stack, tmp_path, *_: tmp_path,
    "monkeypatch": lambda _stack, _path, monkeypatch, _parameters: monkeypatch,
    "outbox": lambda _stack, tmp_path, *_: Outbox(tmp_path),
    "path": lambda _stack, tmp_path, *_: test_journal.five_records(tmp_path / "journal"),
    "begin": lambda stack, tmp_path, *_: stack.enter_context(test_storage_worker.beginning(tmp_path)),
}
