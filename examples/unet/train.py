"""Train the U-Net of `unet.py` and write `unet.safetensors`, in two minutes: `python examples/unet/train.py`."""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import save_file
from torch import nn
from unet import WEIGHTS, UNet, draw, overlap


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=600)
    given = arguments.parse_args()
    torch.manual_seed(0)
    network = UNet()
    optimiser = torch.optim.AdamW(network.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 8e-3, total_steps=given.steps)
    for step in range(given.steps):
        images, masks = draw(24, 1000 + step)
        loss = nn.functional.cross_entropy(network(images), masks)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            network.eval()
            with torch.no_grad():
                images, masks = draw(200, 2)
                print(f"{step + 1}: loss {loss.item():.3f}, overlap {overlap(network(images), masks):.4f}", flush=True)
            network.train()
    save_file(
        {
            name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in network.state_dict().items()
        },
        WEIGHTS,
    )


if __name__ == "__main__":
    main()
