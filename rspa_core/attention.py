"""The public attention function, its statistics, and plain dense attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import dispatch
from .config import ConfigError, SparseConfig, check_choice
from .layout import TokenLayout
from .reference import attend_with_lse

BACKENDS = ("auto", "reference", "triton")
SCORE_BYTES = 1 << 26
"""Of the scores that `plain_attention_lse` holds at a time."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class AttentionStats:
    """What one call really computed.

    Attributes:
        kv_counts: `[B, H, NQ]` int32, video kv-blocks attended exactly by each video q-block.
        num_kv_blocks: video kv-blocks there are.
        lse: `[B, H, N]` fp32, logarithm of the sum of each row's weights, what is left out
            estimated as it is in the output; None unless asked for. See `merge_attention`.
    """

    kv_counts: Tensor
    num_kv_blocks: int
    lse: Tensor | None
    _block_mask: Callable[[], Tensor] = field(repr=False)

    @property
    def density(self) -> Tensor:
        """Kept share of the video block pairs: 0-dim fp32 tensor on the device of the call."""
        return self.kv_counts.float().mean() / self.num_kv_blocks

    def block_mask(self) -> Tensor:
        """Critical set `[B, H, NQ, NK]` bool over video blocks in token order, for debugging.

        The kernels do not keep it: it is computed again from the q, k and v of the call, which
        these statistics hold on to.
        """
        return self._block_mask()


@overload
def rectified_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    *,
    backend: str = "auto",
    return_stats: Literal[False] = False,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def rectified_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    *,
    backend: str = "auto",
    return_stats: Literal[True],
    return_lse: bool = False,
) -> tuple[Tensor, AttentionStats]: ...


def rectified_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    *,
    backend: str = "auto",
    return_stats: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, AttentionStats]:
    """Block-sparse attention of a video model, rectified (arXiv 2511.19835).

    Args:
        q, k, v: `[B, H, N, D]`, one shape, any strides, fp16, bf16 or fp32, on one device; rotary
            embedding already applied. Scores are scaled by D^-1/2.
        layout: where the video tokens are among the N tokens.
        config: sparsity, blocks, token order and rectification.
        backend: "triton" (the kernels), "reference" (plain torch, fp32) or "auto": the kernels on
            a GPU, the reference on a CPU.
        return_stats: also return what was computed.
        return_lse: the statistics hold `lse`, too; only with `return_stats`.

    Returns:
        `[B, H, N, D]` in the dtype of the inputs, stored as `[B, N, H, D]` so that heads merge
        without a copy; with `return_stats` the pair of it and `AttentionStats`.

    Raises:
        ConfigError: an argument is out of range; the message names it, its value, what is allowed.
        BackendUnavailable: the backend cannot run here; the message is the reason.
    """
    _check_inputs(q, k, v, layout, config)
    check_choice("backend", backend, BACKENDS)
    if return_lse and not return_stats:
        raise ConfigError("return_lse", return_lse, "only with return_stats, which hold it")
    if backend == "auto":
        wanted = "reference" if q.device.type == "cpu" else "auto"
        status = dispatch.backend_status(q.device, q.dtype, q.shape[-1], wanted)
        if status.name is None:
            raise dispatch.BackendUnavailable(status.reason)
        backend = status.name
    run = dispatch.run_reference if backend == "reference" else dispatch.run_triton
    out, kv_counts, block_mask, lse = run(q, k, v, layout, config, return_lse)
    if not return_stats:
        return out
    return out, AttentionStats(kv_counts, layout.num_blocks(config.kv_block), lse, block_mask)


