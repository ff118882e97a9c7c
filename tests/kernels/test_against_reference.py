"""The Triton pipeline against rspa_core/reference.py, with uninitialised memory poisoned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from rectified_spaattn.rspa_core import (
    SparseConfig,
    TokenLayout,
    merge_attention,
    rectified_attention,
    relative_l2,
)
from rectified_spaattn.rspa_core.attention import dense_attention

from .cases import Case

pytest.importorskip("triton", reason="Triton is not installed")


# "auto" is what is fastest on the GPU; what int8 rounds, the cases that ask for it test.
EXACT = {"precision": "16-bit"}


def paper(*values: object, **names: object) -> SparseConfig:
    return SparseConfig(*values, rectification="paper", **EXACT | names)


def precise(*values: object, **names: object) -> SparseConfig:
    return SparseConfig(*values, rectification="precise", **EXACT | {"tail_keys": 1} | names)


def none(*values: object, **names: object) -> SparseConfig:
    return SparseConfig(*values, rectification="none", **EXACT | names)


CASES = {
    "paper": Case((3, 7, 11), paper(0.5), heads=2),
    "paper-64": Case((2, 9, 13), paper(0.6, 64, 64), context=(0, 37), head_dim=128),
    "paper-128x64": Case((3, 7, 11), paper(0.6, 128, 64), context=(130, 0)),
    "paper-top_p": Case((3, 7, 11), paper(0.9, 64, 64, top_p=0.6), context=(5, 9)),
    "precise": Case((3, 7, 11), precise(0.5)),
    "precise-64": Case((2, 9, 13), precise(0.6, 64, 64), (0, 37), head_dim=96),
    "precise-128x64": Case((3, 7, 11), precise(0.6, 128, 64), context=(64, 70)),
    "precise-top_p": Case(
        (3, 7, 11), precise(0.9, 64, 64, top_p=0.4, neighbours=False), context=(1, 0)
    ),
    "none": Case((3, 7, 11), none(0.6), context=(0, 256)),
    "none-64": Case((2, 9, 13), none(0.7, 64, 64), head_dim=96),
    "batch": Case((1, 9, 15), paper(0.5, 64, 64), (3, 0), batch=2, heads=2),
    "strided": Case((3, 5, 11), paper(0.6, 64, 64), (7, 0), 2, 2, strided=True),
    "shorter than a block": Case((1, 5, 7), paper(0.9), context=(4, 0)),
    "one token": Case((1, 1, 1), precise(0.9, 64, 64), (0, 3)),
    "whole blocks": Case((2, 8, 16), paper(0.5, 64, 64), context=(64, 0)),
    "tile order": Case((3, 7, 11), paper(0.6, 64, 64, order="tile")),
    "raster order": Case((3, 7, 11), precise(0.6, 64, 64, order="raster"), (9, 0)),
    "dense": Case((3, 7, 11), paper(0.0, 64, 64), context=(20, 0)),
    "int8": Case((3, 7, 11), paper(0.5, precision="int8"), (40, 100), heads=2, strided=True),
    "int8-precise": Case(
        (2, 9, 13), precise(0.6, 128, 64, precision="int8"), context=(0, 37), head_dim=96
    ),
    "int8-precise, 40 channels": Case(
        (2, 9, 13), precise(0.6, 64, 64, precision="int8"), context=(5, 0), head_dim=40
    ),
    "int8-64": Case((2, 9, 13), none(0.6, 64, 64, precision="int8"), batch=2),
    "sparsest": Case((4, 8, 12), paper(0.98, 64, 64, neighbours=False)),
}
GROUPED = (
    ("precise", 4), ("precise-64", 2), ("strided", 4), ("whole blocks", 8), ("one token", 8),
    ("int8-precise", 2),
)  # fmt: skip
for name, tail_keys in GROUPED:
    case = CASES[name]
    config = replace(case.config, rectification="precise", tail_keys=tail_keys)
    CASES[f"{name}, {tail_keys} keys"] = replace(case, config=config, batch=1)
# The logarithms of the sums are asked for with these, and with the others are not.
WITH_LOGARITHMS = (
    "paper", "paper-128x64", "precise-64", "precise-top_p", "none", "batch", "strided, 4 keys",
    "shorter than a block", "one token", "int8", "int8-precise, 2 keys",
    "int8-precise, 40 channels",
)  # fmt: skip
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
# A value half way between two steps of int8 may go either way.
INT8_TOLERANCE = 2e-4


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that a row that is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def dtypes(device: torch.device, name: str) -> list[torch.dtype]:
    """All on a GPU. In Triton's interpreter, where bf16 is silently wrong, fp32 and fp16 take turns
    from case to case: it is slow, and what a case is about does not depend on them.
    """
    if device.type == "cpu":
        return [(torch.float32, torch.float16)[list(CASES).index(name) % 2]]
    return [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name: str, device: torch.device) -> None:
    from rectified_spaattn.kernels.op import rectified_attention_op

    case, keep_lse = CASES[name], name in WITH_LOGARITHMS
    for seed, dtype in enumerate(dtypes(device, name)):
        q, k, v = case.inputs(dtype, device, seed)
        call = (q, k, v, case.layout, case.config)
        expected, expected_stats = rectified_attention(
            *call, backend="reference", return_stats=True, return_lse=keep_lse
        )
        # Asking the statistics for the mask would run the call again.
        out, kv_counts, mask, lse = rectified_attention_op(*call, True, keep_lse)
        assert out.dtype == dtype
        assert out.shape == q.shape
        assert torch.equal(mask.bool(), expected_stats.block_mask())
        assert torch.equal(kv_counts, expected_stats.kv_counts)
        tolerance = TOLERANCE[dtype]
        if case.config.precision == "int8":
            tolerance = max(tolerance, INT8_TOLERANCE)
        assert relative_l2(out, expected) < tolerance
        # Rows differ in size by orders of magnitude: a single wrong row must show, too.
        worst = (out.float() - expected.float()).abs().amax() / expected.float().abs().amax()
        assert worst < 10 * tolerance
        if keep_lse:
            assert_same_logarithms(lse, expected_stats.lse, q, dtype)


def assert_same_logarithms(lse: Tensor, expected: Tensor, q: Tensor, dtype: torch.dtype) -> None:
    """In nats, so that a difference is a relative one of the sums."""
    assert lse.dtype == torch.float32
    assert lse.shape == q.shape[:-1]
    assert (lse - expected).abs().max() < 10 * max(TOLERANCE[dtype], INT8_TOLERANCE)


@pytest.mark.parametrize("name", ["int8", "int8-precise, 2 keys"])
def test_logarithms_of_the_sums_know_the_mean_key(name: str, device: torch.device) -> None:
    case = CASES[name]
    asked = {"return_stats": True, "return_lse": True}
    for seed, dtype in enumerate(dtypes(device, name)):
        q, k, v = case.inputs(dtype, device, seed)
        k += 2.0  # far from zero, which int8 takes off the keys
        out, stats = rectified_attention(
            q, k, v, case.layout, case.config, backend="triton", **asked
        )
        expected_out, expected = rectified_attention(
            q, k, v, case.layout, case.config, backend="reference", **asked
        )
        tolerance = max(TOLERANCE[dtype], INT8_TOLERANCE)
        assert relative_l2(out, expected_out) < tolerance
        assert_same_logarithms(stats.lse, expected.lse, q, dtype)


@pytest.mark.parametrize("zero", ["queries", "keys"])
def test_int8_of_scale_zero(zero: str, device: torch.device) -> None:
    """All scores are the same, also of ragged blocks and of the tail: the output is the mean."""
    case = CASES["int8-precise"]
    for dtype in dtypes(device, "int8-precise"):
        q, k, v = case.inputs(dtype, device, 3)
        if zero == "queries":
            q = torch.zeros_like(q)
        else:
            k = k[:, :, :1].expand_as(k)  # whose mean int8 takes off
        out = rectified_attention(q, k, v, case.layout, case.config, backend="triton")
        mean = v.float().mean(2, keepdim=True).expand(q.shape)
        assert (out.float() - mean).abs().max() < 2e-2 * mean.abs().max()


@pytest.mark.parametrize("name", ["precise", "paper", "int8-precise"])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_two_sets_of_keys_are_merged(backend: str, name: str, device: torch.device) -> None:
    """All blocks kept: attention over each half of the keys gives that over both."""
    case = CASES[name]
    config = replace(case.config, top_p=1.0)
    asked = {"backend": backend, "return_stats": True, "return_lse": True}
    q, k, v = case.inputs(torch.float32, device, 14)
    _, more_k, more_v = case.inputs(torch.float32, device, 15)
    more_k *= 1.5
    out, stats = rectified_attention(q, k, v, case.layout, config, **asked)
    other, more = rectified_attention(q, more_k, more_v, case.layout, config, **asked)
    merged, lse = merge_attention(out, stats.lse, other, more.lse)
    keys, values = torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)
    int8 = config.precision == "int8"
    assert relative_l2(merged, dense_attention(q, keys, values)) < (2e-2 if int8 else 2e-6)
    scores = q.shape[-1] ** -0.5 * (q @ keys.mT)
    assert (lse - scores.logsumexp(-1)).abs().max() < (1e-1 if int8 else 1e-4)


@pytest.mark.parametrize("tail_keys", [1, 4])
def test_left_out_keys_may_outweigh_the_rest(tail_keys: int, device: torch.device) -> None:
    """Scores of hundreds: of a sampled query's kept keys nothing remains beside the left-out."""
    config = precise(0.85, 64, 64, neighbours=False, tail_keys=tail_keys)
    case = Case((4, 12, 12), config, head_dim=32)
    q, k, v = case.inputs(torch.float32, device, 0)
    q, k = 10 * q, 10 * k
    outs = [
        rectified_attention(q, k, v, case.layout, config, backend=backend)
        for backend in ("reference", "triton")
    ]
    assert outs[0].isfinite().all()
    assert relative_l2(outs[1], outs[0]) < 1e-4


