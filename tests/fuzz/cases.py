"""Random attention calls: one `Case` is one call of one tile, and one line of text."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from rectified_spaattn.kernels.devices import (
    Tile,
    has_descriptors,
    has_gluon,
    tile_candidates,
)
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout

BLOCKS = ((64, 64), (128, 64), (128, 128))
MODES = (("none", 1), ("paper", 1), *(("precise", groups) for groups in (1, 2, 4, 8)))
STORAGES = ("contiguous", "tokens first", "slice", "stride 2", "fused", "one head")
VALUES = ("smooth", "normal", "peaked", "channel", "token", "repeated", "tiny", "offset")
EDGE_SIZES = (1, 2, 63, 64, 65, 127, 128, 129)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One attention call. The fields up to `storage` decide what is compiled.

    Attributes:
        dtype, head_dim: of q, k and v.
        q_block, kv_block, rectification, tail_keys: as in `SparseConfig`.
        tile: numbers and switches of the kernels' `Tile`, in its order, joined by commas.
        storage: how q, k and v lie in memory, see `stored`.
        grid: of the video, T, H, W joined by x.
        before, after: context tokens.
        batch, heads: of the call; chunk: heads at a time.
        values: what they hold, see `drawn`.
        sparsity, top_p, order, neighbours, min_blocks: as in `SparseConfig`.
        seed: of the numbers.
    """

    dtype: str
    head_dim: int
    q_block: int
    kv_block: int
    rectification: str
    tail_keys: int
    tile: str
    storage: str
    grid: str
    before: int
    after: int
    batch: int
    heads: int
    chunk: int
    values: str
    sparsity: float
    top_p: float
    order: str
    neighbours: bool
    min_blocks: int
    seed: int

    def text(self) -> str:
        """One line, for `parse`."""
        words = {name: str(value).replace(" ", "_") for name, value in asdict(self).items()}
        return " ".join(f"{name}={value}" for name, value in words.items())

    @staticmethod
    def parse(text: str) -> Case:
        """The case whose `text` this is.

        Raises:
            ValueError: a field is missing, unknown or cannot be read.
        """
        words = dict(word.split("=", 1) for word in text.split())
        kinds = {each.name: each.type for each in fields(Case)}
        if set(words) != set(kinds):
            raise ValueError(f"a case has the fields {', '.join(kinds)}")
        read = {"int": int, "float": float, "bool": "True".__eq__}
        values = {
            name: read.get(str(kind), lambda word: word.replace("_", " "))(words[name])
            for name, kind in kinds.items()
        }
        return Case(**values)

    @property
    def kernel_tile(self) -> Tile:
        """The tile to launch."""
        kinds = {name: type(value) for name, value in Tile(64, 4, 1)._asdict().items()}
        words = self.tile.split(",")
        pairs = zip(kinds.items(), words, strict=True)
        return Tile(**{name: kind(int(word)) for (name, kind), word in pairs})

    @property
    def mode(self) -> str:
        """For the table: "precise 4, int8, fp16 sums"."""
        tile = self.kernel_tile
        words = [self.rectification, *([str(self.tail_keys)] if self._is_precise else [])]
        extras = [" ".join(words)]
        extras += ["int8"] * tile.int8 + ["fp16 sums"] * tile.half_sums
        return ", ".join(extras)

    @property
    def _is_precise(self) -> bool:
        return self.rectification == "precise"

    @property
    def layout(self) -> TokenLayout:
        frames, height, width = map(int, self.grid.split("x"))
        video = frames * height * width
        return TokenLayout((frames, height, width), self.before + video + self.after, self.before)

    @property
    def config(self) -> SparseConfig:
        return SparseConfig(
            sparsity=self.sparsity,
            q_block=self.q_block,
            kv_block=self.kv_block,
            top_p=self.top_p,
            rectification=self.rectification,
            order=self.order,
            neighbours=self.neighbours,
            min_blocks=self.min_blocks,
            precision="int8" if self.kernel_tile.int8 else "16-bit",
            tail_keys=self.tail_keys,
        )

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v `[B, H, N, D]`; the same numbers on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        q, k, v = drawn(self, generator)
        dtype = DTYPES[self.dtype]
        return stored(q.to(device, dtype), k.to(device, dtype), v.to(device, dtype), self.storage)


