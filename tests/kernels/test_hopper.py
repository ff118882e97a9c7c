"""The kernel for Hopper: where it is used, and rows with and without a moving maximum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from rectified_spaattn.rspa_core import SparseConfig, TokenLayout, rectified_attention, relative_l2

GRID = (4, 8, 24)
HEAD_DIM = 128
# What kernels/attend_hopper.py calls RANGE, in bf16 and in fp16.
RANGE = {torch.bfloat16: 90.0, torch.float16: 15.0}


def opposed_inputs(
    bits: float, dtype: torch.dtype, device: torch.device, heads: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v whose scores are about `bits` (in log2), in the first 64 keys about -`bits`."""
    generator = torch.Generator().manual_seed(int(bits))
    shape = (1, heads, math.prod(GRID), HEAD_DIM)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    direction = torch.nn.functional.normalize(torch.ones(HEAD_DIM), dim=0)
    length = math.sqrt(bits * math.log(2) * math.sqrt(HEAD_DIM))
    # fp16 bounds short queries only.
    q = (0.25 if bits < 4 else 1.0) * q + length * direction
    k += length * direction
    k[:, :, :64] -= 2 * length * direction
    return tuple(x.to(device, dtype) for x in (q, k, v))


def require_hopper(device: torch.device) -> None:
    from rectified_spaattn.kernels.devices import has_gluon

    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        pytest.skip("needs a Hopper GPU (H100, H200)")
    if not has_gluon():
        pytest.skip("the kernel for Hopper has not been run with this Triton")


@pytest.mark.parametrize("blocks", [(128, 128), (128, 64), (64, 64)], ids=str)
@pytest.mark.parametrize("precision", ["16-bit", "int8"])
def test_hopper_uses_its_own_kernel(
    precision: str, blocks: tuple[int, int], device: torch.device
) -> None:
    from rectified_spaattn.kernels.selfcheck import trusted_tile

    require_hopper(device)
    for rectification, tail_keys in (("paper", 1), ("precise", 1), ("precise", 4), ("none", 1)):
        config = SparseConfig(
            0.6, *blocks, rectification=rectification, precision=precision, tail_keys=tail_keys
        )
        tile = trusted_tile(torch.device("cuda", 0), torch.bfloat16, 128, config)
        assert tile.specialised
        assert tile.int8 == (precision == "int8")


@pytest.mark.parametrize("rectification", ["paper", "precise", "none"])
@pytest.mark.parametrize("precision", ["16-bit", "int8"])
@pytest.mark.parametrize("bits", [2, 12, 40, 100])
def test_rows_inside_and_outside_the_bound(
    bits: float, precision: str, rectification: str, device: torch.device
) -> None:
    """Weights far above those of the first tile, and rows that need a moving maximum."""
    require_hopper(device)
    layout = TokenLayout(GRID, math.prod(GRID))
    for dtype in (torch.bfloat16, torch.float16):
        q, k, v = opposed_inputs(bits, dtype, device)
        for blocks in ((128, 128), (128, 64), (64, 64)):
            config = SparseConfig(
                0.4, *blocks, order="raster", rectification=rectification, precision=precision
            )
            expected = rectified_attention(q, k, v, layout, config, backend="reference")
            out = rectified_attention(q, k, v, layout, config, backend="triton")
            assert relative_l2(out, expected) < 1.5e-2


def test_cases_lie_on_both_sides_of_the_bound() -> None:
    """The cases above take both loops of the kernel, in each dtype."""
    sides = {dtype: set() for dtype in RANGE}
    for bits in (2, 12, 40, 100):
        q, k, _ = opposed_inputs(bits, torch.float32, torch.device("cpu"))
        unit = math.log2(math.e) / math.sqrt(HEAD_DIM)
        centre = k.mean(-2, keepdim=True)
        radius = (k - centre).norm(dim=-1).amax(-1)[..., None]
        bound = unit * ((q * centre).sum(-1) + q.norm(dim=-1) * radius)
        first = unit * (q @ k[:, :, :64].mT).amax(-1)
        for dtype, limit in RANGE.items():
            sides[dtype].add(bool((bound - first).amax() < limit))
    assert all(side == {True, False} for side in sides.values())


@pytest.mark.parametrize("int8", [False, True])
def test_radius_of_the_keys(int8: bool, device: torch.device) -> None:
    """The pool kernel finds the key that lies farthest from the given vector."""
    from rectified_spaattn.kernels.devices import Tile
    from rectified_spaattn.kernels.plan import Plan
    from rectified_spaattn.kernels.pool import pool_keys
    from rectified_spaattn.rspa_core.quantisation import rotated

    layout = TokenLayout((3, 7, 9), 3 * 7 * 9 + 5, 5)
    config = SparseConfig(0.5, 64, 64)
    k = torch.randn(2, 3, layout.length, 40, device=device)
    whole = Plan.of(k, k, layout, config, Tile(64, 4, 1, int8=int8, specialised=True))
    plan = replace(whole, first_head=1, chunk_heads=4)
    assert plan.shift is not None
    # Without the shift; rotated or not, distances are the same.
    keys = rotated(torch.nn.functional.pad(k, (0, 24))) if int8 else k
    expected = (keys - plan.shift[:, :, None]).norm(dim=-1).amax(-1).flatten()[1:5]
    torch.testing.assert_close(pool_keys(k, plan).radius, expected)


@pytest.mark.parametrize("tail_keys", [1, 4, 8])
@pytest.mark.parametrize("block", [64, 128])
def test_many_programs_at_once(block: int, tail_keys: int, device: torch.device) -> None:
    """What a race gets wrong shows where every multiprocessor is full, and differs between runs."""
    require_hopper(device)
    layout = TokenLayout((9, 24, 24), 9 * 24 * 24)
    generator = torch.Generator(device).manual_seed(tail_keys)
    q, k, v = (
        1.5 * torch.randn(1, 64, layout.length, HEAD_DIM, generator=generator, device=device)
        for _ in range(3)
    )
    q, k, v = (x.bfloat16() for x in (q, k, v))
    config = SparseConfig(
        0.7, block, block, rectification="precise", tail_keys=tail_keys, precision="16-bit"
    )
    _, expected = rectified_attention(
        q, k, v, layout, config, backend="reference", return_stats=True
    )
    for _ in range(4):
        _, stats = rectified_attention(q, k, v, layout, config, backend="triton", return_stats=True)
        wrong = (stats.block_mask() != expected.block_mask()).float().mean()
        assert wrong < 1e-4, "more than the order of near ties"