@pytest.mark.parametrize("rectification", ["paper", "precise", "none"])
def test_top_p_one_is_dense(rectification: str, device: torch.device) -> None:
    """Also where the softmax is so peaked that a few blocks have a mass of 1 in fp32."""
    config = SparseConfig(
        *(0.9, 64, 64), top_p=1.0, rectification=rectification, order="raster", neighbours=False,
        **EXACT,
    )  # fmt: skip
    case = Case((3, 8, 16), config)
    q, k, v = case.inputs(torch.float32, device, 0)
    k += 16 * k[:, :, ::64].repeat_interleave(64, 2)
    q = q[:, :, :1] + 0.1 * q
    out, stats = rectified_attention(
        q, k, v, case.layout, config, backend="triton", return_stats=True
    )
    assert float(stats.density) == 1.0
    assert relative_l2(out, dense_attention(q, k, v)) < 1e-5


@pytest.mark.parametrize("name", ["shorter than a block", "precise"])
def test_what_is_asked_for_changes_no_output(name: str, device: torch.device) -> None:
    case = CASES[name]
    q, k, v = case.inputs(torch.float32, device, 7)
    call = partial(rectified_attention, q, k, v, case.layout, case.config)
    out, stats = call(backend="triton", return_stats=True, return_lse=True)
    assert torch.equal(out, call(backend="triton"))
    _, expected = call(backend="reference", return_stats=True)
    assert torch.equal(stats.block_mask(), expected.block_mask())


