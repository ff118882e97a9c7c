"""The selection kernel alone, on rows that the pipeline rarely produces: ties and extremes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rectified_spaattn.rspa_core import SparseConfig
from rectified_spaattn.rspa_core.selection import select_blocks

pytest.importorskip("triton", reason="Triton is not installed")

ROWS = {
    "random": torch.randn(3, 37, generator=torch.Generator().manual_seed(0)),
    "all equal": torch.zeros(2, 21),
    "two values": torch.randint(0, 2, (3, 40), generator=torch.Generator().manual_seed(1)).float(),
    "one far above": torch.eye(3, 33) * 80,
    "underflow to zero": torch.arange(30.0).repeat(2, 1) * -40,
    "single block": torch.zeros(1, 1),
    "more than 4096 blocks": torch.randn(1, 4500, generator=torch.Generator().manual_seed(2)),
}


def run_select(logits: Tensor, forced: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Mask and kv_indices (filled with -1) of one head for `logits [NQ, NK]`."""
    import triton

    from rectified_spaattn.kernels.select import select_kernel

    num_q, num_k = logits.shape
    device = logits.device
    mask = torch.full((num_q, num_k), 9, dtype=torch.int8, device=device)
    kv_indices = torch.full((num_q, num_k), -1, dtype=torch.int32, device=device)
    counts = [torch.full((num_q,), -1, dtype=torch.int32, device=device) for _ in range(3)]
    lengths, ragged, kept = counts
    select_kernel[(num_q, 1)](
        logits=logits.clone(),
        context_lse=None,
        accepted=None,
        forced=forced.to(torch.int8),
        critical=mask,
        kv_indices=kv_indices,
        list_lengths=lengths,
        ragged_kept=ragged,
        weights=None,
        kv_counts=kept,
        rectify_scale=None,
        first_head=0,
        num_q=num_q,
        num_k=num_k,
        num_full_k=num_k,
        num_full_context=0,
        width=num_k,
        top_k=top_k,
        top_p=top_p,
        video_length=num_q * 64,
        Q_PART=64,
        PARTS=1,
        HAS_CONTEXT=False,
        USE_TOP_P=top_p > 0,
        WRITE_MASK=True,
        RECTIFICATION="none",
        BLOCK=triton.next_power_of_2(num_k),
        num_warps=4,
    )
    assert torch.equal(lengths, kept)
    assert not ragged.any()
    assert torch.equal(kept, mask.sum(-1, dtype=torch.int32))
    return mask.bool(), kv_indices


@pytest.mark.parametrize(
    ("top_p", "force"), [(0.0, False), (0.0, True), (0.45, False), (0.45, True), (1.0, False)]
)
@pytest.mark.parametrize("name", ROWS)
def test_selects_what_the_reference_selects(
    name: str, top_p: float, force: bool, device: torch.device
) -> None:
    logits = ROWS[name].to(device)
    forced = torch.zeros(logits.shape, dtype=torch.bool, device=device)
    if force:
        forced[:, -1] = True
        forced[0, logits.shape[1] // 2 :] = True
    config = SparseConfig(0.8, 64, 64, top_p=top_p, rectification="none")
    top_k = config.top_k(logits.shape[1])
    mask, kv_indices = run_select(logits, forced, top_k, top_p)
    expected = select_blocks(logits.softmax(-1), forced, config)
    assert torch.equal(mask, expected)
    assert top_p < 1 or mask.all()
    for row, entries in zip(mask, kv_indices, strict=True):
        listed = entries[entries >= 0].long()
        assert torch.equal(listed, row.nonzero().flatten())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_stay_within_their_budget(
    bad: float, device: torch.device
) -> None:
    """A broken model must not make a row overrun its neighbours' lists."""
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(3)).to(device)
    logits[1, 7] = bad
    logits[2] = bad
    mask, kv_indices = run_select(logits, torch.zeros_like(logits, dtype=torch.bool), 6, 0.0)
    assert mask.sum(-1).tolist() == [6, 6, 6]
    assert (kv_indices >= 0).sum(-1).tolist() == [6, 6, 6]
    assert mask[1, 7] == (bad == float("inf"))
