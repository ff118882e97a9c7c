"""Graphics cards: how fast they are, and what others have measured on them."""

from __future__ import annotations

from typing import NamedTuple

FLASH = "FlashAttention-2"
SAGE_TRITON = "SageAttention 1 (Triton)"
SAGE_NEWEST = "SageAttention 2++"
DENSE = (FLASH, SAGE_TRITON, SAGE_NEWEST)
SOL_ATTN = "Sol-Attn"
SAGE_TRITON_CYCLES = 512 + 1024
"""Tensor cycles of SageAttention's Triton kernel for 16 x 64 scores: int8 scores, and 16-bit values
with fp16 sums."""


class Card(NamedTuple):
    """One GPU, as its vendor describes it.

    Attributes:
        arch: compute capability, times ten.
        multiprocessors, gigahertz: as sold; the boost clock.
        gigabytes: that its memory moves in a second.
    """

    name: str
    arch: int
    multiprocessors: int
    gigahertz: float
    gigabytes: float

    @property
    def cycles(self) -> float:
        """Of all quarters of all multiprocessors in a second."""
        return 4e9 * self.multiprocessors * self.gigahertz

    @property
    def linear_rate(self) -> float:
        """Operations per second of 16-bit products with fp32 sums, at best, on graphics cards."""
        return self.cycles * 2 * 2048 / 32

    def attention_rate(self, cycles: float) -> float:
        """Operations per second, at best, of attention with `cycles` for 16 x 64 scores."""
        return self.cycles * 4 * 16 * 64 * 128 / cycles


# NVIDIA's architecture papers (GA102, Ada, RTX Blackwell) and product pages (nvidia.com/geforce).
H200 = Card("H200", 90, 132, 1.98, 4800)
CARDS = (
    Card("RTX 3060", 86, 28, 1.777, 360),
    Card("RTX 3090", 86, 82, 1.695, 936),
    Card("RTX 4070", 89, 46, 2.475, 504),
    Card("RTX 4090", 89, 128, 2.52, 1008),
    Card("RTX 5070 Ti", 120, 70, 2.452, 896),
    Card("RTX 5090", 120, 170, 2.407, 1792),
)
# 10^12 operations per second with heads of 128 channels and no causal mask. Dense ones: kernels
# alone, 32,768 tokens (pictures in the readme of github.com/thu-ml/SageAttention). Sol-Attn: the
# fastest whole calls in github.com/Comfy-Org/comfy-kitchen/pull/146 (79,567 tokens, every block)
# and /pull/179 (104,050 tokens, a fifth of the blocks).
PUBLISHED = {
    86: {FLASH: ("RTX 3090", 68.0), SAGE_TRITON: ("RTX 3090", 134.0)},
    89: {
        FLASH: ("RTX 4090", 164.0), SAGE_TRITON: ("RTX 4090", 322.0),
        SAGE_NEWEST: ("RTX 4090", 493.0), SOL_ATTN: ("RTX 4070", 80.5),
    },
    120: {
        FLASH: ("RTX 5090", 214.0), SAGE_TRITON: ("RTX 5090", 479.0),
        SAGE_NEWEST: ("RTX 5090", 643.0), SOL_ATTN: ("RTX 5090", 381.0),
    },
}  # fmt: skip


def published_rates(card: Card) -> dict[str, float]:
    """Operations per second by kernel, scaled by multiprocessors and clock from the card of the
    same architecture that they were measured on."""
    cycles = {each.name: each.cycles for each in CARDS}
    rates = PUBLISHED[card.arch].items()
    return {kernel: 1e12 * tera * card.cycles / cycles[name] for kernel, (name, tera) in rates}


def efficiency(card: Card) -> float:
    """Share of its bound that SageAttention's Triton kernel reaches: ours is built the same way."""
    return published_rates(card)[SAGE_TRITON] / card.attention_rate(SAGE_TRITON_CYCLES)
