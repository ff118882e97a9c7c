"""The text of the notes inside the graphs: what a workflow sets, and what to try next.

`{names}` are filled in with the numbers of the workflow's preset: see `assemble`.
"""

from __future__ import annotations

from collections.abc import Iterable

OFFICIAL_ISSUES = "https://github.com/Comfy-Org/workflow_templates/issues"
ISSUES = "https://github.com/rectified-spaattn/comfyui-rectified-spaattn/issues"

COMPARE = """### Compare
The seed is fixed. Run once with **enabled** off, once with it on, and compare time and picture; \
or open the workflow *compare_dense_and_sparse*. The report shows what really ran: which steps \
were sparse, and the time of each. A double click on it opens the whole.
"""

COMPARE_SUBGRAPH = """### Compare
The seed is fixed. Run once with **sparse_attention** off, once with it on, and compare time and \
picture. The two reports show what really ran: which steps were sparse, and the time of each. A \
double click opens the whole.
"""

COMPARE_TURBO = """### Compare
The seed is fixed. Run once with **sparse_attention** off, once with it on, and compare time, \
picture and sound. The report shows what really ran: which steps were sparse, and the time of \
each. A double click opens the whole.
"""

COMPARE_STAGE = """### Compare
The seeds are fixed. Run once with **sparse_attention** off, once with it on, and compare time and \
picture. The report shows what really ran: which steps were sparse, and the time of each. A double \
click opens the whole.
"""

TRY_UNPROBED = """### Then try
| You see | Change |
|---|---|
| Soft detail, flicker, odd hands | **preset** `quality` |
| The scene itself changed | **start_percent** higher: more exact steps at the beginning |
| No visible difference | **preset** `fast` |
| Not faster | More frames or pixels: short or small videos stay exact |
"""
TRY = TRY_UNPROBED + "| Only some layers matter | the workflow *tune_with_the_probe* |\n"
# In 4 and in 8 steps `fast` is what `4-step` is.
TRY_FEW_STEPS = TRY.replace("**preset** `fast`", "**sparsity** 0.9")

TRY_STEPS = """### Then try
| You see | Change |
|---|---|
| Soft detail, flicker, odd hands | `0.75, 0.75` in the low-noise **steps**, or **preset** \
`quality` (inside the subgraph) |
| The scene or the motion changed | `off, 0.6` or `off, off` in the high-noise **steps** |
| No visible difference | `0.9, 0.9` in the low-noise **steps** |
| Not faster | A longer clip or a larger picture: short ones stay exact |
"""

TRY_STAGE = """### Then try
| You see | Change |
|---|---|
| Soft detail, flicker, odd hands | `off, 0.75, 0.75` in the **steps**, or **preset** `quality` \
(inside the subgraph) |
| No visible difference | `0.85, 0.85, 0.85` in the **steps** |
| Not faster | A longer clip or a larger picture: short ones stay exact |
"""

TRY_CURVE = """### Then try
| You see | Change |
|---|---|
| Soft detail, flicker, odd hands | **end_sparsity** 0.7, or **preset** `quality` \
(inside the subgraph) |
| The scene or the motion changed | **start_percent** 0.25 |
| No visible difference | **start_sparsity** 0.7, **end_sparsity** 0.85 |
| Drift at the expert change | **dense_steps** `1`: each expert's first step is exact |
"""

PRESET = """\
The preset **{preset}** skips {skipped} of the video in each attention call and corrects for what \
is left out; the first {dense} of {steps} steps (**start_percent** {start}) stay exact\
"""
LAYERS = ", and so do the first two layers (*Options*: **dense_blocks** `0, 1`)."


def links(files: Iterable[tuple[str, str, str]]) -> str:
    """A note of model files: folder, name and address of each."""
    lines = [f"- `{folder}`: [{name}]({address})" for folder, name, address in files]
    return "\n".join(("**Put these into the folders of `ComfyUI/models`**", "", *lines)) + "\n"


def text(about: str, *, compare: str = COMPARE, advice: str = TRY) -> str:
    """The whole note: a heading, what is particular to this workflow, and the shared advice."""
    return "\n".join(("## Rectified SpaAttn", about.strip() + "\n", compare, advice)).strip() + "\n"


WAN21_T2V = text(f"""
The node sits between the model loader and the sampler. {PRESET}{LAYERS}

The clip is 81 frames at 832x480 = 32,760 tokens. The official template's 33 frames are only \
14,040, where less is gained.
""")

WAN21_I2V = text(f"""
The node sits between the model loader and the sampler. {PRESET}{LAYERS}

The clip is 81 frames at 640x640 = 33,600 tokens. The official template's 33 frames at 512x512 \
are 9,216: little more than **min_tokens**, where less is gained.

Load your own picture in place of the example.
""")

