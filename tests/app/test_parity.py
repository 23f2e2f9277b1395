"""The command line, `compress` and `Search` are one search: same settings and seed, same trials and finalists."""

import json

import pytest

import paretopress


def trials(folder):
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.slow
def test_python_makes_the_trials_that_the_settings_file_s_run_has(tiny, tiny_run, tmp_path):
    """`tiny_run` is what `paretopress search settings.yaml` does; its command line is compared in the slow test."""
    search = paretopress.Search(
        tiny.module.model(), data=tiny.module.data(), target="x86-zen4-vnni-onnxruntime", max_drop="5pp", trials=14,
        finalists=1, run=tmp_path / "python", progress=False,
    ).set("timing.runs=5")
    result = search.run()
    assert trials(result.run) == trials(tiny_run.path)
    assert (result.run / "finalists.csv").read_bytes() == (tiny_run.path / "finalists.csv").read_bytes()


@pytest.mark.slow
def test_the_command_line_makes_the_same_trials(finish, search_tiny, tiny_run, tmp_path):
    code, out, err = finish(*search_tiny(tmp_path / "cli", "--json"))
    assert code == 0, err
    assert trials(tmp_path / "cli") == trials(tiny_run.path)
    assert (tmp_path / "cli" / "finalists.csv").read_bytes() == (tiny_run.path / "finalists.csv").read_bytes()
    first, second = json.loads(out), json.loads((tiny_run.path / "front.json").read_text())
    assert [point["policy_hash"] for point in first["points"]] == [point["policy_hash"] for point in second["points"]]
