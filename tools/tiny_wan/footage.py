"""Real footage: shots in one small file, and training clips cut from them.

`tools/fetch_footage.py` writes the file from videos that packages ship. Shots are coded like JPEG
with a third axis: a cosine transform of 8 frames of 8 x 8 pixels, colours at half the resolution,
rounded coefficients, LZMA. It takes torch alone to read, at a tenth of JPEG's size where the camera
stands still.
"""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SIDE = 8
COLOURS = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
"""From RGB to brightness and two colour differences, as in JPEG."""

STEP = 14.0
"""Rounding step of the lowest frequency, in levels of 0 to 255 times `SIDE ** 1.5`'s norm."""

SLOPE = 0.3
"""How much the step grows with every frequency up, as a part of `STEP`."""

AT_ONCE = 64
"""Frames that are decoded together, a multiple of `SIDE`; it bounds memory."""

ZOOM = 1.25
"""Clips show a part of the picture that is up to this much smaller than the largest one."""


@dataclass(frozen=True, eq=False)
class Shot:
    """An uncut piece of a video.

    Attributes:
        scene: number of what it shows.
        frames: `[F, 3, H, W]` uint8 RGB.
    """

    scene: int
    frames: Tensor


@dataclass(frozen=True, eq=False)
class Footage:
    """Shots of several scenes, from which clips are cut.

    Attributes:
        names: of the scenes; a scene's place is its number, the "prompt" of the model.
        shots: at least one of every scene, all on one device.
    """

    names: tuple[str, ...]
    shots: tuple[Shot, ...]

    def __post_init__(self) -> None:
        found = {shot.scene for shot in self.shots}
        if found != set(range(len(self.names))):
            raise ValueError(f"shots show scenes {sorted(found)}, names are {self.names}")

    def save(self, path: str | Path) -> None:
        """Write the file; pictures lose what nobody sees."""
        sizes = [[shot.scene, *shot.frames.shape] for shot in self.shots]
        parts = {f"shot.{i}": compress(shot.frames) for i, shot in enumerate(self.shots)}
        metadata = {"names": json.dumps(self.names), "shots": json.dumps(sizes)}
        save_file(parts, str(path), metadata)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Footage:
        """Read a file that `save` wrote; pictures end up on `device`."""
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            sizes = json.loads(metadata["shots"])
            packed = [file.get_tensor(f"shot.{i}") for i in range(len(sizes))]
        # LZMA takes one core for each shot, at some 100 MB of coefficients a second.
        with ThreadPoolExecutor() as threads:
            shapes = [size[1:] for size in sizes]
            videos = threads.map(decompress, packed, shapes, [device] * len(packed))
            shots = tuple(Shot(size[0], video) for size, video in zip(sizes, videos, strict=True))
        return cls(tuple(json.loads(metadata["names"])), shots)

    def draw(
        self, scene: int, count: int, size: tuple[int, int, int], generator: torch.Generator
    ) -> Tensor:
        """Clips of a scene, each of another moment and part of the picture.

        A shot that is too short plays on backwards.

        Args:
            scene: number of the scene.
            count: clips, 1 or more.
            size: frames, height and width.
            generator: source of all randomness, on the CPU.

        Returns:
            `[count, 3, frames, height, width]` float32 RGB in [-1, 1] on the footage's device.

        Raises:
            ValueError: a scene that does not exist.
        """
        shots = [shot.frames for shot in self.shots if shot.scene == scene]
        if not shots:
            raise ValueError(f"scene is {scene}, allowed are 0 to {len(self.names) - 1}")
        lengths = torch.tensor([len(frames) for frames in shots], dtype=torch.float32)
        picks = torch.multinomial(lengths, count, replacement=True, generator=generator).tolist()
        chances = torch.rand((count, 4), generator=generator).tolist()
        return torch.stack(
            [cut(shots[pick], size, *each) for pick, each in zip(picks, chances, strict=True)]
        )


def cut(
    frames: Tensor,
    size: tuple[int, int, int],
    start: float,
    zoom: float,
    top: float,
    left: float,
) -> Tensor:
    """A clip `[3, *size]` in [-1, 1] of `frames [F, 3, H, W]`; the numbers, 0 to 1, choose it."""
    length, height, width = size
    have, rows, columns = len(frames), *frames.shape[2:]
    first = int(start * max(1, have - length + 1))
    steps = torch.arange(first, first + length, device=frames.device)
    if have > 1:
        steps = steps % (2 * have - 2)
        steps = torch.minimum(steps, 2 * have - 2 - steps)
    else:
        steps = steps * 0
    scale = min(rows / height, columns / width) / ZOOM**zoom
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    y, x = round(top * (rows - high)), round(left * (columns - wide))
    part = frames[steps, :, y : y + high, x : x + wide].float()
    part = F.interpolate(part, (height, width), mode="bicubic", antialias=True)
    return (part.clamp(0, 255) / 127.5 - 1).transpose(0, 1)