WAN22_I2V = text(
    """
Both experts run through the node, inside the subgraph, after the LoRA switch. Their preset is \
**{preset}**. Four steps are too few for a curve: two lists hold the sparsity of each step, to be \
changed one by one:

| step | expert | steps |
|---|---|---|
| first | high noise | `off`: exact, it decides the composition |
| second | high noise | `{sparsity}` |
| third, fourth | low noise | `{sparsity}, {sparsity}` |

The count restarts at each sampler and the last entry repeats: without **enable_turbo_mode** \
(20 steps) write `off, off, off, off, 0.75` for high noise and `0.75` for low noise. One \
*Options* node keeps the first two layers of both experts exact (**dense_blocks** `0, 1`).

640x640, 81 frames = 33,600 tokens. Load your own picture in place of the example.
""",
    compare=COMPARE_SUBGRAPH,
    advice=TRY_STEPS,
)

WAN22_T2V = text(
    """
Both experts run through the node, inside the subgraph, and share one schedule in place of the \
sparsity of their preset **{preset}**. Its percentages follow the noise level, which goes on where \
the first expert stops: the ramp runs from 0.6 to 0.8 over both. Exact steps before \
**start_percent** 0.12: {dense} of {steps}, or 1 of 4 with **enable_turbo_mode**. One *Options* \
node keeps the first two layers of both experts exact as well (**dense_blocks** `0, 1`).

640x640, 81 frames = 33,600 tokens.
""",
    compare=COMPARE_SUBGRAPH,
    advice=TRY_CURVE,
)

WAN22_FLF = text(f"""
One node for each expert, between the models and the sampler. {PRESET}{LAYERS} The start \
is a noise level, so it falls into the first expert.

640x640, 81 frames = 33,600 tokens. Load your own pictures in place of the example. The clip lies \
between two fixed pictures: most of what sparse attention may change is decided in the exact steps.
""")

BERNINI = text(
    """
Both experts run through the node, inside the subgraph, after the LoRA switch. Their preset is \
**{preset}**: the first {dense} of {steps} steps (**start_percent** {start}) stay exact. One \
*Options* node keeps the first two layers of both experts exact (**dense_blocks** `0, 1`).

Source video and references stand behind the clip in the same attention, exact: both what reads \
them and what they read. A source as large as the clip leaves a quarter of all pairs to be sparse, \
of which {skipped} are skipped; references alone leave nearly all. The line on the node counts the \
clip by itself, then *with the context*.
""",
    compare=COMPARE_SUBGRAPH,
)

SCAIL2 = text(
    """
Each segment has a node of its own, inside its subgraph, between the LoRA switch and \
*ModelSamplingSD3*. The preset **{preset}** skips {skipped} of the video in each attention call; \
the first {dense} of {steps} steps (**start_percent** {start}) and the first two layers \
(*Options*) stay exact.

Reference and pose stand before and behind the clip in the same attention, exact: both what \
reads them and what they read. With one reference the clip's own pairs are some 60 % of all. 81 \
frames at 896x512 = 37,632 tokens.

Load your own video and character picture.
""",
    compare="""### Compare
The seed is fixed. Run once with **sparse_attention** off on both segments, once with it on, and \
compare time and picture. The reports show what really ran: which steps were sparse, and the time \
of each. A double click opens the whole.
""",
)

ANIMATE2 = text(
    f"""
The node sits inside the subgraph, behind *WanAnimate2Cache*. {PRESET}\
{LAYERS}

Each frame also reads one frame of the driving video, exactly. What that reads of itself runs \
with full attention, once, since the cache keeps it for all steps.

81 frames at 482x854 and the picture = 34,980 tokens. Load your own picture and driving video, and \
describe the character in the prompt.
""",
    compare="""### Compare
The seed is fixed. Run once with **sparse_attention** off, once with it on, and compare time and \
picture. The report shows what really ran: which steps were sparse, and the time of each. A double \
click opens the whole.
""",
    advice=TRY_UNPROBED,
)

WAN22_5B = text(f"""
The node sits between the model loader and the sampler. {PRESET}{LAYERS}

1280x704, 121 frames = 27,280 tokens: this model packs its latents twice as tightly. For image to \
video, enable *Load Image* (Ctrl+B); nothing else changes.
""")

HUNYUAN = text(f"""
The node feeds sampler and scheduler. {PRESET}, and so does everything that reads \
or is read by the text tokens.

848x480, 73 frames = 30,210 tokens plus the text. At 1280x720 and 129 frames there are 118,800: \
the larger the clip, the more there is to save.
""")

HUNYUAN15 = text(f"""
The node sits right after the model loader, before *EasyCache* (in *Sampling*, bypassed; both can \
be on). \
{PRESET}, and so does everything that reads or is read by the text tokens.

1280x720, 121 frames = 111,600 tokens plus the text: attention is most of the work at this size.
""")


