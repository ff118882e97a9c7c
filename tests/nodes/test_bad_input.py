"""Wrong values, one by one: each error names the field, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rectified_spaattn.nodes.inputs import SCHEDULE_NODE
from rectified_spaattn.nodes.patching import Options, run_settings
from rectified_spaattn.nodes.sparse_attention import RectifiedSpaAttnSchedule
from rectified_spaattn.rspa_core import ConfigError, SparseConfig, TokenLayout, rectified_attention
from rectified_spaattn.rspa_core.run.calls import RunSettings
from rectified_spaattn.rspa_core.run.schedule import Position, SparsitySchedule

SOCKETS = ("schedule", "profile", "options", "model")


def node(**change: Any) -> RunSettings:
    """The RectifiedSpaAttn node, preset "custom", with one value changed."""
    sockets = {name: change.pop(name) for name in SOCKETS if name in change}
    return run_settings({"preset": "custom", "start_percent": 0.0, **change}, **sockets)


def options(**change: Any) -> Options:
    """The RectifiedSpaAttnOptions node with one value changed."""
    return Options.of(change)


def schedule(**change: Any) -> SparsitySchedule:
    """The RectifiedSpaAttnSchedule node with one value changed."""
    return RectifiedSpaAttnSchedule.execute(**(SCHEDULE_NODE.defaults | change)).values[0]


def layout(**change: Any) -> TokenLayout:
    return TokenLayout(**({"grid": (2, 4, 8), "length": 64, "video_start": 0} | change))


def attention(**change: Any) -> Any:
    """`rectified_attention` with one argument changed."""
    q = torch.zeros(1, 1, 64, 16)
    values = {"q": q, "k": q, "v": q, "layout": layout(), "config": SparseConfig()} | change
    return rectified_attention(
        values.pop("q"), values.pop("k"), values.pop("v"), values.pop("layout"),
        values.pop("config"), **values,
    )  # fmt: skip


NAN = float("nan")
CASES: list[tuple[Callable[..., Any], str, Any, str]] = [
    # make, field, wrong value, what the message must say is allowed
    (node, "sparsity", 1.5, "a number from 0 to 0.98"),
    (node, "sparsity", -0.1, "a number from 0 to 0.98"),
    (node, "sparsity", NAN, "a number from 0 to 0.98"),
    (node, "sparsity", "0.5", "a number from 0 to 0.98"),
    (node, "block_size", "96", "one of 128, 64"),
    (node, "block_size", 32, "one of 128, 64"),
    (node, "block_size", True, "one of 128, 64"),
    (node, "preset", "turbo", "one of custom, quality, balanced, fast, 4-step"),
    (node, "profile", "fast", "the output of a Load Profile or Probe node"),
    (node, "options", 3, "the output of a Rectified SpaAttn Options node"),
    (node, "start_percent", 1.01, "a number from 0 to 1"),
    (node, "end_percent", -0.5, "a number from 0 to 1"),
    (node, "schedule", "0.5", "the output of a Rectified SpaAttn Schedule node"),
    (options, "rectification", "exact", "one of auto, precise, paper, none"),
    (options, "tail_keys", "3", "one of auto, 1, 2, 4, 8"),
    (options, "verbose", 1, "True or False"),
    (options, "token_order", "hilbert", "one of gilbert, tile, raster"),
    (options, "top_p", 1.2, "a number from 0 to 1"),
    (options, "dense_blocks", "0, first", "a block number"),
    (options, "dense_blocks", "5-2", "a range from low to high"),
    (options, "dense_blocks", "triple 1", "a block number"),
    (options, "dense_blocks", True, "a text"),
    (options, "dense_blocks", [0, 1], "a text"),
    (options, "min_tokens", -1, "a whole number, 0 to 1000000"),
    (options, "min_tokens", 1.5, "a whole number, 0 to 1000000"),
    (options, "precision", "fp8", "one of auto, 16-bit, int8"),
    (schedule, "start_sparsity", 0.99, "a number from 0 to 0.98"),
    (schedule, "end_sparsity", -1, "a number from 0 to 0.98"),
    (schedule, "curve", "ease", "one of constant, linear, cosine"),
    (schedule, "start_percent", 2.0, "a number from 0 to 1"),
    (schedule, "end_percent", 0.05, "a number from 0 to end_percent"),
    (schedule, "steps", "off, 1.5", "'off' or a number from 0 to 0.98"),
    (schedule, "steps", "0.6 0.8", "'off' or a number from 0 to 0.98"),
    (schedule, "dense_steps", "1, last", "a whole number"),
    (schedule, "dense_steps", "0.5", "a whole number"),
    (schedule, "dense_steps", "0", "1 is the first step"),
    (SparseConfig, "q_block", 32, "one of 64, 128"),
    (SparseConfig, "kv_block", True, "one of 64, 128"),
    (SparseConfig, "min_blocks", 0, "a whole number, 1 or more"),
    (SparseConfig, "neighbours", "yes", "one of True, False"),
    (layout, "grid", (2, 4), "a tuple (T, H, W) of three whole numbers, 1 or more"),
    (layout, "grid", (2, 0, 8), "a tuple (T, H, W) of three whole numbers, 1 or more"),
    (layout, "length", 63, "at least video_start + T*H*W"),
    (layout, "video_start", -1, "a whole number, 0 or more"),
    (attention, "q", torch.zeros(64, 16), "a non-empty tensor [B, H, N, D]"),
    (attention, "k", torch.zeros(1, 1, 32, 16), "that of q"),
    (attention, "v", torch.zeros(1, 1, 64, 16, dtype=torch.float64), "float16, bfloat16 or"),
    (attention, "layout", (2, 4, 8), "a TokenLayout"),
    (attention, "layout", TokenLayout((2, 4, 8), 80), "the 64 tokens of q"),
    (attention, "config", 0.75, "a SparseConfig"),
    (attention, "backend", "cuda", "one of auto, reference, triton"),
]


def name_of(case: tuple) -> str:
    make, field, value, _ = case
    shown = tuple(value.shape) if isinstance(value, torch.Tensor) else value
    return f"{make.__name__}-{field}-{shown}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_error_names_field_value_and_range(case: tuple) -> None:
    make, field, value, allowed = case
    with pytest.raises(ConfigError) as caught:
        make(**{field: value})
    error, message = caught.value, str(caught.value)
    assert re.search(rf"\b{field}\b", message)
    assert repr(error.value) in message
    assert allowed in message
    assert message == f"{error.field} = {error.value!r} is not allowed: {error.allowed}"


def test_percents_the_wrong_way_round_name_both() -> None:
    expected = "start_percent = 0.8 is not allowed: a number from 0 to end_percent = 0.3"
    for make in (node, schedule):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            make(start_percent=0.8, end_percent=0.3)


def test_a_connected_schedule_replaces_the_values_of_the_node() -> None:
    connected = schedule()
    assert node(schedule=connected, start_percent=0.8, end_percent=0.3).schedule is connected


@pytest.mark.parametrize(
    ("given", "taken"), [(None, ""), ("None", "None"), ("none", "none"), (3, "3"), ("3", "3")]
)
def test_texts_are_read_generously(given: Any, taken: str) -> None:
    """null in a workflow is None, or "None" by the time it arrives."""
    chosen = options(dense_blocks=given)
    assert chosen.dense_blocks == taken
    named = (("double", 3, 3),) if "3" in taken else ()
    assert node(options=chosen).dense_blocks.ranges == named
    assert schedule(dense_steps=given).dense_steps == ((2,) if named else ())
    assert schedule(steps=0.5 if named else given).steps == ((0.5,) if named else ())


def test_good_values_arrive() -> None:
    chosen = options(top_p=0.3, dense_blocks="0")
    settings = node(sparsity=0.6, block_size=64, options=chosen)
    config = settings.config
    assert (config.sparsity, config.q_block, config.kv_block, config.top_p) == (0.6, 64, 64, 0.3)
    assert settings.schedule.sparsity_at(Position(0, 4, 0.5)) == 0.6
    assert settings.dense_blocks.contains("double", 0, 4)
