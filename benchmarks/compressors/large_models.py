"""Transformers of the size of BERT and GPT-2: what each method costs in time and memory, and how far it is off.

    python benchmarks/compressors/large_models.py [--models bert gpt2] [--methods 2:4 ...] [--seeds 3] [--threads 2]
        [--out FOLDER]

The networks are built from the configurations of `transformers` with random weights (nothing is downloaded), so that
there is no accuracy to lose: the error is the mean squared difference of the last hidden states from the dense ones
over their variance. Random weights have no low rank and no unimportant channels, which makes this the worst case for
factors and pruning. Inputs are bytes of the text in the folder of shared data (PARETOPRESS_SHARED), 128 at a time: 64
sequences calibrate, 16 others score.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.network import Network, forward
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.refit import refit
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Factorised, Half, Keep, WeightFormat, Weights
from paretopress.spaces.methods import factorisation, pruning, sparsification
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

LENGTH, CALIBRATION, SCORED, BATCH = 128, 64, 16, 16
FORMATS: dict[str, WeightFormat] = {
    "W8": Weights(8, 32), "W4": Weights(4, 32), "W4 in groups of 32": Weights(4, 32, "asymmetric", 32),
    "W3": Weights(3, 32), "fp16": Half(),
}


class Hidden(nn.Module):
    """A transformer that returns its last hidden states alone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

        if name == "bert":
            self.body: nn.Module = BertModel(BertConfig(attn_implementation="eager"), add_pooling_layer=False)
        else:
            self.body = GPT2Model(GPT2Config(attn_implementation="eager", use_cache=False))

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states `(n, length, width)` of tokens `(n, length)`."""
        states: Tensor = self.body(input_ids=tokens).last_hidden_state
        return states


def main() -> None:
    """Print and write one row per model and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["bert", "gpt2"], choices=["bert", "gpt2"])
    parser.add_argument("--methods", nargs="*", help="names of methods; all where not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        for seed in range(arguments.seeds):
            rows += measured(name, seed, arguments.methods)
            (arguments.out / "large_models.json").write_text(json.dumps(rows, indent=1) + "\n")


def measured(name: str, seed: int, methods: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one network of random weights, of all methods or of some."""
    torch.manual_seed(seed)
    model, tokens = Hidden(name).eval(), text(seed)
    program, capturing = timed(lambda: build_program(model, (tokens[:2],)))
    batches = [[batch] for batch in tokens[:CALIBRATION].split(BATCH)]
    calibration, calibrating = timed(lambda: calibrate(program, batches, tuning_samples=BATCH, seed=seed))
    dense = states(program, calibration.base, tokens[CALIBRATION:])
    _, running = timed(lambda: states(program, calibration.base, tokens[:CALIBRATION]))
    whole = plan(program.structure, Policy())
    print(f"{name}, seed {seed}: {whole.stored_bytes / 4e6:.1f} M weights, capture and analysis {capturing:.1f} s, "
          f"calibration {calibrating:.0f} s ({calibrating / running:.1f} times a forward pass)", flush=True)
    entries, rows = Entries(program, calibration), []
    for method, policy, solved in policies(program):
        if methods is not None and method not in methods:
            continue
        planned = plan(program.structure, policy)

        def build(planned: Any = planned, solved: bool = solved) -> Network:  # noqa: ANN401
            if solved:
                return refit(program, entries, planned, [tokens[:CALIBRATION]], seed=seed)
            return tune(program, entries.stitch(planned), calibration)[0]

        network, seconds = timed(build)
        error = float((states(program, network, tokens[CALIBRATION:]) - dense).square().mean() / dense.var())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append({"model": name, "seed": seed, "method": method, "error": error, "seconds": seconds,
                     "smaller": whole.stored_bytes / planned.stored_bytes, "peak_gib": peak})
        print(f"  {method:44s} error {error:8.5f}  {rows[-1]['smaller']:5.2f}x smaller  {seconds:5.0f} s  peak so far "
              f"{peak:.1f} GiB", flush=True)
    return rows


def policies(program: Program) -> list[tuple[str, Policy, bool]]:
    """`(name, policy, whether layers are solved again on their compressed inputs)`."""
    structure = program.structure
    found = [(name, Policy.of(structure.takers(form)), False) for name, form in FORMATS.items()]
    found.append(("2:4", sparsification("2:4").assign(structure).policy, False))
    inner = {group.name: 0.75 for group in structure.coupling.groups if not group.frozen
             and not any("embed" in layer or "wte" in layer for layer in group.producers)}
    pruned = pruning(inner).assign(structure).policy
    assert all(isinstance(choice, Keep) for _, choice in pruned)
    found += [("heads and inner widths at 3/4, least squares", pruned, False),
              ("heads and inner widths at 3/4, solved again", pruned, True)]
    ranked = factorisation(0.75).assign(structure).policy
    assert all(isinstance(choice, Factorised) for _, choice in ranked)
    found.append(("ranks at 3/4 of break-even", ranked, False))
    return [*found, ("heads and inner widths at 3/4, W4, solved again",
                     pruned.replace(structure.takers(FORMATS["W4"])), True)]


def text(seed: int) -> Tensor:
    """Bytes of a text, `(sequences, LENGTH)`, another passage for every seed."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("PARETOPRESS_SHARED") or beside)
    found = torch.tensor(list((folder / "data" / "text" / "tinyshakespeare.txt").read_bytes()))
    count = (CALIBRATION + SCORED) * LENGTH
    return found[seed * count : (seed + 1) * count].reshape(-1, LENGTH)


def states(program: Program, network: Network, tokens: Tensor) -> Tensor:
    """Last hidden states of all sequences."""
    with torch.inference_mode():
        return torch.cat([forward(program, network, [batch]) for batch in tokens.split(BATCH)])


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    begin = time.perf_counter()
    return call(), time.perf_counter() - begin


if __name__ == "__main__":
    main()