def _h3(context: str, tokens: str, fewer: str, other: int, steps: int) -> str:
    return text(
        f"""
The node sits inside the subgraph, behind the LoRA switch, on the way to the guider and the \
scheduler. {PRESET}, and so do the text, the sound and {context}: one sequence holds them all, the \
video last.

{tokens}; with the template's 0.4 megapixels {fewer}, where less is gained. **turbo_mode** is on, \
with the LoRA for {steps} steps. For {other} choose the LoRA for those and set **turbo_steps**; \
without it (20 steps) choose the **preset** `balanced`, inside the subgraph.
""",
        compare=COMPARE_TURBO,
        advice=TRY_FEW_STEPS,
    )


MINIMAX_H3_T2V = _h3("any keyframes", "1344x768, 5 seconds = 37,296 tokens", "14,985", 4, 8)
MINIMAX_H3_I2V = _h3("the keyframes", "1024x1024, 5 seconds = 37,888 tokens", "14,800", 8, 4)


_LTX = """
LTX 2.5 samples twice: a small video of {before} steps, then {steps} more on the same video at \
twice its width and height. The node is on the second model link, inside the subgraph: the small \
video has too few tokens for sparse attention to pay, and it decides the composition. Of the \
second sampling all steps are sparse: the schedule's list has their sparsity, {sparsity}, to be \
changed one by one. Sound, text and what goes between sound and video stay exact.

1920x1088, 121 frames = 32,640 tokens. The template's 1280x704 are 14,080, where less is gained.\
"""

LTX_T2V = text(_LTX, compare=COMPARE_STAGE, advice=TRY_STAGE)

LTX_I2V = text(
    _LTX + " Load your own picture in place of the example; it stays the first frame.",
    compare=COMPARE_STAGE,
    advice=TRY_STAGE,
)

COMPARISON = (
    """## Rectified SpaAttn: dense and sparse, side by side

One press of **Run** renders the clip twice from the same noise: left with full attention, right \
with the node. """
    + PRESET
    + LAYERS
    + """

### What to look at
1. **Composition**: the same scene, camera and motion on both sides? It is decided in the first \
steps. If it drifts apart, raise **start_percent**.
2. **Detail**: hands, faces, hair, writing, things far away. If they are softer on the right, \
take the preset `quality`.
3. **Time**: the report shows the seconds of each step. Dense steps come first, so both \
kinds stand beside one another in one picture. The first sparse step after a start is slower: \
its kernels are compiled once.

Small differences are expected; what counts is whether the right side is worse.

### Then try
| You want | Do |
|---|---|
| Another setting | Change the node and press **Run**: only the right side is rendered again |
| Another clip | Change **seed** or the prompt: both sides are rendered again |
| Another size | **width**, **height**, **length**: the larger the clip, the more there is to save |

Seed, **steps**, **cfg**, sampler and **shift** are those of both sides.

### In figures
One clip says little about the next one. A command renders a list of prompts and seeds with the \
node off and on, measures how far each pair is apart, and writes a picture and a file to post: \
[how to](https://github.com/rectified-spaattn/comfyui-rectified-spaattn/blob/main/docs/benchmarks.md\
#real-weights-compared-by-those-who-have-them). It takes this workflow, too.
"""
)

TUNING = """## Rectified SpaAttn: a sparsity for each layer

Some layers bear much more sparsity than others. The probe measures it on *your* model, and the \
profile keeps it. The first press of **Run** does all of this:

1. **Measure** renders the clip once. At the steps listed in the probe (the second one, the \
middle, the last) every layer is computed exactly, then at each of the sparsities, and compared. \
These steps take several times as long; the clip is as good as ever.
2. **Choose and save**: with **closest_to_fastest** in the middle the profile is as fast as the \
node's sparsity in all layers: more in those that bear it, less in the others. The profile is \
saved to `models/rectified_spaattn`; a file that is there already is kept.
3. **Render with the profile** samples the same seed again, straight from the fresh profile, \
and reports what really ran.

### Then try
| You want | Do |
|---|---|
| Faster | **closest_to_fastest** further to the right; nothing is measured again |
| Closer to the full result | Further to the left |
| Only new clips, without measuring | See *Later: the saved file* |
"""

LATER = """### Another day: the saved file
*Load Profile* is muted, because before the first run there is no file to choose.

1. Press **R**, so that the list shows the new file.
2. Select *Load Profile*, press **Ctrl+M**, choose the file.
3. Drag its **profile** output to the **profile** input of *Rectified SpaAttn with the profile*.
4. Select the groups 1 and 2 and press **Ctrl+M**: nothing is measured any more.

A profile belongs to the model it was measured on. Others are refused.
"""
