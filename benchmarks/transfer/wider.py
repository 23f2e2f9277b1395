"""A wider DS-CNN: the trained one widened, disturbed, and trained against it on variations of the calibration stimuli.

Channels are duplicated and what reads them is divided among the copies (Net2WiderNet, Chen, Goodfellow and Shlens, ICLR
2016), which changes nothing; noise of a third of every weight's spread makes the copies differ. 500 stimuli are too few
to train on from nothing, so the wider network learns the outputs of the narrow one, without labels.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "kws"))
WIDTH, STEPS, BATCH, NOISE = 96, 600, 64, 0.3


@cache
def wide_ds_cnn() -> nn.Module:
    """Return the wider network in eval mode, trained or read back; the same every time on one machine."""
    import kws

    torch.manual_seed(7)
    narrow, wide = kws.model(), kws.DSCNN(WIDTH)
    file = Path(os.environ.get("PARETOPRESS_TRANSFER_CACHE", ".")) / "ds_cnn_wide.safetensors"
    if file.exists():
        wide.load_state_dict(load_file(file))
        return wide.eval()
    _widen(narrow, wide)
    inputs = kws.data().calibration[0]
    _train(wide, narrow, inputs)
    save_file(wide.state_dict(), file)
    return wide.eval()


def _widen(narrow: nn.Module, wide: nn.Module) -> None:
    source, target = narrow.state_dict(), wide.state_dict()
    old = source["classifier.weight"].shape[1]
    origin = torch.cat([torch.arange(old), torch.randint(0, old, (WIDTH - old,))])
    copies = torch.bincount(origin, minlength=old).float()[origin]
    for name, tensor in source.items():
        shape = target[name].shape
        grown = tensor
        if tensor.ndim and shape[0] != tensor.shape[0]:
            grown = grown[origin]
        if tensor.ndim > 1 and shape[1] != tensor.shape[1]:
            grown = grown[:, origin] / copies.view(1, -1, *[1] * (tensor.ndim - 2))
        if tensor.ndim > 1:
            grown = grown + NOISE * grown.std() * torch.randn_like(grown)
        target[name].copy_(grown)


@torch.enable_grad()
def _train(wide: nn.Module, narrow: nn.Module, inputs: Tensor) -> None:
    optimiser = torch.optim.AdamW(wide.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, STEPS)
    wide.train()
    for _ in range(STEPS):
        batch = _varied(inputs)
        with torch.no_grad():
            wanted = narrow(batch)
        loss = functional.kl_div(wide(batch).log_softmax(1), wanted.log_softmax(1), reduction="batchmean",
                                 log_target=True)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _varied(inputs: Tensor) -> Tensor:
    """Stimuli moved in time by up to four frames, half of them mixed with another one."""
    rows = torch.randint(0, len(inputs), (BATCH,))
    batch = torch.roll(inputs[rows], int(torch.randint(-4, 5, (1,))), dims=2)
    others, share = inputs[torch.randint(0, len(inputs), (BATCH,))], 0.5 * torch.rand(BATCH, 1, 1, 1)
    return torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, batch, (1 - share) * batch + share * others)


if __name__ == "__main__":
    import kws

    torch.set_num_threads(1)
    data = kws.data()
    for name, (inputs, labels) in {"calibration": data.calibration, "holdout": data.holdout}.items():
        with torch.no_grad():
            found = [float((model(inputs).argmax(1) == labels).float().mean())
                     for model in (kws.model(), wide_ds_cnn())]
        print(f"{name}: narrow {found[0]:.4f}, wide {found[1]:.4f}")
