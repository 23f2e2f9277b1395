"""Models whose weights are not those of plain convolution and linear modules."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name


class Columns(nn.Module):
    """A user's own layer: `(in, out)`, no bias."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, x):
        return x @ self.weight


class Products(nn.Module):
    """Parameters in products of every form, read by the code of the model itself."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 16) / 3), nn.Parameter(torch.randn(12, 16) / 4)
        self.third, self.shift = nn.Parameter(torch.randn(16, 12) / 4), nn.Parameter(torch.randn(16))
        self.fourth, self.own = nn.Parameter(torch.randn(16, 18) / 4), Columns(18, 14)
        self.fifth, self.bias = nn.Parameter(torch.randn(14, 14) / 4), nn.Parameter(torch.randn(14))
        self.inner, self.head = nn.Linear(14, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(x @ self.first)
        x = F.relu(F.linear(x, self.second))
        x = F.relu(torch.matmul(x, self.third.t()) + self.shift)
        x = F.relu(torch.einsum("bti,io->bto", x, self.fourth))
        x = F.relu(self.own(x))
        x = F.relu(torch.addmm(self.bias, x.flatten(0, 1), self.fifth.T))
        x = F.relu(F.linear(x, self.inner.weight, self.inner.bias)).view(-1, 4, 12)
        return self.head(x)


class Upsampling(nn.Module):
    """A small U-Net: transposed convolutions with and without overlap, grouped and depthwise ones."""

    def __init__(self):
        super().__init__()
        self.down, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.norm2 = nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.up, self.norm3 = nn.ConvTranspose2d(16, 8, 2, 2, bias=False), nn.BatchNorm2d(8)
        self.join = nn.Conv2d(16, 12, 3, padding=1)
        self.wide = nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1)
        self.grouped, self.depthwise = nn.ConvTranspose2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3, groups=8)
        self.out = nn.Conv2d(8, 5, 1)
        for module in self.children():
            if module.weight.ndim == 4:   # PyTorch's own start leaves outputs that hardly vary
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x):
        left = F.relu(self.norm1(self.down(x)))
        right = F.relu(self.norm3(self.up(F.relu(self.norm2(self.deep(left))))))
        x = F.relu(self.wide(F.relu(self.join(torch.cat([left, right], 1)))))
        return self.out(F.relu(self.depthwise(F.relu(self.grouped(x)))))


class Waves(nn.Module):
    """Transposed convolutions of one dimension."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(2, 8, 3), nn.ReLU(), nn.ConvTranspose1d(8, 12, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose1d(12, 6, 3, dilation=2, padding=2), nn.ReLU(), nn.Conv1d(6, 5, 1),
        )

    def forward(self, x):
        return self.net(x)


class Table(nn.Module):
    """Words and positions."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(30, 16, padding_idx=0), nn.Parameter(torch.randn(4, 16))
        self.hidden, self.head = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, words):
        return self.head(F.gelu(self.hidden(self.words(words) + self.places)))


class Gpt2(nn.Module):
    """The model of `transformers`, whose linear layers are `Conv1D`, with a tied head."""

    def __init__(self):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(n_layer=2, n_embd=16, n_head=4, vocab_size=30, n_positions=8, bos_token_id=None,
                            eos_token_id=None, attn_implementation="eager")
        self.model = GPT2LMHeadModel(config)

    def forward(self, words):
        return self.model(words, use_cache=False).logits


class Attention(nn.Module):
    """PyTorch's own attention, which reads the parameters of a child that it never calls."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 5)
        self.stem = nn.Linear(6, 16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.inner(x, x, x, need_weights=False)[0])


LAYOUTS = {
    "products": (Products, {"x": (4, 8)}),
    "upsampling": (Upsampling, {"x": (3, 6, 6)}),
    "waves": (Waves, {"x": (2, 10)}),
    "table": (Table, {"x": (4,)}),
    "gpt2": (Gpt2, {"x": (4,)}),
}
WORDS = {"table": 30, "gpt2": 30}   # sizes of the tables whose rows are the inputs
