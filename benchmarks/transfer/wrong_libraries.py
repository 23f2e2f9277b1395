"""Libraries that know nothing, the opposite, or something else: `wrong_libraries.py CACHE TARGET SEED`.

Writes `random`, `poisoned` and `other_task` recipes from the measured recipe of the target itself (so that units match
perfectly) and from that of another task.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import replace
from pathlib import Path

from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import Recipe, RecipePolicy

OTHER = {"resnet32": "ds_cnn", "ds_cnn_wide": "resnet20", "resnet20": "ds_cnn"}
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


def main() -> None:
    cache, target, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    recipe = Recipe.load(cache / f"{target}-{seed}.recipe.json")
    rng = random.Random(seed)
    noise = {unit: tuple(loss and math.exp(rng.gauss(-4.0, 2.0)) for loss in row)
             for unit, row in recipe.losses.items()}
    opposite = {unit: tuple(loss and min(10.0, 1e-4 / max(loss, 1e-5)) for loss in row)
                for unit, row in recipe.losses.items()}
    wrong = {
        "random": replace(recipe, name="random", losses=noise, policies=random_policies(recipe, rng)),
        "poisoned": replace(recipe, name="poisoned", losses=opposite, policies=worst_policies(recipe)),
        "other_task": replace(Recipe.load(cache / f"{OTHER[target]}-{seed}.recipe.json"), name="other_task"),
    }
    for name, one in wrong.items():
        one.save(cache / f"{target}-{seed}-{name}.recipe.json")


if __name__ == "__main__":
    main()
