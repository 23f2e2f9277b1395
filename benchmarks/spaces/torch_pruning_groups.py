"""What Torch-Pruning can prune of one model of the zoo, as one line of JSON: run by `coverage.py`.

PYTHON_WITH_TORCH_PRUNING benchmarks/spaces/torch_pruning_groups.py MODEL LAYER_TO_IGNORE ...
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
import torch_pruning
from torch import nn
from torch.utils import _pytree as pytree

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from zoo.registry import Example, build


def shapes(model: nn.Module, args: tuple[torch.Tensor, ...]) -> list[torch.Size]:
    with torch.no_grad():
        return [leaf.shape for leaf in pytree.tree_leaves(model(*args)) if isinstance(leaf, torch.Tensor)]


def bytes_of(model: nn.Module) -> int:
    """Elements of convolution and linear weights, tied ones once."""
    kinds = nn.Linear | nn.modules.conv._ConvNd
    return sum({id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, kinds)}.values())


def groups_of(example: Example, ignored: list[str]) -> list[tuple[list[tuple[str, str]], bool]]:
    """Weight names of every group, and whether the model runs, with outputs as before, without half of the group."""
    wanted, found = shapes(example.model, example.args), []
    position = 0
    while True:
        model = copy.deepcopy(example.model).requires_grad_(True)
        modules = {id(module): name for name, module in model.named_modules()}
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example.args)
        skipped = [model.get_submodule(name) for name in ignored]
        groups = list(graph.get_all_groups(ignored_layers=skipped))
        if position == len(groups):
            return found
        group = groups[position]
        members = sorted({modules[id(dep.target.module)] for dep, _ in group if id(dep.target.module) in modules})
        root, indices = group[0].dep.target.module, group[0].idxs
        half = graph.get_pruning_group(root, group[0].dep.handler, indices[: len(indices) // 2])
        try:
            half.prune()
            runs = len(indices) > 1 and shapes(model, example.args) == wanted
        except Exception:  # noqa: BLE001 - what Torch-Pruning leaves may fail in any way
            runs = False
        found.append((members, runs))
        position += 1


def half_of_all(example: Example, ignored: list[str]) -> float | None:
    """Share of the weights left after halving all groups; None where the result does not run."""
    model = copy.deepcopy(example.model).requires_grad_(True)
    wanted, before = shapes(model, example.args), bytes_of(model)
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            example.args,
            torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[model.get_submodule(name) for name in ignored],
        )
        pruner.step()
        return bytes_of(model) / before if shapes(model, example.args) == wanted else None
    except Exception:  # noqa: BLE001
        return None


def main() -> None:
    name, ignored = sys.argv[1], sys.argv[2:]
    torch.set_num_threads(1)
    example = build(name)
    groups = groups_of(example, ignored)
    print(json.dumps({"groups": groups, "left at half": half_of_all(example, ignored)}))


if __name__ == "__main__":
    main()
