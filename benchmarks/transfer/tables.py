"""Measures whole tables of models and keeps their evaluations: `tables.py CACHE SEED NAME...`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from problems import case, measured

if __name__ == "__main__":
    cache, seed = Path(sys.argv[1]), int(sys.argv[2])
    for name in sys.argv[3:]:
        start = time.perf_counter()
        one = case(name, seed, cache)
        recipe = measured(one)
        recipe.save(cache / f"{name}-{seed}.recipe.json")
        print(f"{name} seed {seed}: {recipe.cells} choices, {one.counted.images} images, "
              f"{time.perf_counter() - start:.0f} s")