def test_inputs_are_not_written(device: torch.device) -> None:
    case = CASES["strided"]
    tensors = case.inputs(torch.float32, device, 8)
    copies = [x.clone() for x in tensors]
    rectified_attention(*tensors, case.layout, case.config, backend="triton")
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies, strict=True))


@pytest.mark.parametrize(
    ("rectification", "tail_keys", "batch", "heads"), [("paper", 1, 2, 2), ("precise", 2, 1, 2)]
)
def test_heads_in_chunks(
    device: torch.device, rectification: str, tail_keys: int, batch: int, heads: int
) -> None:
    """Some heads at a time give what all heads together give."""
    from rectified_spaattn.kernels.devices import Tile
    from rectified_spaattn.kernels.launch import launch

    # Without neighbours, so that of two blocks one is left out.
    options = {"rectification": rectification, "tail_keys": tail_keys, "neighbours": False}
    config = SparseConfig(0.5, 64, 64, **options)
    case = Case((2, 5, 9), config, (3, 0), batch, heads, head_dim=32)
    arguments = (*case.inputs(torch.float32, device, 9), case.layout, case.config)
    tile = Tile(32, 4, 1)
    number = batch * heads
    together = launch(*arguments, tile, True, chunk_heads=number)
    for chunk_heads in (1, number - 1) if device.type == "cuda" else (number - 1,):
        chunked = launch(*arguments, tile, True, chunk_heads=chunk_heads)
        assert all(torch.equal(x, y) for x, y in zip(together, chunked, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_does_not_wait_for_the_gpu(name: str, device: torch.device) -> None:
    """A call that waits leaves the GPU idle until the next kernels have been launched."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA GPU: on a CPU nothing runs on after a call")
    case = CASES[name]
    q, k, v = case.inputs(torch.bfloat16, device, 12)
    rectified_attention(q, k, v, case.layout, case.config, backend="triton")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rectified_attention(q, k, v, case.layout, case.config, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_large_fp16_queries_stay_finite(device: torch.device) -> None:
    """The squares of the queries, which the tail of `precise` needs, exceed fp16."""
    case = CASES["precise"]
    q, k, v = case.inputs(torch.float16, device, 11)
    q[:, :, :5, 0] = 3000.0
    expected = rectified_attention(q, k, v, case.layout, case.config, backend="reference")
    out = rectified_attention(q, k, v, case.layout, case.config, backend="triton")
    assert relative_l2(out, expected) < TOLERANCE[torch.float16]


def test_workspace_stays_in_32_bit_offsets() -> None:
    """Packed rows are counted in int32: at the largest videos a chunk stays far below 2^31."""
    from rectified_spaattn.kernels.devices import Tile
    from rectified_spaattn.kernels.plan import WORKSPACE_BYTES, Sizes, index_tables

    layout = TokenLayout((65, 45, 72), 65 * 45 * 72 + 512, 512)
    for blocks in (64, 128):
        config = SparseConfig(0.75, blocks, blocks, rectification="precise")
        tables = index_tables(layout, "raster", blocks, blocks, False, torch.device("cpu"))
        sizes = Sizes.of(128, layout, config, tables, Tile(64, 4, 1))
        heads = sizes.heads_per_chunk(80, 4, WORKSPACE_BYTES)
        assert heads * sizes.packed_length * sizes.padded_dim < 2**31
        assert heads * 2 * sizes.packed_length * sizes.padded_dim * 2 < WORKSPACE_BYTES


@pytest.mark.parametrize("tile_n", [32, 64])
def test_tiles_and_descriptors_give_one_result(tile_n: int, device: torch.device) -> None:
    """Keys through pointers or tensor descriptors, in tiles of any length."""
    from rectified_spaattn.kernels.devices import Tile, has_descriptors
    from rectified_spaattn.kernels.launch import launch

    if not has_descriptors():
        pytest.skip("this Triton cannot pass tensor descriptors to a kernel (3.4 and newer can)")
    case = Case((3, 5, 11), paper(0.6, 128, 64), context=(30, 70), heads=2)
    q, k, v = case.inputs(torch.float16, device, 10)
    expected = rectified_attention(q, k, v, case.layout, case.config, backend="reference")
    for tma in (False, True):
        out, *_ = launch(q, k, v, case.layout, case.config, Tile(tile_n, 4, 1, tma), False)
        assert relative_l2(out, expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("name", ["paper", "precise-128x64", "int8-precise", "precise-64, 2 keys"])
def test_sums_in_fp16(name: str, device: torch.device) -> None:
    """Tiles of graphics cards: values in fp16 with a scale for every block, sums in fp16."""
    case = CASES[name]
    q, k, v = case.inputs(torch.float16, device, 11)
    expected = rectified_attention(q, k, v, case.layout, case.config, backend="reference")
    out = launched_with_half_sums(case, q, k, v)
    assert relative_l2(out, expected) < 3e-3


@pytest.mark.parametrize("rectification", ["paper", "precise"])
@pytest.mark.parametrize("outlier", ["channel", "token", "tiny"])
def test_values_beyond_fp16(outlier: str, rectification: str, device: torch.device) -> None:
    """A channel 100 times the rest, values of 60,000, and blocks of hardly any: none is lost."""
    config = SparseConfig(0.6, 64, 64, rectification=rectification)
    case = Case((3, 5, 11), config, context=(0, 9))
    q, k, v = case.inputs(torch.float16, device, 13)
    if outlier == "channel":
        v[..., 5] *= 100
    elif outlier == "token":
        v[..., 17, :8] = 60_000
    else:
        v[..., :64, :] *= 1e-4
    expected = rectified_attention(q, k, v, case.layout, case.config, backend="reference")
    out = launched_with_half_sums(case, q, k, v)
    assert out.isfinite().all()
    error = (out - expected).float().norm(dim=-2) / expected.float().norm(dim=-2)
    assert error.max() < 5e-3, "of each channel by itself"


def launched_with_half_sums(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output of the tile that graphics cards get for these blocks, on a CPU with one stage."""
    from rectified_spaattn.kernels.devices import Tile
    from rectified_spaattn.kernels.launch import launch

    int8 = case.config.precision == "int8"
    warps = 4 if case.config.q_block == 64 else 8
    tile = Tile(64, warps, 2, int8=int8, half_sums=True)
    return launch(q, k, v, case.layout, case.config, tile, keep_mask=False)[0]
