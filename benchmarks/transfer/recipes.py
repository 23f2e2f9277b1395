"""Makes the recipes that come with the package: one search for each architecture of the examples, exported.

    python recipes.py RUNS [NAME...]

Budgets are trials, so that a run can be repeated. The table of resnet56 starts from the recipe of resnet20, which is
what a user would do; what was predicted of it is marked in the recipe and teaches nothing further.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from problems import ROOT, TARGET

from paretopress.search.observer import Silent
from paretopress.search.policy_library import recipe_of_run
from paretopress.search.problem import SearchSettings
from paretopress.search.session import run_search
from paretopress.spaces.recipe import SUFFIX

FOLDER = ROOT / "search" / "recipes"
for folder in ("gpt", "unet", "textclass", "minilm"):
    sys.path.append(str(ROOT / "examples" / folder))


def _example(module: str, model: str, data: str) -> Callable[[], tuple]:
    def load() -> tuple:
        from importlib import import_module

        found = import_module(module)
        return getattr(found, model)(), getattr(found, data)(), f"{module}:{model}"

    return load


EXAMPLES = {
    "digits": (_example("paretopress.demo.factories", "model", "data"), "", 60, 6),
    "ds_cnn": (_example("kws", "model", "data"), "", 60, 6),
    "resnet20": (_example("cifar", "resnet20", "data_without_train"), "", 20, 3),
    "resnet56": (_example("cifar", "resnet56", "data_without_train"), "resnet20", 24, 4),
    "gpt": (_example("gpt", "model", "data_without_train"), "", 40, 6),
    "unet": (_example("unet", "model", "data_without_train"), "", 40, 6),
    "text_classifier": (_example("textclass", "small_model", "data"), "", 40, 6),
    "minilm": (_example("minilm", "model", "data"), "", 16, 4),
}
"""What to load, the recipe to start from, trials and finalists."""


class Told(Silent):
    """Prints what is worth reading."""

    def message(self, text: str) -> None:
        """Print a line."""
        print(f"  {text}", flush=True)

    warning = message


def main() -> None:
    runs = Path(sys.argv[1])
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[2:] or EXAMPLES:
        load, source, trials, finalists = EXAMPLES[name]
        model, data, told = load()
        started = time.perf_counter()
        warm_start = str(FOLDER / f"{source}{SUFFIX}") if source else ""
        settings = SearchSettings(targets=(TARGET,), trials=trials, finalists=finalists, distil="off", timing_runs=100,
                                  warm_start=warm_start, name=name)
        run = run_search(model, data, settings, runs / name, observer=Told(), model_name=told)
        recipe = recipe_of_run(run, name=name)
        path = FOLDER / f"{name}{SUFFIX}"
        recipe.save(path)
        print(f"{name}: {recipe.cells} choices, {len(recipe.estimated)} of them predicted, {len(recipe.policies)} "
              f"policies, {path.stat().st_size} bytes, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
