"""What libraries cost that know nothing, the opposite, or something else.

    python wrong_libraries.py CACHE OUTPUT.json --target ds_cnn_wide --seeds 0 1 2 3 4 --trials 40

`random`: losses and policies drawn at random. `poisoned`: where much is lost it promises little and the other way
round, with policies that compress most where most is lost. `shuffled`: the right losses, of other units than it says.
These three are made of the target's own table, so that its units match perfectly. `other_task`: a shipped recipe of
another model and task. Searches and hypervolumes are those of `search_cost.py`; `cold_ordered` is a search without any
library whose seeds come in another order: what it differs by from `cold` is chance.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from problems import case, measured
from search_cost import REACHED, cold, compact, warm

from paretopress.search.policy_library import shipped_recipes
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import Recipe, RecipePolicy

OTHER = {"ds_cnn": "digits", "ds_cnn_wide": "digits", "resnet20": "ds_cnn", "resnet32": "ds_cnn",
         "text_large": "ds_cnn"}
POLICIES = 6


def random_policies(recipe: Recipe, rng: random.Random) -> tuple[RecipePolicy, ...]:
    """Policies that choose at random for every unit."""
    found = []
    for number in range(POLICIES):
        chosen = {unit: rng.choice(choices) for unit, choices in recipe.options.items()}
        policy = Policy.of({unit: choice for unit, choice in chosen.items() if choice is not None})
        found.append(RecipePolicy(str(number), policy, {"accuracy": 0.99}, verified=True))
    return tuple(found)


def worst_policies(recipe: Recipe) -> tuple[RecipePolicy, ...]:
    """Policies that compress most where most is lost, and nothing where little is."""
    order = sorted(recipe.losses, key=lambda unit: -max(recipe.losses[unit]))
    found = []
    for number in range(POLICIES):
        units = order[: max(1, len(order) * (number + 1) // (2 * POLICIES))]
        chosen = {unit: recipe.options[unit][max(range(len(row := recipe.losses[unit])), key=row.__getitem__)]
                  for unit in units}
        policy = Policy.of({unit: choice for unit, choice in chosen.items() if choice is not None})
        found.append(RecipePolicy(str(number), policy, {"accuracy": 0.99}, verified=True))
    return tuple(found)


def shuffled(losses: Mapping[str, Sequence[float]], rng: random.Random) -> dict[str, tuple[float, ...]]:
    """The losses of units with as many options, dealt out anew."""
    found: dict[str, tuple[float, ...]] = {}
    kinds = {unit: (unit.rpartition("/")[2], len(row)) for unit, row in losses.items()}
    for kind in sorted(set(kinds.values())):
        units = [unit for unit in losses if kinds[unit] == kind]
        rows = [tuple(losses[unit]) for unit in units]
        rng.shuffle(rows)
        found.update(zip(units, rows, strict=True))
    return {unit: found[unit] for unit in losses}


def wrong_libraries(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Recipes by what is wrong with them, made of the right one."""
    rng = random.Random(seed)
    noise = {unit: tuple(loss and math.exp(rng.gauss(-4.0, 2.0)) for loss in row)
             for unit, row in recipe.losses.items()}
    opposite = {unit: tuple(loss and min(10.0, 1e-4 / max(loss, 1e-5)) for loss in row)
                for unit, row in recipe.losses.items()}
    return {
        "random": replace(recipe, name="random", losses=noise, policies=random_policies(recipe, rng)),
        "poisoned": replace(recipe, name="poisoned", losses=opposite, policies=worst_policies(recipe)),
        "shuffled": replace(recipe, name="shuffled", losses=shuffled(recipe.losses, rng),
                            policies=random_policies(recipe, rng)),
        "other_task": Recipe.load(shipped_recipes()[OTHER[recipe.name]]),
    }


def compared(target: str, seed: int, cache: Path, trials: int) -> dict[str, Any]:
    """A search without any library, and one with each wrong one."""
    one = case(target, seed, cache)
    with tempfile.TemporaryDirectory() as folder:
        first, _, _ = cold(one, trials, Path(folder) / "cold")
        order, _, _ = cold(one, trials, Path(folder) / "ordered", ordered=True)
        best, images = first.after(trials), first.reaching(REACHED * first.after(trials))
        row: dict[str, Any] = {
            "seed": seed, "cold": best, "cold_ordered": order.after(trials) / best, "images_to_95": {"cold": images},
            "table": {},
        }
        for name, library in wrong_libraries(measured(one), seed).items():
            trace, told = warm(one, (library,), trials, Path(folder) / name, first)
            row[name] = trace.after(trials) / best
            row["images_to_95"][name] = trace.reaching(REACHED * best)
            row["table"][name] = told
    return row


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians and spread over seeds."""
    found: dict[str, Any] = {}
    for name in ("cold_ordered", "random", "poisoned", "shuffled", "other_task"):
        values = sorted(row[name] for row in rows)
        found[name] = {"median": statistics.median(values), "least": values[0], "most": values[-1]}
        images = [(row["images_to_95"].get(name), row["images_to_95"]["cold"]) for row in rows]
        costs = sorted(own / cold for own, cold in images if own)
        if costs:
            found[name] |= {"images over cold: median": statistics.median(costs), "images over cold: most": costs[-1],
                            "not reached": sum(own is None for own, _ in images)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=40)
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        rows.append(compared(given.target, seed, given.cache, given.trials))
        plain = {"target": given.target, "trials": given.trials, "summary": summary(rows), "seeds": rows}
        given.output.write_text(compact(plain))
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
