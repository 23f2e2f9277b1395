"""Vision networks with attention or token mixing, written from their papers in the style of the common libraries."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name


class Mlp(nn.Module):
    def __init__(self, size, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """One linear layer makes queries, keys and values of all heads."""

    def __init__(self, size, heads):
        super().__init__()
        self.num_heads, self.head_dim = heads, size // heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        x = scores.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class VitBlock(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(size, eps=1e-6), Attention(size, heads)
        self.norm2, self.mlp = nn.LayerNorm(size, eps=1e-6), Mlp(size, 4 * size)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021; the defaults are ViT-B/16."""

    def __init__(self, image=224, patch=16, size=768, depth=12, heads=12, classes=1000):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, size, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, size))
        self.blocks = nn.Sequential(*(VitBlock(size, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(size, eps=1e-6), nn.Linear(size, classes)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class EncoderVit(nn.Module):
    """The same on PyTorch's own encoder layers."""

    def __init__(self, image=224, patch=16, size=768, depth=12, heads=12, classes=1000):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, size, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size))
        self.pos_embedding = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, size))
        layer = nn.TransformerEncoderLayer(size, heads, 4 * size, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(size), enable_nested_tensor=False)
        self.head = nn.Linear(size, classes)

    def forward(self, x):
        x = self.conv_proj(x)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embedding
        return self.head(self.encoder(x)[:, 0])


def window_partition(x, window):
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, c)


def window_reverse(windows, window, h, w):
    b = int(windows.shape[0] / (h * w / window / window))
    x = windows.view(b, h // window, w // window, window, window, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)


class WindowAttention(nn.Module):
    def __init__(self, size, window, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (size // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        coordinates = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        relative = (coordinates[:, :, None] - coordinates[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("relative_position_index", relative[..., 0] * (2 * window - 1) + relative[..., 1])
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x, mask):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        attention = attention + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            count = mask.shape[0]
            attention = attention.view(b // count, count, self.num_heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            attention = attention.view(-1, self.num_heads, n, n)
        x = (attention.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
        return self.proj(x)


class SwinBlock(nn.Module):
    def __init__(self, size, resolution, heads, window, shift):
        super().__init__()
        self.resolution, self.window, self.shift = resolution, window, shift
        self.norm1, self.attn = nn.LayerNorm(size), WindowAttention(size, window, heads)
        self.norm2, self.mlp = nn.LayerNorm(size), Mlp(size, 4 * size)
        self.register_buffer("attn_mask", self._mask() if shift else None)

    def _mask(self):
        regions = torch.zeros(1, self.resolution, self.resolution, 1)
        slices = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for index, (rows, columns) in enumerate((rows, columns) for rows in slices for columns in slices):
            regions[:, rows, columns, :] = index
        windows = window_partition(regions, self.window).view(-1, self.window**2)
        return (windows.unsqueeze(1) - windows.unsqueeze(2)).ne(0).float() * -100.0

    def forward(self, x):
        side = self.resolution
        b, n, c = x.shape
        shortcut, x = x, self.norm1(x).view(b, side, side, c)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = window_partition(x, self.window).view(-1, self.window**2, c)
        windows = self.attn(windows, self.attn_mask).view(-1, self.window, self.window, c)
        x = window_reverse(windows, self.window, side, side)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x.view(b, n, c)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, size, resolution):
        super().__init__()
        self.resolution = resolution
        self.reduction, self.norm = nn.Linear(4 * size, 2 * size, bias=False), nn.LayerNorm(4 * size)

    def forward(self, x):
        b, _, c = x.shape
        x = x.view(b, self.resolution, self.resolution, c)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x.view(b, -1, 4 * c)))


class Swin(nn.Module):
    """Liu et al. 2021; the defaults are Swin-T."""

    def __init__(self, image=224, size=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7, classes=1000):
        super().__init__()
        self.patch_embed, self.norm0 = nn.Conv2d(3, size, 4, 4), nn.LayerNorm(size)
        layers, resolution = [], image // 4
        for index, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            for place in range(depth):
                shift = window // 2 if place % 2 and resolution > window else 0
                layers.append(SwinBlock(size << index, resolution, count, window, shift))
            if index < len(depths) - 1:
                layers.append(PatchMerging(size << index, resolution))
                resolution //= 2
        self.layers, last = nn.Sequential(*layers), size << len(depths) - 1
        self.norm, self.avgpool, self.head = nn.LayerNorm(last), nn.AdaptiveAvgPool1d(1), nn.Linear(last, classes)

    def forward(self, x):
        x = self.norm0(self.patch_embed(x).flatten(2).transpose(1, 2))
        x = self.norm(self.layers(x))
        return self.head(torch.flatten(self.avgpool(x.transpose(1, 2)), 1))


class ChannelsFirstNorm(nn.Module):
    """Layer normalisation of `(n, c, h, w)` over the channels, spelled out."""

    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.dwconv, self.norm = (
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            nn.LayerNorm(channels, eps=1e-6),
        )
        self.pwconv1, self.act, self.pwconv2 = (
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x):
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Liu et al. 2022; the defaults are ConvNeXt-T."""

    def __init__(self, depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), classes=1000):
        super().__init__()
        stages, cin = [], 3
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if index == 0:
                stages += [nn.Conv2d(cin, width, 4, 4), ChannelsFirstNorm(width)]
            else:
                stages += [ChannelsFirstNorm(cin), nn.Conv2d(cin, width, 2, 2)]
            stages += [ConvNeXtBlock(width) for _ in range(depth)]
            cin = width
        self.stages, self.norm, self.head = nn.Sequential(*stages), nn.LayerNorm(cin, eps=1e-6), nn.Linear(cin, classes)

    def forward(self, x):
        return self.head(self.norm(self.stages(x).mean([-2, -1])))


class MixerBlock(nn.Module):
    def __init__(self, tokens, size, token_hidden, hidden):
        super().__init__()
        self.norm1, self.mlp_tokens = nn.LayerNorm(size), Mlp(tokens, token_hidden)
        self.norm2, self.mlp_channels = nn.LayerNorm(size), Mlp(size, hidden)

    def forward(self, x):
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class MlpMixer(nn.Module):
    """Tolstikhin et al. 2021; the defaults are Mixer-B/16."""

    def __init__(self, image=224, patch=16, size=768, depth=12, token_hidden=384, hidden=3072, classes=1000):
        super().__init__()
        self.stem, tokens = nn.Conv2d(3, size, patch, patch), (image // patch) ** 2
        self.blocks = nn.Sequential(*(MixerBlock(tokens, size, token_hidden, hidden) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, classes)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class Espcn(nn.Module):
    """Super-resolution with residual blocks and sub-pixel convolution (EDSR, Lim et al. 2017)."""

    def __init__(self, width=64, blocks=4, factor=2):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.up, self.shuffle = nn.Conv2d(width, width * factor**2, 3, padding=1), nn.PixelShuffle(factor)
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        x = self.head(x)
        skip = x
        for block in self.body:
            x = x + 0.5 * block(x)
        return self.tail(F.relu(self.shuffle(self.up(x + skip))))
