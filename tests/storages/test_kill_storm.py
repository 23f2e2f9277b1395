"""Whatever is killed, stopped or crashed during a search: nothing is lost, nothing done twice, nothing left running."""

import pytest

KILLS, TRIALS = 34, 90     # each; more than a hundred in all


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql"])
def test_a_storm_costs_nothing(kind, request, tmp_path):
    pytest.importorskip("optuna")   # imported before processes are forked
    from storm import Storm

    server = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    url = server.create("storm") if server else kind
    storm = Storm(url, tmp_path / "run", TRIALS, server=server)
    try:
        storm.start()
        storm.rage(KILLS, crashes=2 if server else 0, deadline=180.0)
        storm.calm()
        broken, figures = storm.verdict()
    finally:
        storm.stop()
    assert broken == []
    assert figures["complete"] == TRIALS
    assert figures["left running"] == 0
    struck = sum(figures[name] for name in figures if name.endswith("killed"))
    assert struck >= KILLS
    assert figures["coordinators killed"] >= 2
    assert figures["workers stopped and continued"] >= 2
    if server:
        assert figures["server crashes"] == 2
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"secret-word" not in path.read_bytes()
