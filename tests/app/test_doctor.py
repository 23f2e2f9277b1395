"""`doctor`: storages without credentials, coverage of this machine's profile, and GPUs that hang."""

import json
import socket
import sqlite3
import subprocess
import threading

import pytest

from paretopress import diagnosis
from paretopress.storage_check import check_storage

SECRET = "p%40ss-word"


def test_a_server_that_does_not_answer_is_named_without_its_password(cli):
    code, out, err = cli("doctor", "--storage", f"postgresql://me:{SECRET}@127.0.0.1:1/db?sslpassword=hush", "--json")
    found = json.loads(out)["storage"]
    assert code == 1
    assert found["reachable"] is False
    assert found["url"] == "postgresql://me:***@127.0.0.1:1/db?sslpassword=***"
    for secret in (SECRET, "p@ss-word", "hush"):
        assert secret not in out + err
    code, out, err = cli("doctor", "--storage", f"postgresql://me:{SECRET}@127.0.0.1:1/db")
    assert code == 1
    assert SECRET not in out + err
    assert "problem: postgresql://me:***@127.0.0.1:1/db cannot be reached: " in err


def test_files_and_ports_that_answer_are_reachable(tmp_path):
    assert check_storage(f"sqlite:///{tmp_path}/new.db") == {
        "url": f"sqlite:///{tmp_path}/new.db", "reachable": True, "detail": "not there yet; it can be made"}
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE t (x)")
    found = check_storage(f"sqlite:///{tmp_path}/a.db")
    assert found["reachable"]
    assert found["detail"].endswith("1 tables, writable")
    (tmp_path / "log").write_text("line\n")
    assert check_storage(f"journal:///{tmp_path}/log")["detail"] == "a file of 5 bytes, writable"
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        assert check_storage(f"grpc://127.0.0.1:{server.getsockname()[1]}")["reachable"]
        thread.join()


def test_files_that_are_no_storage_and_folders_that_are_missing_are_not(tmp_path):
    (tmp_path / "a.db").write_bytes(b"not a database, but long enough to be read as one" * 30)
    assert "not a database" in check_storage(f"sqlite:///{tmp_path}/a.db")["detail"]
    assert "does not exist" in check_storage(f"journal:///{tmp_path}/no/log")["detail"]
    assert "not a file" in check_storage(f"journal:///{tmp_path}")["detail"]


@pytest.mark.parametrize("url", ["mysql://a:hush@c/d", "postgresql", "postgresql://u:hush@host:port/x"])
def test_what_is_no_storage_is_refused_without_secrets(cli, url):
    code, out, err = cli("doctor", "--storage", url)
    assert (code, out) == (2, "")
    assert err.startswith("error: storage: ")
    assert err.count("\n") == 1
    assert "hush" not in err


def test_coverage_names_the_families_without_figures():
    from paretopress.hardware_profiles.catalogue import load_profile

    found = diagnosis.coverage(load_profile("x86-zen4-vnni-onnxruntime"))
    assert {"conv", "depthwise", "linear"} <= set(found["int8"])
    assert not set(found["missing"]) & set(found["float32"])
    assert diagnosis.coverage(load_profile("h200-sxm"))["int8"] == []   # a datasheet has no kernels


def test_a_gpu_is_named_and_a_driver_that_hangs_is_no_error(monkeypatch):
    monkeypatch.setattr(diagnosis.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    rows = subprocess.CompletedProcess((), 0, "NVIDIA L4, 560.1\nNVIDIA L4, 560.1\n")
    monkeypatch.setattr(diagnosis.subprocess, "run", lambda *_, **__: rows)
    assert diagnosis.gpu() | {"note": ""} == {"devices": ["NVIDIA L4"] * 2, "driver": "560.1", "note": ""}

    def hang(*_, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", options["timeout"])

    monkeypatch.setattr(diagnosis.subprocess, "run", hang)
    assert diagnosis.gpu()["devices"] == []
    assert "TimeoutExpired" in diagnosis.gpu()["note"]
