"""The text of the note inside each graph: what this workflow sets, and what to try next."""

from __future__ import annotations

COMPARE = """### Compare
The seed is fixed. Run once with **enabled** off, once with it on, and compare time and \
picture. The line of text on the node says what was really computed sparsely.
"""

COMPARE_SUBGRAPH = """### Compare
The seed is fixed. Run once with **sparse_attention** off, once with it on, and compare \
time and picture. What was really computed sparsely stands in the log, and on the nodes \
while the subgraph is open.
"""

TRY = """### Then try
| You see | Change |
|---|---|
| Soft detail, flicker, odd hands | **sparsity** 0.6, or **block_size** 64 |
| The scene itself changed | **start_percent** higher: more exact steps at the beginning |
| No visible difference | **sparsity** 0.85 |
| Not faster | More frames or pixels: below **min_tokens** attention stays exact |
| Small loss at any sparsity | **rectification** `precise` (advanced) |
"""

TRY_STEPS = """### Then try
| You see | Change |
|---|---|
| Soft detail, flicker, odd hands | 0.6 instead of 0.8 in **steps**, or \
**block_size** 64 (inside the subgraph) |
| The scene or the motion changed | `off, off` in the high-noise **steps** |
| No visible difference | `off, 0.75` high, `0.85` low |
| Not faster | A longer clip or a larger picture: short ones stay exact |
"""

TRY_CURVE = """### Then try
| You see | Change |
|---|---|
| Soft detail, flicker, odd hands | **end_sparsity** 0.7, or **block_size** 64 \
(inside the subgraph) |
| The scene or the motion changed | **start_percent** 0.25 |
| No visible difference | **start_sparsity** 0.7, **end_sparsity** 0.85 |
| Drift at the expert change | **dense_steps** `0`: each expert's first step is exact |
"""


def text(about: str, *, compare: str = COMPARE, advice: str = TRY) -> str:
    """The whole note: a heading, what is particular to this workflow, and the shared advice."""
    return "\n".join(("## Rectified SpaAttn", about.strip() + "\n", compare, advice)).strip() + "\n"


WAN21_T2V = text("""
The node sits between the model loader and *ModelSamplingSD3*. It keeps a quarter of the \
attention blocks (**sparsity** 0.75) and corrects for the rest; the first 3 of 30 steps and the \
first two layers (**dense_blocks** `0, 1`) stay exact.

The clip is 81 frames at 832x480 = 32,760 tokens. The official template's 33 frames are only \
14,040, where less is gained.
""")

WAN21_I2V = text("""
The node sits between the model loader and *ModelSamplingSD3*. It keeps a quarter of the \
attention blocks (**sparsity** 0.75) and corrects for the rest; the first 2 of 20 steps and the \
first two layers (**dense_blocks** `0, 1`) stay exact.

The clip is 81 frames at 640x640 = 33,600 tokens. The official template's 33 frames at 512x512 \
are 9,216: little more than **min_tokens**, where less is gained.

Load your own picture in place of the example.
""")

WAN22_I2V = text(
    """
Both experts run through the node, inside the subgraph, after the LoRA switch. Four steps are too \
few for a curve, so each expert has a list with one entry per step:

| step | expert | steps |
|---|---|---|
| first | high noise | `off`: exact, it decides the composition |
| second | high noise | `0.6` |
| third, fourth | low noise | `0.8, 0.8` |

The count restarts at each sampler and the last entry repeats: without **enable_turbo_mode** \
(20 steps) write `off, off, off, 0.6` for high noise.

640x640, 81 frames = 33,600 tokens. Load your own picture in place of the example.
""",
    compare=COMPARE_SUBGRAPH,
    advice=TRY_STEPS,
)

WAN22_T2V = text(
    """
Both experts run through the node, inside the subgraph, and share one schedule. Its percentages \
follow the noise level, which goes on where the first expert stops: the ramp runs from 0.6 to 0.8 \
over both. Exact steps before **start_percent** 0.12: 3 of 20, or 1 of 4 with \
**enable_turbo_mode**. The first two layers of each expert stay exact as well.

640x640, 81 frames = 33,600 tokens.
""",
    compare=COMPARE_SUBGRAPH,
    advice=TRY_CURVE,
)

WAN22_5B = text("""
The node sits between the model loader and *ModelSamplingSD3*. It keeps a quarter of the \
attention blocks (**sparsity** 0.75) and corrects for the rest; the first 2 of 20 steps and the \
first two layers (**dense_blocks** `0, 1`) stay exact.

1280x704, 121 frames = 27,280 tokens: this model packs its latents twice as tightly. For image to \
video, enable *Load Image* (Ctrl+B); nothing else changes.
""")

HUNYUAN = text("""
The node feeds *ModelSamplingSD3* and the scheduler. It keeps a fifth of the video's attention \
blocks (**sparsity** 0.8) and corrects for the rest; the first step stays exact, and so does \
everything that reads or is read by the text tokens.

848x480, 73 frames = 30,210 tokens plus the text. At 1280x720 and 129 frames there are 118,800: \
the larger the clip, the more there is to save.
""")

HUNYUAN15 = text("""
The node sits right after the model loader, before *EasyCache* (bypassed here; both can be on). \
It keeps a fifth of the video's attention blocks (**sparsity** 0.8) and corrects for the rest; \
the first 2 of 20 steps stay exact.

1280x720, 121 frames = 111,600 tokens plus the text: attention is most of the work at this size. \
The upscale part below runs without the node.
""")
