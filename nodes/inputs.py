"""From the values on a node to validated settings; every error names the field as the node does."""

from __future__ import annotations

from ..rspa_core import SparseConfig
from ..rspa_core.config import ORDERS, ConfigError, check_choice, check_integer
from ..rspa_core.schedule import (
    SparsitySchedule,
    parse_dense_blocks,
    parse_dense_steps,
    parse_steps,
)
from .patching import PatchSettings

BLOCK_SIZES = ("128", "64")
MAX_MIN_TOKENS = 1_000_000
PRECISE_TAIL_KEYS = 4
"""Keys that stand for a skipped block with "precise": least error in pictures of a trained model
(docs/notes/fidelity.md)."""


def patch_settings(
    *,
    sparsity: float,
    block_size: str,
    start_percent: float,
    end_percent: float,
    schedule: SparsitySchedule | None,
    rectification: str,
    token_order: str,
    top_p: float,
    dense_blocks: str,
    min_tokens: int,
    verbose: bool,
    precision: str,
    node_id: str | None,
) -> PatchSettings:
    """Settings of the RectifiedSpaAttn node; a connected schedule replaces sparsity and percents.

    Raises:
        ConfigError: a value is out of range; names the field, the value and what is allowed.
    """
    check_choice("block_size", block_size, BLOCK_SIZES)
    check_choice("token_order", token_order, ORDERS)
    check_integer("min_tokens", min_tokens, 0, MAX_MIN_TOKENS)
    block = int(block_size)
    config = SparseConfig(
        sparsity=sparsity,
        q_block=block,
        kv_block=block,
        top_p=top_p,
        rectification=rectification,
        order=token_order,
        precision=precision,
        tail_keys=PRECISE_TAIL_KEYS if rectification == "precise" else 1,
    )
    if schedule is None:
        schedule = SparsitySchedule(sparsity, sparsity, "constant", start_percent, end_percent)
    elif not isinstance(schedule, SparsitySchedule):
        raise ConfigError("schedule", schedule, "the output of a Rectified SpaAttn Schedule node")
    return PatchSettings(
        config, schedule, parse_dense_blocks(dense_blocks), min_tokens, verbose, node_id
    )


def sparsity_schedule(
    *,
    start_sparsity: float,
    end_sparsity: float,
    curve: str,
    start_percent: float,
    end_percent: float,
    steps: str,
    dense_steps: str,
) -> SparsitySchedule:
    """Schedule of the RectifiedSpaAttnSchedule node.

    Raises:
        ConfigError: a value is out of range or a text cannot be read.
    """
    return SparsitySchedule(
        start_sparsity,
        end_sparsity,
        curve,
        start_percent,
        end_percent,
        parse_steps(steps),
        parse_dense_steps(dense_steps),
    )
