"""Train the small video model of `tools/tiny_wan` on footage.

    python tools/fetch_footage.py footage.safetensors
    python tools/train_autoencoder.py OUT footage.safetensors --compile
    python tools/train_tiny_wan.py OUT footage.safetensors --compile --piece 4
    python tools/train_tiny_wan.py OUT footage.safetensors --compile --resume --samples

OUT, where `tiny_wan_vae.safetensors` is already, gets `tiny_wan.safetensors` (Wan's native names),
`tiny_wan_prompts.safetensors`, `train_log.jsonl` and the state that `--resume` continues from.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
from tiny_wan.footage import Footage
from tiny_wan.model import WanConfig
from tiny_wan.sample import write_samples
from tiny_wan.train import SMALL_TRAINING, Grid, TrainConfig, Trainer, token_count

# Options that set an entry of the same name in TrainConfig: type, and help.
SETTINGS = {
    "minutes": (float, "length of the run, over all resumptions"),
    "steps": (int, "length of the run in steps instead of minutes"),
    "tokens": (int, "tokens of a step"),
    "learning_rate": (float, "peak learning rate"),
    "warmup": (int, "steps of rising learning rate"),
    "weight_decay": (float, "of AdamW"),
    "clip": (float, "largest norm of the gradient"),
    "dropout": (float, "probability of the empty prompt"),
    "ema": (float, "decay of the averaged weights"),
    "shift": (float, "of the noise levels"),
    "revisit": (float, "probability of a step on an earlier grid"),
    "reuse": (int, "steps that a clip is part of, on average"),
    "checkpoint_minutes": (float, "time between checkpoints"),
    "log_steps": (int, "steps between lines of the log"),
    "seed": (int, "of weights, clips and noise"),
}
WIDTHS = [field.name for field in fields(WanConfig)]


def grids_and_shares(text: str) -> tuple[tuple[Grid, ...], tuple[float, ...]]:
    """Grids of "17x96x160:0.3,33x192x320:0.7": frames x height x width and share of the run."""
    grids, shares = [], []
    try:
        for part in text.split(","):
            sizes, share = part.split(":")
            frames, height, width = map(int, sizes.split("x"))
            grids.append((frames, height, width))
            token_count(grids[-1])
            shares.append(float(share))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not FxHxW:SHARE,...: {error}") from error
    return tuple(grids), tuple(shares)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("footage", type=Path, help="what tools/fetch_footage.py wrote")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--piece", type=float, help="stop after so many minutes, to be resumed")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUT")
    parser.add_argument("--start", type=Path, help="weights to begin with, of the same widths")
    parser.add_argument("--small", action="store_true", help="a small model on small clips")
    for name in WIDTHS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="of the model")
    parser.add_argument("--grids", type=grids_and_shares, metavar="FxHxW:SHARE,...")
    for name, (kind, text) in SETTINGS.items():
        text = f"{text} (default: {getattr(TrainConfig(), name)})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--samples", action="store_true", help="sample every scene at the end")
    return parser.parse_args()


def configure(options: argparse.Namespace) -> TrainConfig:
    """The run that the command line asks for."""
    config = SMALL_TRAINING if options.small else TrainConfig()
    given = {name: value for name in WIDTHS if (value := getattr(options, name)) is not None}
    changes = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    if options.grids:
        changes["grids"], changes["shares"] = options.grids
    model = replace(config.model, **given)
    return replace(config, model=model, compile=options.compile, **changes)


def main() -> None:
    """Command line: train, save, and sample if asked to."""
    options = read_options()
    config = configure(options)
    torch.set_float32_matmul_precision("high")
    footage = Footage.load(options.footage, options.device)
    trainer = Trainer(config, footage, options.out, options.device, options.resume, options.start)
    sys.stdout.write(f"{config.model}, {config.model.parameters / 1e6:.2f} million weights\n")
    trainer.run(piece=options.piece)
    sys.stdout.write(f"{trainer.step} steps in {trainer.seconds:.0f} s\n")
    if options.samples:
        out = options.out / "samples"
        last = config.grids[-1]
        write_samples(options.out, out, None, options.device, size=last, shift=config.shift)


if __name__ == "__main__":
    main()
