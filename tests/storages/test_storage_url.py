"""Addresses are read strictly and shown without credentials."""

from pathlib import Path

import pytest

from paretopress.search.process_executor import SECRETS
from paretopress.search.shared_search import Sharing
from paretopress.search.storages.opening import open_store
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.search.storages.trial_store import StorageUnavailable
from paretopress.spaces.errors import ConfigError

SECRET = "postgresql://user:p%40ss-word@db.example:5432/runs?sslmode=require&password=other-word"


@pytest.mark.parametrize(("text", "kind", "path"), [
    ("sqlite", "sqlite", "/run/ledger.sqlite3"),
    ("journal", "journal", "/run/ledger.journal"),
    ("sqlite:////data/a.sqlite3", "sqlite", "/data/a.sqlite3"),
    ("journal:///a.journal", "journal", str(Path.cwd() / "a.journal")),
])
def test_files(text, kind, path):
    url = StorageUrl.parse(text, Path("/run"))
    assert (url.kind, str(url.path)) == (kind, path)
    assert StorageUrl.parse(str(url)).path == url.path


@pytest.mark.parametrize("text", [SECRET, SECRET.replace("postgresql", "postgres")])
def test_passwords_are_never_shown(text):
    url = StorageUrl.parse(text)
    message = f"connection to {SECRET} failed for p@ss-word, p%40ss-word and other-word"
    for shown in (str(url), repr(url), f"{url}", url.scrubbed(message), repr(Sharing(text))):
        for secret in ("p%40ss-word", "p@ss-word", "other-word"):
            assert secret not in shown
    assert str(url) == "postgresql://user:***@db.example:5432/runs?sslmode=require&password=***"


@pytest.mark.parametrize(("text", "words"), [
    ("mysql://host/db", ("unknown kind 'mysql'", "postgresql")),
    ("postgresq://u:hidden-word@host/db", ("did you mean 'postgresql'?",)),
    ("postgresql", ("postgresql://HOST:PORT/DATABASE",)),
    ("postgresql://u:hidden-word@host:port/db", ("not an address",)),
    ("grpc://", ("grpc://HOST:PORT",)),
    ("grpc://db.example:13000", ("neither encrypts nor authenticates", "ssh -L")),
    ("grpc://0.0.0.0:13000", ("neither encrypts nor authenticates",)),
    ("sqlite", ("sqlite:///PATH", "--run")),
])
def test_what_is_no_address_is_refused_in_one_line(text, words):
    with pytest.raises(ConfigError) as refused:
        StorageUrl.parse(text)
    for word in words:
        assert word in str(refused.value)
    assert "hidden-word" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["grpc://127.0.0.1:1", "grpc://localhost", "grpc://[::1]:5"])
def test_proxies_on_this_host_are_allowed(text):
    assert StorageUrl.parse(text).address[0] in ("127.0.0.1", "localhost", "::1")


def test_a_server_that_is_not_there_is_named_without_its_password():
    store = open_store(StorageUrl.parse("postgresql://user:hidden-word@127.0.0.1:9/runs"), "toy")
    with pytest.raises(StorageUnavailable, match=r"postgresql://user:\*\*\*@127.0.0.1:9/runs: .*refused") as refused:
        store.slots()
    assert "hidden-word" not in str(refused.value)


def test_evaluating_processes_do_not_get_the_credentials(monkeypatch, tmp_path):
    from paretopress.search.process_executor import ProcessExecutor

    for name in SECRETS:
        monkeypatch.setenv(name, "hidden-word")
    with ProcessExecutor(Environment(), 1) as executor:
        pid, = executor.worker_processes()
        assert b"hidden-word" not in Path(f"/proc/{pid}/environ").read_bytes()


class Environment:
    def __call__(self, task):
        raise NotImplementedError
