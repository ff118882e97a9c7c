"""The code of the latents that a folder of a trained model holds."""

from __future__ import annotations

from pathlib import Path

from .autoencoder import Autoencoder
from .latents import LinearCode, SmoothDecoder
from .model_files import CODE, DECODER, VAE


def load_code(folder: Path) -> LinearCode | Autoencoder:
    """What latents were made with: the autoencoder, or the linear code of painted scenes."""
    if (folder / VAE).is_file():
        return Autoencoder.load(folder / VAE)
    return LinearCode.load(folder / CODE)


def load_decoder(folder: Path) -> SmoothDecoder | Autoencoder:
    """What makes pictures to look at: the autoencoder, or a smoother one than the linear code."""
    if (folder / VAE).is_file():
        return Autoencoder.load(folder / VAE)
    return SmoothDecoder.load(folder / DECODER)