def merge_attention(
    out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from the attention over each.

    Args:
        out, other: `[..., N, D]`, one shape and dtype.
        lse, other_lse: logarithms of the sums of weights behind them, `[..., N]` fp32.

    Returns:
        Both for the union of the keys.
    """
    share = (other_lse - lse).sigmoid()[..., None]
    merged = torch.lerp(out, other, share.to(out.dtype))
    return merged, torch.logaddexp(lse, other_lse)


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention with scale D^-1/2: `[B, H, N, D]` on `[B, H, M, D]` to `[B, H, N, D]`."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def dense_attention_lse(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`dense_attention` and the logarithms of the sums of weights `[B, H, N]` fp32.

    By a fused kernel of torch where one can, else by `plain_attention_lse`. `added [1 or B, M]`: to
    the scores of each key; where it is -inf for all of them, the output is not a number.
    """
    # The kernel of the CPU takes this for granted, and reads other memory where it is not so.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    for attend in _fused_with_lse(q, k, v, added):
        with suppress(RuntimeError):  # a build, GPU, dtype or head size that it does not know
            out, lse, *_ = attend()
            lse = lse[..., : q.shape[-2]]  # one of them fills it up to a multiple of 32
            if lse.shape == q.shape[:-1]:
                return out, lse.float()
    return plain_attention_lse(q, k, v, added)


def _fused_with_lse(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor | None
) -> Iterator[Callable[[], tuple[Any, ...]]]:
    """What `scaled_dot_product_attention` calls, the fastest first.

    They have the logarithms, which it keeps to itself.
    """
    aten, kind = torch.ops.aten, q.device.type
    if added is None and kind == "cpu":
        yield partial(aten._scaled_dot_product_flash_attention_for_cpu, q, k, v)
    if added is None and kind == "cuda":
        yield partial(aten._scaled_dot_product_flash_attention, q, k, v)
    # Where flash attention is not built, as on Windows, or takes no mask.
    if kind == "cuda" and q.dtype != torch.float32:
        mask = None if added is None else _expanded(added, q, k.shape[-2])
        attend = aten._scaled_dot_product_efficient_attention
        yield partial(attend, q, k, v, mask, compute_log_sumexp=True)


def _expanded(added: Tensor, q: Tensor, keys: int) -> Tensor:
    """A mask `[B, H, N, M]` of one row for each sample.

    The kernel reads rows that begin at multiples of 16 numbers; here all are one.
    """
    row = torch.nn.functional.pad(added.to(q.dtype), (0, -keys % 16))
    return row[:, None, None, :keys].expand(*q.shape[:-1], keys)


def plain_attention_lse(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`dense_attention_lse` in plain torch and fp32, anywhere but slowly.

    Some rows of one head at a time, so that it needs hardly any memory.
    """
    batch, heads, length, _ = q.shape
    out = torch.empty_like(q)
    lse = q.new_empty((batch, heads, length), dtype=torch.float32)
    rows = max(1, SCORE_BYTES // (4 * k.shape[-2]))
    for b, h in product(range(batch), range(heads)):
        keys, values = k[b, h].float(), v[b, h].float()
        bias = None if added is None else added[b % len(added)].float()
        for part in (slice(start, start + rows) for start in range(0, length, rows)):
            queries = q[b, h, part].float()
            some, logs = attend_with_lse(queries[None], keys[None], values[None], bias)
            out[b, h, part], lse[b, h, part] = some[0], logs[0]
    return out, lse


def _check_inputs(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: SparseConfig
) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor) or tensor.ndim != 4 or 0 in tensor.shape:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else tensor
            raise ConfigError(f"shape of {name}", shape, "a non-empty tensor [B, H, N, D]")
        if tensor.shape != q.shape:
            raise ConfigError(
                f"shape of {name}", tuple(tensor.shape), f"that of q, {tuple(q.shape)}"
            )
        if tensor.dtype not in DTYPES:
            raise ConfigError(f"dtype of {name}", tensor.dtype, "float16, bfloat16 or float32")
        if tensor.dtype != q.dtype:
            raise ConfigError(f"dtype of {name}", tensor.dtype, f"that of q, {q.dtype}")
        if tensor.device != q.device:
            raise ConfigError(f"device of {name}", tensor.device, f"that of q, {q.device}")
    if not isinstance(layout, TokenLayout):
        raise ConfigError("layout", layout, "a TokenLayout")
    if not isinstance(config, SparseConfig):
        raise ConfigError("config", config, "a SparseConfig")
    if layout.length != q.shape[-2]:
        raise ConfigError("layout.length", layout.length, f"the {q.shape[-2]} tokens of q")