def compress(frames: Tensor) -> Tensor:
    """The bytes, `[n]` uint8, of `frames [F, 3, H, W]` uint8."""
    planes = torch.einsum("dc,fchw->dfhw", COLOURS, frames.float() - 128)
    chroma = F.avg_pool2d(F.pad(planes[1:], _to_multiple(planes.shape[2:], 2), "replicate"), 2)
    packed = b"".join(_coefficients(plane) for plane in (planes[0], *chroma))
    return torch.frombuffer(bytearray(lzma.compress(packed, preset=2)), dtype=torch.uint8)


def decompress(packed: Tensor, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """`[F, 3, H, W]` uint8 of that shape from what `compress` made, on `device`."""
    data = torch.frombuffer(bytearray(lzma.decompress(packed.numpy().tobytes())), dtype=torch.int8)
    frames, _, height, width = shape
    planes = []
    for size in [(frames, height, width)] + 2 * [(frames, -(-height // 2), -(-width // 2))]:
        blocks = [-(-axis // SIDE) for axis in size]
        count = 2 * SIDE**3 * math.prod(blocks)
        planes.append(_plane(data[:count], blocks, device)[: size[0], : size[1], : size[2]])
        data = data[count:]
    out = torch.empty(tuple(shape), dtype=torch.uint8, device=device)
    inverse = torch.linalg.inv(COLOURS).to(device)
    for first in range(0, frames, AT_ONCE):
        luma, *chroma = (plane[None, first : first + AT_ONCE].float() - 128 for plane in planes)
        wide = F.interpolate(torch.cat(chroma), scale_factor=2.0, mode="bilinear")
        full = torch.cat([luma, wide[..., :height, :width]])
        rgb = torch.einsum("dc,cfhw->fdhw", inverse, full) + 128
        out[first : first + AT_ONCE] = _to_bytes(rgb)
    return out


def _to_bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _to_multiple(size: Sequence[int], side: int) -> tuple[int, ...]:
    """Padding at the end of axes of `size` to multiples of `side`, in the order of `F.pad`."""
    return tuple(each for axis in reversed(size) for each in (0, -axis % side))


def _cosines(device: torch.device) -> tuple[Tensor, Tensor]:
    """The orthonormal transform `[512, 512]` of a block of 8 x 8 x 8 and its steps `[512]`."""
    k = torch.arange(SIDE, dtype=torch.float32, device=device)
    matrix = torch.cos(math.pi / SIDE * torch.outer(k, k + 0.5)) * math.sqrt(2 / SIDE)
    matrix[0] = math.sqrt(1 / SIDE)
    total = (k.view(-1, 1, 1) + k.view(1, -1, 1) + k).flatten()
    return torch.kron(torch.kron(matrix, matrix), matrix), STEP * (1 + SLOPE * total)


def _coefficients(plane: Tensor) -> bytes:
    """Rounded coefficients of `plane [F, H, W]`: all of one frequency together, low bytes first."""
    padded = F.pad(plane[None, None], _to_multiple(plane.shape, SIDE), "replicate")[0, 0]
    f, h, w = (axis // SIDE for axis in padded.shape)
    cells = padded.view(f, SIDE, h, SIDE, w, SIDE).permute(1, 3, 5, 0, 2, 4).reshape(SIDE**3, -1)
    matrix, steps = _cosines(plane.device)
    rounded = (matrix @ cells / steps[:, None]).round().to(torch.int16)
    halves = rounded.view(-1, 1).view(torch.int8)  # little-endian
    return halves.T.contiguous().numpy().tobytes()


def _plane(halves: Tensor, blocks: Sequence[int], device: torch.device | str) -> Tensor:
    """The plane, uint8 on `device`, of as many blocks whose coefficients `_coefficients` packed."""
    f, h, w = blocks
    coefficients = halves.view(2, SIDE**3, f, h * w)
    matrix, steps = _cosines(torch.device(device))
    parts = []
    for low, high in coefficients.split(AT_ONCE // SIDE, dim=2):
        levels = low.to(device).float() % 256 + 256 * high.to(device).float()
        waves = levels.flatten(1) * steps[:, None]
        cells = (matrix.T @ waves).view(SIDE, SIDE, SIDE, -1, h, w).permute(3, 0, 4, 1, 5, 2)
        parts.append(_to_bytes(cells.reshape(-1, h * SIDE, w * SIDE) + 128))
    return torch.cat(parts)
