"""Rectified flow: noise levels, the training loss and what both sides of it must agree on."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import WanModel

VIDEO_SIZE = (65, 384, 640)
"""Frames, height and width of the videos that the model is made for: 16,320 tokens."""

CPU_SIZE = (25, 240, 400)
"""The same for a CPU: 2,625 tokens. The model has seen videos of both sizes."""

FLOW_SHIFT = 3.0
"""Shift of the noise levels in training; samplers look best near it."""


def shift_levels(s: Tensor, shift: float) -> Tensor:
    """Noise levels in [0, 1] moved towards noise, as Wan does: `k s / (1 + (k - 1) s)`."""
    return shift * s / (1 + (shift - 1) * s)


def sampling_levels(steps: int, shift: float) -> Tensor:
    """The `steps + 1` noise levels of a sampler, float32 from 1 to 0; `ValueError` below 1 step."""
    if steps < 1:
        raise ValueError(f"steps is {steps}, allowed are whole numbers from 1")
    return shift_levels(torch.linspace(1, 0, steps + 1), shift)


def flow_loss(
    model: WanModel, latents: Tensor, context: Tensor, s: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the velocity, a scalar in float32.

    Args:
        model: predicts `noise - latents`.
        latents: clean latents `[B, 16, T, H, W]`.
        context: text tokens `[B, L, text_dim]`.
        s: noise levels `[B]` in [0, 1], 1 being noise.
        noise: standard normal, of the shape of `latents`.
    """
    level = s.view(-1, 1, 1, 1, 1)
    noisy = (1 - level) * latents + level * noise
    velocity = model(noisy, s * 1000, context)
    return (velocity.float() - (noise - latents)).square().mean()
