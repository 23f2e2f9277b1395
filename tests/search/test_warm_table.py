"""Tables that a library shortens: few measurements where it is right, the whole table where it is wrong."""

import math
import statistics
from dataclasses import replace

from known_models import INTEGERS, Laws, features, recipe, space

from paretopress.evaluators.sensitivity_prior import SensitivityPrior
from paretopress.search.executors import SerialExecutor
from paretopress.search.observer import Silent
from paretopress.search.table import TableRun, measure_table
from paretopress.search.tasks import Substitution
from paretopress.search.warm_table import Refinement, warm_table
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import Recipe

KNOWN = features(12)
SPACE = space(KNOWN)
CELLS = sum(len(choices) - 1 for choices in SPACE.options.values())


def gentle(table):
    """The policy that takes of every unit what loses least, and one that takes the second of each."""
    found = []
    for rank in (0, 1):
        chosen = {}
        for unit, row in table.losses.items():
            order = sorted(range(1, len(row)), key=row.__getitem__)
            chosen[unit] = SPACE.options[unit][order[rank]]
        found.append(Policy.of(chosen))
    return found


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


def mixed_up(depth=12):
    """The right losses of each kind of choice, of other units: the last for the first."""
    right = recipe("mixed up", depth)
    losses = {}
    for kind in ("channels", "weights", "rank"):
        units = [unit for unit in right.losses if unit.endswith(kind)]
        losses |= {unit: right.losses[other] for unit, other in zip(units, reversed(units), strict=True)
                   if len(right.losses[unit]) == len(right.losses[other])}
    return replace(right, losses=losses)


def wrong_by(table, policies):
    """The largest factor between a table's losses of policies and their true ones."""
    truth = Laws(KNOWN)
    pairs = [(sum(table.losses[unit][SPACE.options[unit].index(choice)] for unit, choice in policy),
              truth(Substitution(policy)).values["loss"]) for policy in policies]
    return max(max(guess / true, true / guess) for guess, true in pairs)


def test_what_the_best_policies_rest_on_is_corrected_step_by_step():
    library, laws = [mixed_up()], Laws(KNOWN)
    prior = SensitivityPrior(library, KNOWN, SPACE.options)
    refinement = Refinement(SPACE, prior, TableRun(SPACE))
    before = wrong_by(refinement.table(), gentle(refinement.table()))
    assert before > 1.5
    while refinement.step(gentle(refinement.table()), SerialExecutor(laws), Silent()):
        pass
    assert wrong_by(refinement.table(), gentle(refinement.table())) < math.sqrt(before)
    assert len(laws.asked) == len(set(laws.asked)) == len(refinement.run.measured) < 0.6 * CELLS
    assert all(one.relied_on for one in refinement.rounds)


def test_a_refinement_that_is_continued_measures_nothing_twice():
    def refined(known):
        laws, prior = Laws(KNOWN), SensitivityPrior([mixed_up()], KNOWN, SPACE.options)
        one = Refinement(SPACE, prior, TableRun(SPACE), dict(known))
        for _ in range(2):
            assert one.step(gentle(one.table()), SerialExecutor(laws), Silent())
        return one, laws

    first, _ = refined({})
    again, laws = refined(first.known)
    assert again.table() == first.table()
    assert again.rounds == first.rounds
    assert not laws.asked


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
    library = [recipe("short", 7)]
    warm_table(SPACE, KNOWN, library, SerialExecutor(laws), Stopping(), should_stop=lambda: True)
    assert len(laws.asked) == 0
