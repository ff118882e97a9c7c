"""What an artist can pick instead of this pack: dense attention and ComfyUI's own sparse one.

How each output is checked before it is timed:

    cuDNN                against explicit fp32 attention on some query rows and heads, below 1e-2
    torch's others       against cuDNN, relative L2 below 1e-2
    SageAttention, INT8  against cuDNN, relative L2 below 5e-2
    Sol-Attn             against cuDNN, finite and relative L2 below 0.9: how much it loses depends
                         on the heads, a broken kernel loses everything
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend

from .comparison import BASELINE, Candidate, Prepared, Unavailable
from .problem import Problem, difference_reason, exact_rows, sdpa
from .sol_attn import SOL_TAU, offers, require, sol_call, sol_masks

DEFAULT = "dense PyTorch"
"""As ComfyUI calls it where nothing else is chosen."""
DEFAULT_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
FLASH = "dense flash"
LIMIT_16_BIT = 1e-2
LIMIT_INT8 = 5e-2
LIMIT_SOL = 0.9
SOL_TOP_K = (0.25, 0.15, 0.10)


def torch_candidates(problem: Problem, exact: Tensor, checked_heads: int) -> list[Candidate]:
    """Dense attention of torch: cuDNN and flash."""
    checked = partial(exact_reason, problem=problem, checked_heads=checked_heads)
    flash = against(exact, LIMIT_16_BIT)
    return [
        _sdpa_candidate(BASELINE, problem, checked, SDPBackend.CUDNN_ATTENTION),
        _sdpa_candidate(FLASH, problem, flash, SDPBackend.FLASH_ATTENTION),
    ]


def default_candidate(problem: Problem, exact: Tensor) -> Candidate:
    """Dense attention of torch as ComfyUI calls it by default."""
    return _sdpa_candidate(DEFAULT, problem, against(exact, LIMIT_16_BIT), *DEFAULT_BACKENDS)


def _sdpa_candidate(
    label: str, problem: Problem, wrong: Callable[[Tensor], str], *backends: SDPBackend
) -> Candidate:
    call = partial(sdpa(*backends), *problem.qkv)
    return Candidate(label, lambda: Prepared(call, wrong))


def dense_int8_candidates(problem: Problem, exact: Tensor) -> list[Candidate]:
    """Dense attention in INT8: SageAttention's Triton kernel and ComfyUI's own."""
    return [
        Candidate("dense SageAttention", partial(_prepare_sage, problem, exact)),
        Candidate("dense comfy-kitchen INT8", partial(_prepare_kitchen, problem, exact)),
    ]


def sol_candidates(
    problem: Problem,
    exact: Tensor,
    shares: Sequence[float] = SOL_TOP_K,
    thresholds: Sequence[float] = SOL_TAU,
) -> list[Candidate]:
    """ComfyUI's "Model Sparse Attention" by share of kept blocks and by threshold."""
    options: dict[str, dict[str, float]] = {
        f"Sol-Attn top-k {ratio:g}": {"topk_ratio": ratio} for ratio in shares
    }
    options |= {f"Sol-Attn tau {tau:g}": {"tau": tau} for tau in thresholds}
    return [
        Candidate(label, partial(_prepare_sol, problem, exact, option))
        for label, option in options.items()
    ]


def against(exact: Tensor, limit: float) -> Callable[[Tensor], str]:
    """The check that an output is within `limit` of dense attention, in the heads of `exact`."""
    heads = slice(0, exact.shape[1])
    return lambda out: difference_reason(out[:, heads], exact, limit, "dense attention")


def exact_reason(out: Tensor, problem: Problem, checked_heads: int, rows: int = 128) -> str:
    """What is wrong with a dense output, judged by its first, middle and last rows in fp32."""
    heads, length = slice(0, checked_heads), out.shape[-2]
    for start in sorted({0, length // 2, max(0, length - rows)}):
        part = slice(start, start + rows)
        expected = exact_rows(problem.q[:, heads, part], problem.k[:, heads], problem.v[:, heads])
        what = f"fp32 attention in the rows from {start}"
        reason = difference_reason(out[:, heads, part], expected, LIMIT_16_BIT, what)
        if reason:
            return reason
    return ""


def _prepare_sage(problem: Problem, exact: Tensor) -> Prepared:
    sage = require("sageattention", "sageattention")

    def call() -> Tensor:
        # As ComfyUI calls it. With smoothing, version 1 would change the caller's k in place.
        return sage.sageattn(
            *problem.qkv, tensor_layout="HND", is_causal=False, sm_scale=None, smooth_k=False
        )

    return Prepared(call, against(exact, LIMIT_INT8))


def _prepare_kitchen(problem: Problem, exact: Tensor) -> Prepared:
    kitchen = require("comfy_kitchen", "comfy-kitchen")
    if not offers(kitchen, "int8_attention", problem.q.device):
        raise Unavailable("this comfy-kitchen has no INT8 attention for this GPU")
    return Prepared(lambda: kitchen.int8_attention(*problem.qkv), against(exact, LIMIT_INT8))


def _prepare_sol(problem: Problem, exact: Tensor, option: dict[str, float]) -> Prepared:
    call = sol_call(problem.qkv, option)
    density = float(sol_masks(problem.q, problem.k, **option).float().mean())
    return Prepared(call, against(exact, LIMIT_SOL), density)
