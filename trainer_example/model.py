"""A small GPT over bytes. It knows nothing of sampling: bytes in, logits out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 -- as everybody calls it
from torch import nn

VOCABULARY = 256  # a byte is a token


@dataclass(frozen=True)
class Shape:
    """How large the model is."""

    block: int = 64  # longest text it reads, in bytes
    layers: int = 2
    heads: int = 3
    width: int = 96


class Attention(nn.Module):
    """Every byte looks back at the bytes before it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape  # noqa: N806 -- batch, time, channels
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.out(y.transpose(1, 2).reshape(B, T, C))
        return out


class Layer(nn.Module):
    """Attention, then a small network at each byte; both add to what came in."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.before_network = nn.LayerNorm(shape.width)
        self.network = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width, bias=False),
            nn.ReLU(),
            nn.Linear(4 * shape.width, shape.width, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before_attention(x))
        out: torch.Tensor = x + self.network(self.before_network(x))
        return out


class GPT(nn.Module):
    """Bytes int64[B, T] in, logits of the next byte float32[B, T, 256] out; T up to `shape.block`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.byte = nn.Embedding(VOCABULARY, shape.width)
        self.position = nn.Embedding(shape.block, shape.width)
        self.layers = nn.Sequential(*(Layer(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, VOCABULARY, bias=False)
        self.head.weight = self.byte.weight  # one table reads and writes bytes
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        x = self.layers(self.byte(x) + self.position(positions))
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def loss_per_example(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean loss over the bytes of each example, in nats: float32[B]."""
    logits = model(x).flatten(0, 1)
    return F.cross_entropy(logits, y.flatten(), reduction="none").view_as(y).mean(dim=1)
