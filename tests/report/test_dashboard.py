"""The dashboard: loopback only, read only, refreshed while the search runs; and the run as an Optuna study."""

import http.client
import json
import shutil

import optuna
import pytest

from paretopress.dashboard import is_loopback, listen
from paretopress.search.ledger import read_run
from paretopress.search.optuna_mirror import Mirror, optuna_study
from paretopress.search.records import TrialState
from paretopress.spaces.choices import describe
from paretopress.spaces.errors import ArtifactError, ConfigError, StorageError


@pytest.fixture
def growing_run(tiny_run, tmp_path):
    """A run under way, and a function that lets it go on by some trials."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run, ignore=shutil.ignore_patterns("models", "front.*"))
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    (run / "trials.jsonl").write_text("".join(lines[:4]))

    def go_on(count):
        (run / "trials.jsonl").write_text("".join(lines[:count]))

    return run, go_on


def ask(address, path="/", method="GET", **headers):
    host = address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "127.0.0.1.example.org", ""])
def test_other_hosts_than_loopback_are_refused(host):
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="listens on this machine only"):
        listen(lambda *_: [], host, 0)


def test_a_port_in_use_is_one_line():
    server = listen(lambda *_: [], port=0)
    with pytest.raises(ConfigError, match=rf"--port {server.server_port} is in use"):
        listen(lambda *_: [], port=server.server_port)
    server.server_close()


def test_only_reading_and_only_by_a_name_of_this_machine(serve, tiny_run):
    address = serve(tiny_run.path)
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1"):
        assert ask(address, Host=host)[0] == 403
        assert ask(address, "/data.json", Host=host)[0] == 403
        assert ask(address, "/api/studies", Host=host)[0] == 403
    for host in ("localhost", "127.0.0.1:1", "[::1]:8787"):
        assert ask(address, Host=host)[0] == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for path in ("/", "/api/studies", "/api/studies/0"):
            assert ask(address, path, method)[0] == 405
    assert ask(address, method="HEAD")[2] == b""
    assert ask(address, "/../../etc/passwd")[0] == 404
    headers = ask(address)[1]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"


def test_the_data_are_read_again_when_the_run_goes_on(serve, growing_run):
    run, go_on = growing_run
    address = serve(run)
    status, headers, body = ask(address, "/data.json")
    assert (status, json.loads(body)["trials"]["total"]) == (200, 4)
    assert ask(address, "/data.json", If_None_Match=headers["ETag"])[0] == 304
    go_on(7)
    status, _, body = ask(address, "/data.json", If_None_Match=headers["ETag"])
    assert (status, json.loads(body)["trials"]["total"]) == (200, 7)
    (run / "run.yaml").unlink()   # moved aside this moment
    status, _, body = ask(address, "/data.json")
    assert (status, body.count(b"\n")) == (503, 0)


def test_an_open_page_follows_the_search(serve, growing_run, page):
    run, go_on = growing_run
    page.open(serve(run))
    assert page.count("#trials .dot") == 4
    go_on(9)
    page.wait("document.querySelectorAll('#trials .dot').length === 9")
    assert "search runs" in page.text("#status")
    assert page.console() == []


def test_optunas_dashboard_shows_the_mirror_with_its_constraints(serve, tiny_run, page):
    address = serve(tiny_run.path)
    studies = json.loads(ask(address, "/api/studies")[2])["study_summaries"]
    assert [one["study_name"] for one in studies] == ["tiny"]
    detail = json.loads(ask(address, f"/api/studies/{studies[0]['study_id']}")[2])
    records = read_run(tiny_run.path)[1]
    assert len(detail["trials"]) == len(records)
    assert [one["constraints"] for one in detail["trials"]] == [list(r.constraints.values()) for r in records]
    page.driver.get_log("browser")
    page.driver.get(f"{address}/dashboard")
    page.wait("document.body.textContent.includes('tiny')")
    assert page.console() == []


def test_a_mirror_holds_objectives_constraints_parameters_and_attributes(tiny_run):
    study = optuna_study(tiny_run.path)
    records = {record.number: record for record in read_run(tiny_run.path)[1]}
    assert study.metric_names[0] == "accuracy"
    directions = [direction.name for direction in study.directions]
    assert directions == ["MAXIMIZE"] + ["MINIMIZE"] * (len(directions) - 1)
    for trial in study.trials:
        record = records[trial.user_attrs["number"]]
        assert trial.state.name == record.state.value
        if record.state is TrialState.COMPLETE:
            assert dict(zip(study.metric_names, trial.values, strict=True)).items() <= record.values.items()
        chosen = {unit: describe(choice) for unit, choice in record.policy}
        assert {unit: words for unit, words in trial.params.items() if words != "dense"} == chosen
        assert trial.system_attrs.get("constraints", []) == list(record.constraints.values())
        assert record.constraints.items() <= trial.constraints.items()
    feasible = {number for number, record in records.items() if record.feasible}
    assert {trial.user_attrs["number"] for trial in study.best_trials} <= feasible


@pytest.mark.parametrize("name", ["trials.db", "trials.log", "sqlite:///{folder}/address.db"])
def test_a_mirror_in_a_file_is_brought_up_to_date(growing_run, tmp_path, name):
    run, go_on = growing_run
    storage = name.format(folder=tmp_path) if "://" in name else tmp_path / name
    assert len(optuna_study(run, storage).trials) == 4
    go_on(6)
    study = optuna_study(run, storage)
    assert sorted(trial.user_attrs["number"] for trial in study.trials) == [0, 1, 2, 3, 4, 5]


def test_a_mirror_follows_a_run(growing_run):
    run, go_on = growing_run
    mirror = Mirror.of(run)
    go_on(8)
    assert (mirror.update(), mirror.update(), len(mirror.study.trials)) == (4, 0, 8)


def test_no_other_study_is_written_to(tiny_run, tmp_path):
    storage = f"sqlite:///{tmp_path}/other.db"
    other = optuna.create_study(storage=storage, study_name=tiny_run.path.name, directions=["minimize"])
    other.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(ConfigError, match="has other objectives"):
        optuna_study(tiny_run.path, storage)
    with pytest.raises(StorageError, match=r"^postgresql://…@127\.0\.0\.1:1/none: cannot be opened[^\n]*$"):
        optuna_study(tiny_run.path, "postgresql://somebody:secret@127.0.0.1:1/none")


def test_a_run_without_trials_is_no_study_yet(tmp_path, tiny_run):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run.path / "run.yaml", run)
    with pytest.raises(ArtifactError, match="no trial is finished yet"):
        optuna_study(run)


def test_the_commands(tiny_run, tmp_path, finish, start):
    code, out, err = finish("report", tiny_run.path, "-o", tmp_path / "page.html", "--json")
    assert (code, json.loads(out)["bytes"]) == (0, (tmp_path / "page.html").stat().st_size)
    code, out, _ = finish("dashboard", tiny_run.path, "--study", tmp_path / "trials.db", "--json")
    assert (code, json.loads(out)["trials"]) == (0, len(read_run(tiny_run.path)[1]))
    code, _, err = finish("dashboard", tiny_run.path, "--host", "0.0.0.0")
    assert (code, err.count("\n")) == (2, 1)
    process = start("dashboard", tiny_run.path, "--port", "0")
    address = process.stdout.readline().split()[-1].rstrip("/")
    assert ask(address)[0] == 200
    process.send_signal(2)
    assert process.wait(30) == 0
