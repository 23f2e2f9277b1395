"""Models that exist as features and losses alone: what a unit loses follows a law of what it is."""

from __future__ import annotations

import math

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.evaluators.sensitivity import amount
from paretopress.search.tasks import Substitution
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.recipe import Recipe
from paretopress.spaces.space import SearchSpace
from paretopress.spaces.unit_features import UnitFeatures, subject_of

KEEPS = (None, *(Keep(eighths / 8) for eighths in range(7, 0, -1)))
FORMATS = (None, Weights(8, 32), Weights(4, 32), Weights(3, 32))
INTEGERS = (None, Weights(8), Weights(8, 32), Weights(4), Weights(4, 32))


def features(depth, pattern="block.*.conv", operator="conv"):
    """A chain of layers that become wider with depth."""
    found = {}
    for index in range(depth):
        place, width = index / max(1, depth - 1), 16 * (1 + 3 * index // depth)
        name = pattern.replace("*", str(index))
        for kind in ("layer", "channels"):
            found[f"{name}/{kind}"] = UnitFeatures(
                operator, "trunk", pattern, place, 0, width, width, 9, 1, width, 1 / depth, 1 / depth, 1024, 0.8,
                math.sin(index),
            )
    return found


def options(known, formats=FORMATS):
    found = {}
    for subject, one in known.items():
        name, _, kind = subject.rpartition("/")
        if kind == "channels":
            found[subject] = KEEPS
        else:
            found[f"{name}/weights"] = formats
            found[f"{name}/rank"] = (None, Factorised("svd", one.full_rank * 3 // 4),
                                     Factorised("svd", one.full_rank // 2))
    return found


def loss_of(unit, choice, known, turned=False):
    """Early layers lose more, with a bump in the middle; `turned`: the opposite."""
    place = known[subject_of(unit)].place
    level = 2.5 - 4.0 * place + 1.5 * math.sin(5.0 * place)
    method = {"channels": -4.0, "weights": 0.5, "rank": -1.0}[unit.rpartition("/")[2]]
    strength = amount(choice) * (known[subject_of(unit)].full_rank if isinstance(choice, Factorised) else 1.0)
    log = method + (-level if turned else level) + (-2.0 if turned else 2.0) * math.log(strength)
    return min(10.0, math.exp(log))


def recipe(name, depth, turned=False, **more):
    known = features(depth, **more)
    offered = options(known)
    losses = {unit: tuple(0.0 if one is None else loss_of(unit, one, known, turned) for one in choices)
              for unit, choices in offered.items()}
    return Recipe(name, {}, known, offered, losses)


def space(known, formats=FORMATS):
    return SearchSpace(options(known, formats), (), "model")


class Laws:
    """Answers substitutions from the law; counts them."""

    def __init__(self, known):
        self.known, self.asked = known, []

    def __call__(self, task):
        assert isinstance(task, Substitution)
        self.asked.append(task.policy)
        total = sum(loss_of(unit, choice, self.known) for unit, choice in task.policy)
        return Evaluation(State.COMPLETE, {"loss": total})
