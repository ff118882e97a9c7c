"""Contact sheets: what clips look like, and what the linear code leaves of them.

    PYTHONPATH=tools python -m tiny_wan.clips_sheet FOLDER

fits the code to generated clips, lists its fidelity for each scene, and draws a PNG per scene with
rows of frames: a clip, the same clip after encoding and decoding, and what the smoother decoder
makes of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .clips import SCENES, clips_of_every_scene, generate_clips
from .clips_smooth import SmoothDecoder
from .latents import LinearCode, psnr
from .pictures import contact_sheet


def main() -> None:
    """Command line: write the sheets and list the fidelity."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the pictures")
    parser.add_argument("--frames", type=int, default=33, help="default: %(default)s")
    parser.add_argument("--height", type=int, default=192, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=320, help="default: %(default)s")
    parser.add_argument("--clips", type=int, default=4, help="clips to fit per scene")
    parser.add_argument("--show", type=int, default=2, help="clips to show per scene")
    parser.add_argument("--columns", type=int, default=6, help="frames to show per clip")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    size = options.frames, options.height, options.width
    generator = torch.Generator().manual_seed(0)
    fitted = list(clips_of_every_scene(options.clips, size, generator, options.device))
    code = LinearCode.fit(fitted)
    smooth = SmoothDecoder.fit(code, fitted)
    for number, scene in enumerate(SCENES):
        clips = generate_clips(number, options.show, *size, generator, options.device)
        latents = code.encode(clips)
        decoded, smoothed = code.decode(latents), smooth.decode(latents)
        first = psnr(clips[:, :, :1], decoded[:, :, :1]).mean()
        sys.stdout.write(
            f"{number} {scene.name:16} {psnr(clips, decoded).mean():5.1f} dB, "
            f"first frame {first:5.1f} dB, smoothed {psnr(clips, smoothed).mean():5.1f} dB\n"
        )
        rows = [each for row in zip(clips, decoded, smoothed, strict=True) for each in row]
        sheet = contact_sheet(rows, options.columns)
        sheet.save(options.folder / f"{number}_{scene.name.replace(' ', '_')}.png")


if __name__ == "__main__":
    main()