def drawn(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Values of q, k and v, fp32 `[B, H, N, D]`, of the kind that the case names."""
    layout = case.layout
    shape = (case.batch, case.heads, layout.length, case.head_dim)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    q, k, v = normal(*shape), normal(*shape), normal(*shape)
    # Along the sequence, so that means of blocks say something.
    places = torch.arange(layout.length, dtype=torch.float32)[:, None]
    wave = torch.cos(places * 0.05 * normal(case.batch, case.heads, 1, case.head_dim))
    if case.values != "normal":
        q, k, v = 0.7 * q + wave, 0.7 * k + wave, v + 0.5 * wave
    if case.values == "peaked":
        q, k = 3.0 * q, 3.0 * k
    elif case.values == "channel":
        k[..., 1] *= 30.0
        v[..., 2] *= 100.0
    elif case.values == "token":
        row = int(torch.randint(layout.length, (1,), generator=generator))
        k[..., row, :] *= 10.0
        v[..., row, :] *= 30.0
    elif case.values == "repeated":  # whole runs of equal tokens: exact ties
        run = torch.arange(layout.length) // 48 * 48
        q, k, v = q[..., run, :], k[..., run, :], v[..., run, :]
    elif case.values == "tiny":
        q, k, v = 1e-3 * q, 1e-3 * k, 1e-3 * v
    elif case.values == "offset":
        k, v = k + 5.0 * normal(case.batch, case.heads, 1, case.head_dim), v + 5.0
    return q, k, v


def stored(q: Tensor, k: Tensor, v: Tensor, storage: str) -> tuple[Tensor, Tensor, Tensor]:
    """The same values with other strides; what lies between them is NaN."""
    if storage == "fused":  # one [B, N, 3, H, D] projection
        q, k, v = torch.stack([x.transpose(1, 2) for x in (q, k, v)], 2).contiguous().unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if storage == "one head":  # of keys and values for all of them: a stride of 0
        return q, k[:, :1].expand_as(k), v[:, :1].expand_as(v)
    return _stored(q, storage), _stored(k, storage), _stored(v, storage)


def _stored(x: Tensor, storage: str) -> Tensor:
    batch, heads, length, dim = x.shape
    if storage == "tokens first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if storage == "slice":
        wide = x.new_full((batch, heads + 2, length + 3, dim + 8), math.nan)
        wide[:, 1:-1, 2:-1, :dim] = x
        return wide[:, 1:-1, 2:-1, :dim]
    if storage == "stride 2":
        wide = x.new_full((batch, heads, length, 2 * dim), math.nan)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x.contiguous()


def draw_cases(
    number: int, per_variant: int, seed: int, device: torch.device
) -> Iterator[list[Case]]:
    """`number` cases, in lists of `per_variant` that share their compiled kernels."""
    draw = random.Random(seed)
    while number > 0:
        variant = draw_variant(draw, device)
        yield [draw_case(draw, variant, device) for _ in range(min(per_variant, number))]
        number -= per_variant


def draw_variant(draw: random.Random, device: torch.device) -> dict[str, object]:
    """What decides the compiled kernels: types, blocks, mode, tile, and strides, whose alignment is
    compiled in."""
    # bf16 is silently wrong in Triton's interpreter.
    names = list(DTYPES) if device.type == "cuda" else ["float32", "float16"]
    dtype = draw.choice(names)
    head_dim = draw.choice((64, 128, 64, 128, 96, 40, 16))
    q_block, kv_block = draw.choice(BLOCKS)
    rectification, tail_keys = draw.choice(MODES)
    tile = draw.choice(tiles(device, DTYPES[dtype], head_dim, q_block, kv_block))
    return {
        "dtype": dtype,
        "head_dim": head_dim,
        "q_block": q_block,
        "kv_block": kv_block,
        "rectification": rectification,
        "tail_keys": tail_keys,
        "tile": ",".join(str(int(value)) for value in tile),
        "storage": draw.choice(STORAGES),
    }


def tiles(
    device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, kv_block: int
) -> list[Tile]:
    """Tiles that this device can run, those of graphics cards among them."""
    import triton

    if device.type == "cuda":
        shared = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
        padded = triton.next_power_of_2(head_dim)
        own, card = (
            tile_candidates(
                capability, shared["max_shared_mem"], dtype, padded, q_block, kv_block,
                has_descriptors(), has_gluon(), int8=True,
            )
            for capability in (torch.cuda.get_device_capability(device), (8, 9))
        )  # fmt: skip
        return list(dict.fromkeys(own + card))
    plain = [Tile(size, 4, 1) for size in (32, 64, 128) if size <= kv_block]
    half = [tile._replace(half_sums=True, num_stages=2) for tile in plain[1:]]
    chosen = plain + (half if dtype.itemsize == 2 else [])
    return chosen + [tile._replace(int8=True) for tile in chosen]


def draw_case(draw: random.Random, variant: dict[str, object], device: torch.device) -> Case:
    """One case of a variant. On a CPU, where the interpreter is slow, of a few hundred tokens."""
    is_gpu = device.type == "cuda"
    most = 1536 if is_gpu else 200
    heads = draw.choice((1, 1, 2, 3) if is_gpu else (1, 1, 1, 2))
    return Case(
        **variant,
        grid="x".join(map(str, draw_grid(draw, most))),
        before=draw.choice((0, 0, 1, 23, 64, 130) if is_gpu else (0, 0, 0, 1, 23, 64)),
        after=draw.choice((0, 0, 1, 37, 77, 128) if is_gpu else (0, 0, 0, 1, 37, 65)),
        batch=draw.choice((1, 1, 1, 2) if is_gpu else (1, 1, 1, 1, 1, 2)),
        heads=heads,
        chunk=draw.choice((1, heads, 2 * heads)),
        values=draw.choice(VALUES),
        sparsity=draw.choice((0.0, 0.3, 0.5, 0.6, 0.75, 0.75, 0.9, 0.98)),
        top_p=draw.choice((0.0, 0.0, 0.0, 0.3, 0.7, 0.95, 1.0)),
        order=draw.choice(("gilbert", "tile", "raster")),
        neighbours=draw.random() < 0.3,
        min_blocks=draw.choice((1, 1, 1, 2, 5)),
        seed=draw.randrange(2**31),
    )  # type: ignore[arg-type]


def draw_grid(draw: random.Random, most: int) -> tuple[int, int, int]:
    """T, H, W of at most `most` tokens: odd sizes, whole blocks, and one more or less."""
    if draw.random() < 0.2:
        size = draw.choice([each for each in EDGE_SIZES if each <= most])
        return draw.choice([(1, 1, size), (1, size, 1), (size, 1, 1)])
    while True:
        frames, height = draw.randint(1, 9), draw.randint(1, 20)
        width = draw.randint(1, 24)
        if most // 8 <= frames * height * width <= most:
            return frames, height, width
