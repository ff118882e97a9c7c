"""Train the autoencoder of `tools/tiny_wan` on footage.

    python tools/train_autoencoder.py OUT footage.safetensors --minutes 3 --compile

The footage is what `tools/fetch_footage.py` wrote. OUT gets `tiny_wan_vae.safetensors`,
`autoencoder_log.jsonl`, `autoencoder.png` (for each scene a frame, and what is left of it) and the
state that `--resume` continues from.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny_wan.autoencoder import Autoencoder
from tiny_wan.footage import Footage
from tiny_wan.model_files import VAE
from tiny_wan.pictures import contact_sheet
from tiny_wan.train_autoencoder import SMALL_TRAINING, AutoencoderTrainer, AutoencoderTraining

# Options that set an entry of the same name in AutoencoderTraining: type, and help.
SETTINGS = {
    "minutes": (float, "length of the run, over all resumptions"),
    "steps": (int, "length of the run in steps instead of minutes"),
    "batch": (int, "clips of a step"),
    "learning_rate": (float, "peak learning rate"),
    "edges": (float, "weight of the loss of differences between neighbours"),
    "perturbation": (float, "noise on latents, whose deviation is one"),
    "seed": (int, "of weights, clips and noise"),
}
SHOWN = (5, 384, 640)
"""Frames, height and width of the clips that are shown."""


@torch.no_grad()
def show(out: Path, footage: Footage, device: str, size: tuple[int, int, int]) -> None:
    """Write `autoencoder.png`: the last frame of a clip of each scene, before and after."""
    network = Autoencoder.load(out / VAE).to(device)
    generator = torch.Generator().manual_seed(7)
    pairs = []
    for scene in range(len(footage.names)):
        clip = footage.draw(scene, 1, size, generator)
        again = network.decode(network.encode(clip))
        pairs.append(torch.stack([clip[0, :, -1], again[0, :, -1]], dim=1))
    contact_sheet(pairs, columns=2).save(out / "autoencoder.png")


def main() -> None:
    """Command line: train, save and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("footage", type=Path, help="what tools/fetch_footage.py wrote")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--piece", type=float, help="stop after so many minutes, to be resumed")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUT")
    parser.add_argument("--small", action="store_true", help="a small network on small clips")
    for name, (kind, text) in SETTINGS.items():
        text = f"{text} (default: {getattr(AutoencoderTraining(), name)})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    config = SMALL_TRAINING if options.small else AutoencoderTraining()
    given = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    config = replace(config, compile=options.compile, **given)
    footage = Footage.load(options.footage, options.device)
    trainer = AutoencoderTrainer(config, footage, options.out, options.device, options.resume)
    trainer.run(piece=options.piece)
    sys.stdout.write(f"{trainer.step} steps in {trainer.seconds:.0f} s: {trainer.validate()}\n")
    show(options.out, footage, options.device, config.size if options.small else SHOWN)


if __name__ == "__main__":
    main()
