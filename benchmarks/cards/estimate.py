"""Milliseconds of calls and models on a card, from loops and from stages measured elsewhere.

attention   (scores of the kept blocks x cycles of the main loop + scores of the tail x cycles
            of its loop) / (cycles of the card x share of the bound that it reaches)
a stage     the largest of its time on an H200 by multiprocessors and clock, the bytes that it
            must move by bandwidth, and its products at the rate of linear layers
a forward   2 x parameters x tokens for the linear layers, and one call a layer
a render    its forwards, dense or sparse as the schedule of the preset has it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...rspa_core.config import SparseConfig
from ...rspa_core.key_groups import SAMPLED_QUERIES
from ...rspa_core.ranking import Q_PARTS
from ...rspa_core.run.presets import PRESETS, Preset
from ...rspa_core.run.reasons import DenseReason
from ...rspa_core.run.schedule import Position, SparsitySchedule
from ..calls.problem import HEAD_DIM, SHAPES, Shape
from .hardware import DENSE, H200, Card, efficiency, published_rates
from .machine_code import LoopCost

METHODS = {**PRESETS, "paper 128": Preset(0.75, 128, 0.2, rectification="paper")}
"""What is estimated: the presets, and the method of the paper at the sparsity of `balanced`."""
USUAL_STEPS, RENDER_STEPS = 20, {"4-step": 4}
LINEAR_EFFICIENCY = 0.7
"""Share of the 16-bit rate that linear layers reach."""
KEY_BYTES = HEAD_DIM * (1 + 2)
"""Of an int8 key and its fp16 value."""


class Model(NamedTuple):
    """One model at one size: a self-attention call, the number of layers, and the parameters of
    all linear layers that every token passes."""

    shape: Shape
    layers: int
    parameters: float


_WAN_14B = 40 * (6 * 5120**2 + 2 * 5120 * 13824)
MODELS = {
    "Wan 14B 720p": Model(SHAPES["wan-720p"], 40, _WAN_14B),
    "Wan 14B 480p": Model(SHAPES["wan-480p"], 40, _WAN_14B),
    "HunyuanVideo 720p": Model(SHAPES["hunyuan-720p"], 60, 60 * 12 * 3072**2),
}


class Stage(NamedTuple):
    """How the time of a stage grows.

    Attributes:
        by_pairs: with the pairs of blocks, else with the tokens.
        by_keys: with the number of keys that stand for a block, too.
        bytes, operations: moved and multiplied at least, of one channel of a token, or of a q-block
            and a pooled key.
    """

    by_pairs: bool = False
    by_keys: bool = False
    bytes: float = 0
    operations: float = 0


STAGES = {
    "pool": Stage(bytes=3 * 2 + 1 + 1 + 2),  # q, k and v; int8, int8 and fp16 copies
    "label": Stage(by_keys=True, bytes=2, operations=2 * SAMPLED_QUERIES),
    "group means": Stage(bytes=2 * 2),
    "narrow": Stage(by_keys=True),
    "rank": Stage(True, True, operations=3 * 2 * HEAD_DIM * Q_PARTS),  # of "paper" fewer
    "select": Stage(True),
    "tail bias": Stage(True, True, bytes=4),
    "sums": Stage(bytes=1 + 2, operations=3 * 2 * SAMPLED_QUERIES),
    "W v": Stage(True),
    "rest": Stage(),
}
# Milliseconds on an H200 with code for 8.9, Wan 14B 720p, four keys, by mode and length of blocks.
MEASURED_SHAPE, MEASURED_KEYS = SHAPES["wan-720p"], {"precise": 4, "paper": 1}
MEASURED: dict[tuple[str, int], dict[str, float]] = {
    ("precise", 128): {
        "pool": 2.31, "label": 1.56, "group means": 0.91, "narrow": 0.08, "rank": 0.93,
        "select": 0.42, "tail bias": 0.10, "sums": 0.69, "rest": 0.2,
    },
    ("precise", 64): {
        "pool": 2.31, "label": 1.56, "group means": 0.92, "narrow": 0.14, "rank": 3.45,
        "select": 1.38, "tail bias": 0.37, "sums": 1.10, "rest": 0.2,
    },
    ("paper", 128): {"pool": 2.29, "rank": 0.19, "select": 0.29, "W v": 0.11, "rest": 0.2},
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """Milliseconds of one sparse call, and 10^9 bytes of keys and values that its programs read."""

    kept: float
    tail: float
    stages: float
    reads: float

    @property
    def total(self) -> float:
        return self.kept + self.tail + self.stages


def sparse_call(card: Card, shape: Shape, preset: Preset, loops: list[LoopCost]) -> Call:
    """One call of a preset, whose kernel has a main loop and maybe one of a tail."""
    block = preset.block_size
    config = SparseConfig(
        sparsity=preset.sparsity, q_block=block, kv_block=block,
        rectification=preset.rectification, tail_keys=preset.tail_keys,
    )  # fmt: skip
    layout, num_blocks = shape.layout, shape.layout.num_blocks(block)
    video_pairs = layout.video_length**2
    kept = layout.length**2 - video_pairs + video_pairs * config.top_k(num_blocks) / num_blocks
    scores = [kept, layout.video_length * num_blocks * config.tail_keys][: len(loops)]
    times = [
        1e3 * shape.heads * each * 4 * HEAD_DIM / card.attention_rate(loop.bound) / efficiency(card)
        for each, loop in zip(scores, loops, strict=True)
    ]
    stages = sum(stage_times(card, shape, config).values())
    reads = shape.heads * sum(scores) / block * KEY_BYTES / 1e9
    return Call(times[0], sum(times[1:]), stages, reads)


def stage_times(card: Card, shape: Shape, config: SparseConfig) -> dict[str, float]:
    """Milliseconds of every stage before the attention of one call."""
    times = {}
    for name, milliseconds in MEASURED[config.rectification, config.q_block].items():
        stage = STAGES[name]
        units = _units(stage, shape, config)
        growth = units / _units(stage, MEASURED_SHAPE, config)
        if stage.by_keys:
            growth *= config.tail_keys / MEASURED_KEYS[config.rectification]
        times[name] = max(
            milliseconds * growth * H200.cycles / card.cycles,
            stage.bytes * units / card.gigabytes / 1e6,
            1e3 * stage.operations * units / (card.linear_rate * LINEAR_EFFICIENCY),
        )
    return times


def _units(stage: Stage, shape: Shape, config: SparseConfig) -> float:
    """Channels of tokens, pairs of blocks, or pairs of a q-block and a pooled key, of one call."""
    if not stage.by_pairs:
        return shape.heads * shape.layout.length * HEAD_DIM
    keys = config.tail_keys if stage.by_keys else 1
    return shape.heads * shape.layout.num_blocks(config.q_block) ** 2 * keys


def dense_calls(card: Card, shape: Shape) -> dict[str, float]:
    """Milliseconds of one dense call with each kernel that somebody has measured."""
    operations = 4 * shape.heads * shape.layout.length**2 * HEAD_DIM
    rates = published_rates(card)
    return {kernel: 1e3 * operations / rates[kernel] for kernel in DENSE if kernel in rates}


def forward_time(card: Card, model: Model, call: float) -> float:
    """Milliseconds of one call of the model."""
    linear = 2 * model.parameters * model.shape.layout.length
    return 1e3 * linear / (card.linear_rate * LINEAR_EFFICIENCY) + model.layers * call


def dense_share(method: str) -> float:
    """Share of the steps of a render that stay dense, at evenly spaced sigmas."""
    preset, steps = METHODS[method], RENDER_STEPS.get(method, USUAL_STEPS)
    schedule = SparsitySchedule(
        preset.sparsity, preset.sparsity, "constant", preset.start_percent, preset.end_percent
    )
    found = [schedule.sparsity_at(Position(i, steps, i / steps)) for i in range(steps)]
    return sum(isinstance(each, DenseReason) for each in found) / steps
