"""From the values on a node to validated settings; every error names the field as the node does."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from ..rspa_core import SparseConfig
from ..rspa_core.config import ORDERS, TAIL_KEYS, ConfigError, check_choice, check_integer
from ..rspa_core.run.calls import RunSettings
from ..rspa_core.run.presets import CUSTOM
from ..rspa_core.run.presets import preset as preset_of
from ..rspa_core.run.profile import ModelFingerprint, SparsityProfile
from ..rspa_core.run.schedule import (
    SparsitySchedule,
    parse_dense_blocks,
    parse_dense_steps,
    parse_steps,
)

BLOCK_SIZES = ("128", "64")
MAX_MIN_TOKENS = 1_000_000
TAIL_KEY_CHOICES = tuple(map(str, TAIL_KEYS))
PRECISE_TAIL_KEYS = "4"
"""Keys that stand for a skipped block with "precise": least error in pictures of a trained model
(docs/notes/fidelity.md)."""

logger = logging.getLogger("rectified_spaattn")


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
    precision: str,
    preset: str = CUSTOM,
    tail_keys: str = PRECISE_TAIL_KEYS,
    profile: SparsityProfile | None = None,
    model: ModelFingerprint | None = None,
) -> RunSettings:
    """Settings of the RectifiedSpaAttn node.

    A preset replaces the inputs it names; then a connected schedule replaces sparsity and percents,
    and a profile the sparsity of every block.

    Args:
        model: what is being patched, None if it is not a supported model.

    Raises:
        ConfigError: a value is out of range; names the field, the value and what is allowed.
    """
    asked: dict[str, Any] = {
        "sparsity": sparsity,
        "block_size": block_size,
        "start_percent": start_percent,
        "end_percent": end_percent,
        "rectification": rectification,
        "tail_keys": tail_keys,
    }
    chosen = preset_of(preset)
    if chosen is not None:
        own = asked
        asked = {**chosen.as_dict()}
        asked["block_size"], asked["tail_keys"] = str(chosen.block_size), str(chosen.tail_keys)
        changed = [name for name, value in asked.items() if own[name] != value]
        if changed:
            listed = ", ".join(f"{name} {asked[name]} (not {own[name]})" for name in changed)
            logger.info("Rectified SpaAttn: preset %s sets %s", preset, listed)
    check_choice("block_size", asked["block_size"], BLOCK_SIZES)
    check_choice("token_order", token_order, ORDERS)
    check_choice("tail_keys", asked["tail_keys"], TAIL_KEY_CHOICES)
    check_integer("min_tokens", min_tokens, 0, MAX_MIN_TOKENS)
    block = int(asked["block_size"])
    config = SparseConfig(
        sparsity=asked["sparsity"],
        q_block=block,
        kv_block=block,
        top_p=top_p,
        rectification=asked["rectification"],
        order=token_order,
        precision=precision,
        tail_keys=int(asked["tail_keys"]) if asked["rectification"] == "precise" else 1,
    )
    if schedule is None:
        start, end = asked["start_percent"], asked["end_percent"]
        schedule = SparsitySchedule(config.sparsity, config.sparsity, "constant", start, end)
    elif isinstance(schedule, SparsitySchedule):
        for name in ("sparsity", "start_percent", "end_percent"):
            del asked[name]
        asked["schedule"] = asdict(schedule)
    else:
        raise ConfigError("schedule", schedule, "the output of a Rectified SpaAttn Schedule node")
    asked |= {"token_order": token_order, "top_p": top_p, "dense_blocks": dense_blocks}
    asked |= {"min_tokens": min_tokens, "precision": precision, "preset": preset}
    if profile is not None:
        if not isinstance(profile, SparsityProfile):
            raise ConfigError("profile", profile, "the output of a Load Profile or Probe node")
        if model is not None:  # any other model stays dense, with that reason
            profile.check_model(model)
        asked["profile"] = profile.name or "unnamed"
    return RunSettings(
        config,
        schedule,
        parse_dense_blocks(dense_blocks),
        min_tokens,
        profile,
        asked=asked,
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
