"""Captured q, k, v of other people become what `fidelity --captured` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rectified_spaattn.benchmarks import convert
from rectified_spaattn.benchmarks.capture import load_calls
from rectified_spaattn.benchmarks.fidelity.__main__ import main as fidelity

GRID = (5, 6, 9)
TOKENS = 270
HEADS, WIDTH = 4, 16


def qkv(tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """`[H, N, D]` of one call."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(HEADS, tokens, WIDTH, generator=generator) for name in "qkv"}


def save(path: Path, entries: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(value) for name, value in entries.items()})
    elif path.suffix == ".safetensors":
        tensors = {k: v.contiguous() for k, v in entries.items() if isinstance(v, torch.Tensor)}
        texts = {k: str(v) for k, v in entries.items() if not isinstance(v, torch.Tensor)}
        save_file(tensors, path, metadata=texts)
    else:
        torch.save(entries, path)
    return path


def run(path: Path, *more: str) -> list[Any]:
    out = path.with_name("captured.safetensors")
    convert.main([str(path), "--grid", *map(str, GRID), "--heads", "0", "--out", str(out), *more])
    return load_calls(out)


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
@pytest.mark.parametrize("layout", ["HND", "BHND", "BNHD"])
def test_files_and_layouts(tmp_path: Path, suffix: str, layout: str) -> None:
    parts = qkv()
    shaped = {
        "HND": lambda x: x,
        "BHND": lambda x: torch.stack([x, 0 * x]),
        "BNHD": lambda x: x.transpose(0, 1)[None],
    }[layout]
    names = ("query", "key", "value") if layout == "BNHD" else "qkv"
    entries: dict[str, Any] = dict(zip(names, map(shaped, parts.values()), strict=True))
    ((call, found),) = run(save(tmp_path / f"a{suffix}", entries | {"step": 2, "block": 7}))
    assert (call.step, call.layer, call.grid) == (2, 7, GRID)
    assert all(torch.equal(a, b) for a, b in zip(found, parts.values(), strict=True))


def tiled(part: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """A sequence in tiles of 4 x 4 x 4, each padded to 64, tile by tile; and their sizes."""
    cells = part.view(HEADS, *GRID, WIDTH)
    tiles, sizes = [], []
    for t in range(0, GRID[0], 4):
        for h in range(0, GRID[1], 4):
            for w in range(0, GRID[2], 4):
                tile = cells[:, t : t + 4, h : h + 4, w : w + 4].reshape(HEADS, -1, WIDTH)
                padding = torch.full((HEADS, 64 - tile.shape[1], WIDTH), float("nan"))
                tiles.append(torch.cat([tile, padding], 1))
                sizes.append(tile.shape[1])
    return torch.cat(tiles, 1), sizes


def test_padded_tiles_are_put_back_into_raster_order(tmp_path: Path) -> None:
    parts = qkv()
    entries: dict[str, Any] = {name: tiled(part)[0][None] for name, part in parts.items()}
    sizes = tiled(parts["q"])[1]
    entries |= {"vbs": torch.tensor(sizes, dtype=torch.int32), "step": 3, "block": 11, "call": 139}
    ((call, found),) = run(save(tmp_path / "call_0139.pt", entries))
    assert (call.step, call.layer) == (3, 11)
    assert all(torch.equal(a, b) for a, b in zip(found, parts.values(), strict=True))

    entries["vbs"] = torch.tensor(sizes[::-1])
    with pytest.raises(SystemExit, match="vbs are not the sizes of 4 x 4 x 4 tiles"):
        run(save(tmp_path / "other.pt", entries))


def test_heads_are_spread_and_fidelity_reads_them(tmp_path: Path) -> None:
    parts = qkv()
    path = save(tmp_path / "a.pt", {name: part.bfloat16() for name, part in parts.items()})
    ((_, (q, _, _)),) = run(path, "--heads", "2")
    assert torch.equal(q, parts["q"][[0, 2]].bfloat16())
    report = tmp_path / "fidelity.json"
    words = "--device cpu --no-synthetic --shares .5 --blocks 64x64 --only paper --rows 32 --json"
    fidelity(["--captured", str(tmp_path / "captured.safetensors"), *words.split(), str(report)])
    assert "layer 0 step 0 cond scene 0" in report.read_text()


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("name", "entries", "said"),
    [
        ("a.pt", {"q": torch.ones(2, 3, 4)}, r"q has shape \(2, 3, 4\), allowed .* 270, D"),
        ("a.pt", {**qkv(), "k": torch.ones(1, TOKENS, WIDTH)}, "allowed is one shape"),
        ("a.pt", {"q": qkv()["q"], "k": qkv()["k"]}, "no tensor v or value"),
        ("a.pt", {"q": [1, 2]}, "no tensor q or query"),
        ("a.pt", {**qkv(), "v": qkv()["v"] / 0}, "not finite"),
        ("a.pt", {**qkv(), "q": torch.ones(1).expand(1 << 15, 1 << 8, 1 << 8)}, "2,147,483,648"),
        ("a.pt", [1], "holds a list"),
        ("a.pt", {**qkv(), "x": Evil()}, "tensors alone|no file of torch.save"),
        ("a.npz", {"q": np.array([{}], dtype=object)}, "allow_pickle|no .npz"),
        ("a.txt", {}, "allowed are .safetensors, .pt, .pth, .npz"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, entries: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said):
        run(save(tmp_path / name, entries))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_broken_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(SystemExit, match=r"cannot be loaded|is no"):
        run(path)
    with pytest.raises(SystemExit, match=r"No such file|cannot be loaded|is no"):
        run(tmp_path / f"missing{suffix}")
