"""Train the GPT of `gpt.py` and write `gpt.safetensors`, in a few minutes: `python examples/gpt/train.py`."""

from __future__ import annotations

import argparse
import math

import torch
from gpt import CONTEXT, GPT, WEIGHTS, perplexity, text, windows
from safetensors.torch import save_file
from torch import nn


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=1600)
    arguments.add_argument("--batch", type=int, default=20, help="windows per step")
    arguments.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    given = arguments.parse_args()
    torch.manual_seed(0)
    network, (seen, unseen) = GPT(), text()
    for parameter in network.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    optimiser = torch.optim.AdamW(network.parameters(), given.rate, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(given.steps):
        share = step / given.steps
        rate = given.rate * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2)
        optimiser.param_groups[0]["lr"] = rate
        starts = torch.randint(len(seen) - CONTEXT - 1, (given.batch, 1))
        chosen = seen[starts + torch.arange(CONTEXT + 1)]
        scores = network(chosen[:, :-1])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), chosen[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 250 == 0:
            with torch.no_grad():
                inputs, targets = (part[:300] for part in windows(unseen))
                print(
                    f"{step + 1}: loss {loss.item():.3f}, perplexity {perplexity(network(inputs), targets):.3f}",
                    flush=True,
                )
    save_file({name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    main()
