"""Tables that a library shortens: few measurements where it is right, the whole table where it is wrong."""

import math
import statistics

from known_models import INTEGERS, Laws, features, recipe, space

from paretopress.search.executors import SerialExecutor
from paretopress.search.observer import Silent
from paretopress.search.table import measure_table
from paretopress.search.warm_table import warm_table
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import Recipe

KNOWN = features(12)
SPACE = space(KNOWN)
CELLS = sum(len(choices) - 1 for choices in SPACE.options.values())


def warmed(*recipes, offered=SPACE):
    laws = Laws(KNOWN)
    return warm_table(offered, KNOWN, recipes, SerialExecutor(laws), Silent()), laws


def whole(offered=SPACE):
    return measure_table(offered, SerialExecutor(Laws(KNOWN)))[0]


def test_a_sibling_saves_most_of_the_table():
    found, laws = warmed(recipe("short", 7))
    assert found.predicted
    assert found.sources == ("short",)
    assert len(laws.asked) == len(found.run.measured) < CELLS / 5
    assert found.rounds[-1].order > 0.6
    full = whole()
    errors = [abs(math.log(loss / true)) for unit, row in found.table.losses.items()
              for loss, true in zip(row[1:], full.losses[unit][1:], strict=True)]
    assert statistics.median(errors) < math.log(1.8)
    assert max(errors) < math.log(8.0)


def test_a_library_that_knows_the_opposite_costs_nothing_but_its_predictions():
    found, laws = warmed(recipe("poisoned", 7, turned=True))
    assert not found.predicted
    assert found.table == whole()
    assert len(laws.asked) == len(set(laws.asked)) == CELLS   # nothing twice


def test_policies_alone_leave_the_table_to_be_measured():
    found, laws = warmed(Recipe.of_policy(Policy.of({}), "bare"))
    assert (found.predicted, found.sources, found.rounds) == (False, (), ())
    assert found.table == whole()
    assert len(laws.asked) == CELLS


def test_all_layers_in_eight_bits_are_measured_once():
    offered = space(KNOWN, INTEGERS)
    found, laws = warmed(recipe("short", 7), offered=offered)
    together = [policy for policy in laws.asked if len(policy) > 1]
    assert len(together) == 1
    assert found.run.together is not None
    assert len(laws.asked) == len(set(laws.asked))


def test_the_wish_to_stop_ends_it():
    class Stopping(Silent):
        def should_stop(self):
            return True

    laws = Laws(KNOWN)
    warm_table(SPACE, KNOWN, [recipe("short", 7)], SerialExecutor(laws), Stopping(), should_stop=lambda: True)
    assert len(laws.asked) == 0
