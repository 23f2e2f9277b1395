import pytest

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.option_space import OptionSpace
from paretopress.search.proposals import WIDENED_EVERY, Proposer
from paretopress.search.records import TrialRecord
from paretopress.search.samplers import ExplorationSettings
from paretopress.search.surrogate import Guide
from paretopress.search.wider_formats import widened
from paretopress.spaces.choices import Half, Keep, Weights

FORMATS = (None, Weights(8), Weights(4), Weights(8, 32), Weights(2, 32), Weights(3))
OPTIONS = {
    "a/weights": FORMATS, "b/weights": FORMATS, "c/channels": (None, Keep(0.5), Keep(0.25)),
    "d/weights": (None, Half()),
}
SPACE = OptionSpace.of(OPTIONS)
LOSSES = {
    "a/weights": (0.0, 0.1, 0.2, 0.1, 0.3, 0.4), "b/weights": (0.0, 0.1, 0.9, 0.1, 0.3, 0.4),
    "c/channels": (0.0, 1.0, 2.0), "d/weights": (0.0, 0.1),
}


def test_every_layer_gets_the_widest_integers_of_its_kind():
    narrow = (2, 5, 1, 1)   # 4 bits, 3 bits, half of the channels, half precision
    assert widened(SPACE, narrow, LOSSES, lambda _: True) == (1, 1, 1, 1)
    assert widened(SPACE, (4, 0, 2, 0), LOSSES, lambda _: True) == (3, 0, 2, 0)   # computes in floats, stays dense
    assert widened(SPACE, (1, 3, 0, 0), LOSSES, lambda _: False) == (1, 3, 0, 0)


@pytest.mark.parametrize(("room", "expected"), [(8, (2, 2, 0, 0)), (12, (2, 1, 0, 0)), (16, (1, 1, 0, 0))])
def test_what_gains_most_comes_first_where_not_all_fits(room, expected):
    def size(genome):
        return sum(OPTIONS[unit][index].bits for unit, index in zip(SPACE.units[:2], genome[:2], strict=True))

    assert widened(SPACE, (2, 2, 0, 0), LOSSES, lambda genome: size(genome) <= room) == expected


def proposals(*, wider, limits):
    guide = Guide(lambda policy: {"size": 32.0 - 2.0 * len(policy)}, limits, LOSSES)
    settings = ExplorationSettings(trials=40, widened=wider)
    proposer = Proposer(SPACE, {"accuracy": "max", "size": "min"}, [(2, 2, 1, 0)], settings, guide)
    found = []
    for number in range(WIDENED_EVERY + 1):
        genome = proposer.propose(number)
        found.append(genome)
        policy = SPACE.policy(genome)
        values = {"accuracy": 0.9, "size": 32.0 - 2.0 * len(policy), "divergence": 0.1 * sum(genome)}
        record = TrialRecord.of(number, policy, Evaluation(State.COMPLETE, values), 0.0)
        proposer.learn(genome, record)
    return found


def test_an_exploration_for_distillation_within_budgets_tries_them():
    plain, wider = (proposals(wider=one, limits={"size": 30.0}) for one in (False, True))
    assert wider[:WIDENED_EVERY] == plain[:WIDENED_EVERY]
    known = {widened(SPACE, genome, LOSSES, lambda _: True) for genome in wider[:WIDENED_EVERY]}
    assert wider[WIDENED_EVERY] in known - set(wider[:WIDENED_EVERY])
    assert wider[WIDENED_EVERY] != plain[WIDENED_EVERY]
    assert proposals(wider=True, limits={}) == proposals(wider=False, limits={})
