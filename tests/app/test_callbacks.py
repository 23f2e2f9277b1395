"""`Search` as an object, callbacks, and the trackers that are callbacks; one short search is watched by all of them."""

import json
from types import SimpleNamespace

import pytest

import paretopress
from paretopress.callbacks import CallbackObserver, checked_callbacks
from paretopress.progress import ProgressObserver
from paretopress.spaces.errors import ConfigError

EVENTS = ("on_start", "on_trial", "on_front", "on_finalist", "on_end")
TRIALS = 6


class Recording(paretopress.Callback):
    def __init__(self):
        self.heard = []

    def on_start(self, start):
        self.heard.append(("start", start))

    def on_trial(self, trial):
        self.heard.append(("trial", trial))

    def on_front(self, front):
        self.heard.append(("front", front))

    def on_finalist(self, point):
        self.heard.append(("finalist", point))

    def on_end(self, result):
        self.heard.append(("end", result))

    def of(self, kind):
        return [value for name, value in self.heard if name == kind]


class Failing:
    """No subclass, and everything that it does goes wrong."""

    def __init__(self):
        self.calls = []

    def on_trial(self, trial):
        self.calls.append(trial.number)
        raise ValueError("no\nroom")

    def on_end(self, _result):
        self.calls.append("end")
        raise OSError("gone")


@pytest.fixture(scope="module")
def watched(project, tmp_path_factory):
    """A search with callbacks, and what they heard; then the same one resumed."""
    import small

    folder = tmp_path_factory.mktemp("watched")
    recording, failing, board = Recording(), Failing(), paretopress.TensorBoard()
    search = paretopress.Search(
        small.model(), data=small.data(), target="cortex-a76-tflite", max_drop="90%", run=folder / "run",
        trials=TRIALS, callbacks=[failing], progress=False,
    )
    search.set("search.finalists=1", "search.proxy=divergence").add(recording, board)
    with pytest.warns(UserWarning, match="callback Failing") as warned:
        result = search.run()
    first = list(recording.heard)
    recording.heard.clear()
    with pytest.warns(UserWarning, match="callback Failing"):
        resumed = search.resume(trials=TRIALS + 1)
    return SimpleNamespace(
        search=search, result=result, resumed=resumed, first=first, second=list(recording.heard), failing=failing,
        warned=[str(one.message) for one in warned],
    )


def test_callbacks_hear_every_event_in_order(watched):
    names = [name for name, _ in watched.first]
    assert names[0] == "start"
    assert names[-1] == "end"
    assert names.count("trial") == TRIALS
    assert names.count("front") >= 1
    assert names.index("finalist") > max(place for place, name in enumerate(names) if name in ("trial", "front"))
    found = dict(watched.first)
    assert [trial.number for name, trial in watched.first if name == "trial"] == list(range(TRIALS))
    assert found["start"].objectives["accuracy"] == "max"
    assert found["start"].earlier == 0
    assert found["start"].baseline["size"] > 0
    assert found["end"].run == watched.result.run
    points = [point.id for name, point in watched.first if name == "finalist"]
    assert points == [point.id for point in watched.result.front.verified]


def test_the_front_that_callbacks_hear_of_is_the_one_of_the_trials(watched):
    from paretopress.search.pareto import non_dominated

    front = [value for name, value in watched.first if name == "front"][-1]
    trials = [trial for name, trial in watched.first if name == "trial" and trial.feasible]
    names = sorted(trials[0].values.keys() & {"accuracy", "size", "latency@cortex-a76-tflite"})
    rows = [[-trial.values[name] if name == "accuracy" else trial.values[name] for name in names] for trial in trials]
    expected = [trial.number for trial, kept in zip(trials, non_dominated(rows), strict=True) if kept]
    assert [record.number for record in front.records] == expected


def test_a_failing_callback_is_one_line_per_event_and_loses_nothing(watched):
    assert watched.failing.calls[:2] == [0, "end"]   # not once per trial
    assert len(watched.warned) == 2
    assert all("\n" not in text for text in watched.warned)
    assert "callback Failing.on_trial raised ValueError: no room at " in watched.warned[0]
    assert len(watched.result.front) >= 1


def test_resume_searches_the_run_further_and_hears_new_trials_only(watched):
    names = [name for name, _ in watched.second]
    assert names.count("trial") == 1
    assert dict(watched.second)["start"].earlier == TRIALS
    assert watched.resumed.run == watched.result.run
    lines = (watched.resumed.run / "trials.jsonl").read_text().splitlines()
    assert len(lines) == TRIALS + 1


