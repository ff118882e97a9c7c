"""The tile table: what it offers fits the chip it is for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

SHARED_MEMORY = {
    (8, 0): 163 * 1024,
    (8, 6): 101_376,
    (8, 9): 101_376,
    (9, 0): 232_448,
    (10, 0): 232_448,
    (12, 0): 101_376,
    (12, 1): 101_376,
}


@pytest.mark.parametrize("has_descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("blocks", [(128, 128), (128, 64), (64, 64)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", SHARED_MEMORY, ids=str)
def test_every_chip_has_a_tile_that_fits(
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_dim: int,
    blocks: tuple[int, int],
    has_descriptors: bool,
) -> None:
    from rectified_spaattn.kernels.devices import tile_bytes, tile_candidates

    limit = SHARED_MEMORY[capability]
    q_block, kv_block = blocks
    tiles = tile_candidates(
        capability, limit, dtype, head_dim, q_block, kv_block,
        has_descriptors, has_descriptors, int8=True,
    )  # fmt: skip
    assert tiles[0].int8
    assert not tiles[-1].int8  # the way out
    for tile in tiles:
        assert tile_bytes(tile, dtype, head_dim, q_block) <= limit
        assert kv_block % tile.tile_n == 0
        assert has_descriptors or not tile.tma
        # Only the bulk copy engine of Hopper is worth the descriptors.
        assert capability[0] == 9 or not (tile.tma or tile.specialised)
        # More registers than the multiprocessor has left would be waited for without end.
        assert not tile.specialised or (tile.max_registers == 128) == (q_block == 64)


def test_nothing_is_offered_that_does_not_fit() -> None:
    from rectified_spaattn.kernels.devices import tile_candidates

    assert tile_candidates((9, 0), 1024, torch.bfloat16, 128, 128, 128, True) == []


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        ((8, 0), "16-bit"),
        ((8, 6), "int8"),
        ((8, 9), "int8"),
        ((9, 0), "int8"),
        ((10, 0), "16-bit"),
        ((12, 0), "int8"),
        ((12, 1), "int8"),
    ],
    ids=str,
)
def test_auto_is_int8_where_that_is_faster(capability: tuple[int, int], precision: str) -> None:
    from rectified_spaattn.kernels.devices import resolved_precision

    assert resolved_precision("auto", capability) == precision
    assert resolved_precision("int8", capability) == "int8"
    assert resolved_precision("16-bit", capability) == "16-bit"


def test_specialised_warps_are_offered_where_they_can_run() -> None:
    """Hopper, 16-bit inputs, wide heads, and a Triton with which they have been run."""
    from rectified_spaattn.kernels.devices import tile_candidates

    def first(capability: tuple[int, int], dtype: torch.dtype, head_dim: int, gluon: bool) -> bool:
        limit = SHARED_MEMORY[capability]
        return tile_candidates(
            capability, limit, dtype, head_dim, 128, 128, True, gluon
        )[0].specialised  # fmt: skip

    assert first((9, 0), torch.bfloat16, 128, True)
    assert not first((9, 0), torch.bfloat16, 128, False)
    assert not first((9, 0), torch.float32, 128, True)
    assert not first((9, 0), torch.float16, 32, True)
    assert not first((8, 9), torch.float16, 128, True)
    assert not first((12, 0), torch.float16, 128, True)


def test_what_a_release_does_not_compile_is_not_offered() -> None:
    from rectified_spaattn.kernels.devices import tile_candidates

    def first(capability: tuple[int, int], kv_block: int, version: str, int8: bool = True) -> int:
        return tile_candidates(
            capability, SHARED_MEMORY[capability], torch.bfloat16, 128, 128, kv_block,
            has_descriptors=True, int8=int8, version=version,
        )[0].tile_n  # fmt: skip

    assert first((10, 0), 64, "3.9.0") == 32
    assert first((10, 0), 64, "3.8.0") == 64
    assert first((10, 0), 128, "3.9.0") == 64
    assert first((10, 0), 64, "3.9.0", int8=False) == 64
    assert first((8, 0), 64, "3.9.0") == 64