def test_resume_needs_a_run_and_what_ended_it(project, tmp_path, watched):
    import small

    with pytest.raises(ConfigError, match="there is no run in"):
        paretopress.Search(small.model(), data=small.data(), run=tmp_path / "none", trials=2).resume()
    with pytest.raises(ConfigError, match="time: this run is ended by trials"):
        watched.search.resume(time="1m")


def test_tensorboard_files_hold_trials_front_and_verified_models(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(watched.result.run / "tensorboard")).Reload()
    tags = found.Tags()["scalars"]
    expected = {"trial/accuracy", "trial/size", "front/hypervolume", "verified/accuracy", "verified/size_bytes"}
    assert expected <= set(tags)
    steps = [event.step for event in found.Scalars("trial/accuracy")]
    complete = [trial.number for name, trial in (*watched.first, *watched.second)
                if name == "trial" and "accuracy" in trial.values]
    assert sorted(steps) == sorted(complete)
    assert "settings/text_summary" in found.Tags()["tensors"]


def replay(callback, watched):
    """Let another callback hear what was heard."""
    observer = CallbackObserver(ProgressObserver(), [callback])
    events = {"start": observer.started, "trial": observer.trial, "front": observer.searched_front}
    for name, value in watched.first:
        if name in events:
            events[name](value)
    observer.finished(watched.result)


def test_mlflow_holds_parameters_metrics_and_the_front(watched, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    uri = (tmp_path / "store").as_uri()
    replay(paretopress.Mlflow(uri), watched)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("paretopress")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "0"
    history = client.get_metric_history(run.info.run_id, "trial/accuracy")
    expected = {trial.number: trial.values["accuracy"] for name, trial in watched.first
                if name == "trial" and "accuracy" in trial.values}
    assert {metric.step: metric.value for metric in history} == expected
    assert "trial/latency.cortex-a76-tflite" in run.data.metrics
    stored = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert stored == {"front.json", "front.csv", "run.yaml"}


def test_weights_and_biases_writes_offline_files(watched, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    replay(paretopress.WeightsAndBiases(folder=tmp_path), watched)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))


@pytest.mark.parametrize(
    ("kind", "module", "package"),
    [("TensorBoard", "torch.utils.tensorboard", "tensorboard"), ("Mlflow", "mlflow", "mlflow-skinny"),
     ("WeightsAndBiases", "wandb", "wandb")],
)
def test_a_missing_package_is_one_line_before_anything_is_spent(monkeypatch, kind, module, package):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as raised:
        getattr(paretopress, kind)()
    assert str(raised.value).startswith(f"the package {package} is not installed: pip install 'paretopress[")


def test_what_is_no_callback_is_refused():
    with pytest.raises(ConfigError, match="got the class"):
        checked_callbacks([Recording])
    with pytest.raises(ConfigError, match=r"callback int: has none of the methods on_start"):
        checked_callbacks([3])


def test_callbacks_hear_of_an_end_without_a_result(project):
    import small

    recording = Recording()
    search = paretopress.Search(small.model(), data=small.data(), target="cortex-a76-tflite", max_size="1B", trials=1,
                                callbacks=[recording], progress=False)
    with pytest.raises(paretopress.spaces.errors.InfeasibleError):
        search.run()
    assert recording.heard == [("end", None)]


def test_set_and_wrong_arguments_are_refused_at_once(project):
    import small

    search = paretopress.Search(small.model(), data=small.data(), trials=3)
    assert search.set("space.bits=[8]", "search.seed=4").settings.seed == 4
    assert search.settings.space.bits == (8,)
    with pytest.raises(ConfigError, match="did you mean 'trials'"):
        search.set("search.trails=3")
    with pytest.raises(ConfigError, match="unknown key"):
        paretopress.Search(small.model(), data=small.data(), trails=3)
    with pytest.raises(ConfigError, match="got the class"):
        search.add(Recording)


def test_partial_runs_say_what_is_missing(watched, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(watched.result.run, folder)
    assert paretopress.Result.load(folder).partial == ()
    document = json.loads((folder / "front.json").read_text())
    document["trials"] = {"total": 3, "COMPLETE": 2, "FAIL": 1}
    broken = document["points"][-1]
    broken |= {"measured": {}, "feasible": False, "why_not": "verification failed: no file"}
    (folder / "front.json").write_text(json.dumps(document))
    reasons = paretopress.Result.load(folder).partial
    assert reasons[0] == f"3 of {TRIALS + 1} trials: the time was up"
    assert reasons[1].startswith("1 of 3 trials failed")
    assert reasons[2].endswith(f"#{broken['id']}: verification failed: no file")
