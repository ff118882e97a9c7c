"""What each example workflow takes from the official template, and what it changes.

Node ids are those of the templates. Positions are canvas pixels, x to the right, y down. Where a
value is neither the node's default nor its preset's, the reason stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rectified_spaattn.rspa_core.run.presets import PRESETS, Preset
from rectified_spaattn.rspa_core.run.schedule import (
    Position,
    SparsitySchedule,
    parse_dense_steps,
    parse_steps,
)

from . import notes, second_sampling
from .graph import Workflow
from .layout import COLUMN_GAP, Band, Column, Fold, Ref, Row
from .nodes import OURS, Box, Point
from .thumbnails import Picture

Json = dict[str, Any]


@dataclass(frozen=True)
class Insertion:
    """One `RectifiedSpaAttn` node on the model links from `source` to `targets`.

    `position` is of one inside a subgraph; the root graph's `columns` place the others.
    """

    source: int
    targets: tuple[int, ...]
    position: Point = (0, 0)
    title: str | None = None
    width: float = 460


@dataclass(frozen=True)
class Options:
    """One node with further options, for all attention nodes of a graph; as `Insertion`."""

    values: Mapping[str, Any]
    position: Point = (0, 0)
    width: float = 460


@dataclass(frozen=True)
class Report:
    """One report node in the root graph: behind `sampler`, on the model of the insertion `of`.

    What it reads inside a subgraph leaves through outputs whose names begin with `name`.
    """

    sampler: int
    of: int = 0
    title: str | None = None
    name: str = ""


@dataclass(frozen=True)
class Schedule:
    """One schedule node in the root graph.

    It reaches the attention nodes listed in `feeds` (indices into the insertions) through the
    subgraph input called `name`.
    """

    name: str
    title: str
    values: Mapping[str, Any]
    feeds: tuple[int, ...]
    has_preview: bool = False


@dataclass(frozen=True)
class Shift:
    """Everything from `from_x` on moves right by `distance`."""

    from_x: float
    distance: float


@dataclass(frozen=True)
class Inside:
    """What makes room for our nodes in the subgraphs of a template, and the frame around them."""

    shift: Shift
    frame: Box


@dataclass(frozen=True)
class Spec:
    """One example workflow: `stem` names its files, `template` the official workflow.

    Nodes are put into the root graph or into subgraphs; where into several, `inside` and `options`
    are each one's. `app` are the widgets that the page's app view shows beside the video, as (node,
    widget). `columns` place the root graph's nodes, whose own height is not `heights`' only where
    it is not given there; `clip` is the size of the finished video, pixels. Added nodes are called
    `attention`, `options`, `schedule`, `preview`, `report`, the second of a kind `attention2` and
    so on, `note`, and `links` where a column has it, with the model files, for templates that do
    not list them. `widgets` replaces values: (node id, position) to value; `files` model files:
    loader to folder, name and address. `lower` moves nodes in subgraphs down by pixels, where a
    node above them has grown since the template was drawn. `without` takes nodes out; `collapsed`
    are long guides, of which only the title is open; `cut` takes out the lines of the template's
    notes that hold one of these texts. `extend` adds what only this
    workflow has; it gets the workflow, the attention nodes and the pack's version, and returns its
    nodes by name. `steps` is what the sampler is set to, over both experts; `steps_before` are
    those of a first sampler that stays without our node.
    """

    stem: str
    template: str
    insertions: tuple[Insertion, ...]
    columns: tuple[Column, ...]
    note: str
    steps: int
    picture: Picture
    clip: tuple[int, int]
    inside: Inside | None = None
    folds: tuple[Fold, ...] = ()
    app: tuple[tuple[Ref, str], ...] = ()
    options: Options | None = None
    reports: tuple[Report, ...] = ()
    preset: str = "balanced"
    schedules: tuple[Schedule, ...] = ()
    heights: Mapping[Ref, float] = field(default_factory=dict)
    widgets: Mapping[tuple[int, int], Any] = field(default_factory=dict)
    files: Mapping[int, tuple[str, str, str]] = field(default_factory=dict)
    lower: Mapping[int, float] = field(default_factory=dict)
    without: tuple[int, ...] = ()
    collapsed: tuple[int, ...] = ()
    cut: tuple[str, ...] = ()
    extend: Callable[[Workflow, list[Json], str], dict[Ref, Json]] | None = None
    steps_before: int = 0

    @property
    def chosen(self) -> Preset:
        """The preset's values."""
        return PRESETS[self.preset]

    @property
    def preset_widgets(self) -> dict[str, Any]:
        """The preset as values of the attention node's widgets."""
        values = self.chosen.as_dict()
        values["block_size"] = str(values["block_size"])
        widgets = OURS["RectifiedSpaAttn"].widgets
        shown = {name: value for name, value in values.items() if name in widgets}
        return {"preset": self.preset} | shown

    def sparsity_of_steps(self, count: int | None = None) -> list[float | None]:
        """Sparsity of each step, which ComfyUI's simple scheduler spaces evenly; None is dense.

        For the workflow's own number of steps, or for `count`: each sampler's steps are then
        stretched to their share of them.
        """
        count = count or self.steps_before + self.steps
        if self.steps_before:
            before = round(count * self.steps_before / (self.steps_before + self.steps))
            return [None] * before + replace(self, steps_before=0).sparsity_of_steps(count - before)
        if not self.schedules:
            chosen = self.chosen
            percents = chosen.start_percent, chosen.end_percent
            curve = SparsitySchedule(chosen.sparsity, 0.0, "constant", *percents, ramp=chosen.ramp)
            return _steps(curve, count)
        found: list[float | None] = []
        defaults = OURS["RectifiedSpaAttnSchedule"].widgets
        for schedule in self.schedules:
            values = {**defaults, **schedule.values}
            own = values.pop("preview_steps")
            del values["preview_shift"]
            values["steps"] = parse_steps(values["steps"])
            values["dense_steps"] = parse_dense_steps(values["dense_steps"])
            curve = SparsitySchedule(**values)
            if curve.steps or curve.dense_steps:
                wanted = count // len(self.schedules)
                sparsities = _steps(curve, own)
                found += [sparsities[step * own // wanted] for step in range(wanted)]
            else:
                found += _steps(curve, count)
        return found


def _steps(schedule: SparsitySchedule, count: int) -> list[float | None]:
    found = [schedule.sparsity_at(Position(step, count, step / count)) for step in range(count)]
    return [sparsity if isinstance(sparsity, float) else None for sparsity in found]


# Published for Wan: the first two layers exact (arXiv 2511.19835).
LAYERS = {"dense_blocks": "0, 1"}

# The preset's sparsity as an entry in a list of steps.
FOUR_STEPS = f"{PRESETS['4-step'].sparsity:g}"

# Control-after-generate: a fixed seed makes runs with and without the node comparable.
FIXED = "fixed"

# As the template's own note lists it.
H3_FOUR_STEPS = (
    "loras",
    "minimax_h3_fl2v_turbo_4step_v1.0_768p_comfyui_bf16.safetensors",
    "https://huggingface.co/Comfy-Org/MiniMax-H3/resolve/main/loras/"
    "minimax_h3_fl2v_turbo_4step_v1.0_768p_comfyui_bf16.safetensors",
)


PICTURE_PROMPT = (
    "The character in the picture smiles, blinks and waves with both arms while the wind moves the "
    "hair and the clouds drift slowly across the sky. Steady camera."
)


ANIMATE2_PROMPT = (
    "Character appearance description: The character in the picture.\n"
    "Background description: Plain light gray studio background, soft even lighting.\n"
)

# Our node inside a subgraph, and what stands below it there.
NARROW = 400
BELOW = OURS["RectifiedSpaAttn"].size[1] + 60

MODELS, SPARSE, SAMPLING, RESULT = "Models and prompt", "Sparse attention", "Sampling", "Video"


def _inside(x: float, y: float, distance: float, height: float) -> Inside:
    """Room for a column of our nodes at `x`, `y`."""
    return Inside(Shift(x, distance), (x - 10, y - 80, NARROW + 20, height))


def _experts(x: float, y: float, high: tuple[int, int], low: tuple[int, int]) -> dict[str, Any]:
    """Our nodes on the models of both experts, (source, target) each, and their options."""
    title = "Rectified SpaAttn ({} noise)"
    return {
        "insertions": (
            Insertion(high[0], (high[1],), (x, y), title.format("high"), NARROW),
            Insertion(low[0], (low[1],), (x, y + BELOW), title.format("low"), NARROW),
        ),
        "options": Options(LAYERS, (x, y + 2 * BELOW), NARROW),
    }


def _reports(high: int, low: int) -> tuple[Report, ...]:
    """One behind each expert's sampler."""
    return (
        Report(high, 0, "Report: high noise", "high_noise"),
        Report(low, 1, "Report: low noise", "low_noise"),
    )


def _models(
    nodes: tuple[Ref, ...], positive: int, negative: int | None, size: int, height: float = 560
) -> Fold:
    """Loaders, prompts and size as one node."""
    widgets: dict[str, tuple[tuple[Ref, str], ...]] = {"prompt": ((positive, "text"),)}
    names: dict[tuple[Ref, str], str] = {(positive, "CONDITIONING"): "positive"}
    if negative is not None:
        widgets["negative_prompt"] = ((negative, "text"),)
        names[negative, "CONDITIONING"] = "negative"
    widgets |= {name: ((size, name),) for name in ("width", "height", "length")}
    return Fold("models", "Models, prompt, size", nodes, widgets, names, height)


def _sampling(shift: int, sampler: int, decoder: int, video: int, name: str = "sampling") -> Fold:
    """ModelSamplingSD3, KSampler, VAE Decode and Create Video as one node."""
    own = ("seed", "steps", "cfg", "sampler_name", "scheduler")
    widgets = {each: ((sampler, each),) for each in own} | {"shift": ((shift, "shift"),)}
    return Fold(name, "Sampling", (shift, sampler, decoder, video), widgets)


def _columns(
    *models: Row,
    video: Ref,
    width: float = 818,
    options: bool = True,
    links: bool = False,
    below: tuple[Row, ...] = (),
    wide_note: bool = False,
) -> tuple[Column, ...]:
    """Columns of a workflow with one model; what stands `below` the sampling are notes.

    With `links` those to the model files are below the models. A `wide_note` is beneath attention
    and sampling: a high video leaves no room for it below.
    """
    wide = (Band("What to try", 870, NARROW + COLUMN_GAP + 300), "note") if wide_note else ()
    return (
        Column(MODELS, 380, (*models, "models", *(("links",) if links else ()))),
        Column(SPARSE, NARROW, ("attention", *(("options",) if options else ()), *wide)),
        Column(SAMPLING, 300, ("sampling", *below)),
        Column(RESULT, width, (video, "report" if wide_note else ("report", "note"))),
    )


def _ltx(
    stem: str,
    template: str,
    app: tuple[tuple[Ref, str], ...],
    columns: tuple[Column, ...],
    heights: Mapping[Ref, float],
    collapsed: tuple[int, ...],
    note: str,
    widgets: Mapping[tuple[int, int], Any],
    task: str,
    clip: tuple[int, int, int],
) -> Spec:
    """LTX 2.5: the node is on the model of the second sampling, inside the subgraph.

    `task` and `clip`, its scene, seed and frame, are of the thumbnail.
    """
    schedule = Schedule(
        "second_sampling_schedule",
        "Second sampling: three steps",
        {"steps": ", ".join([f"{PRESETS['balanced'].sparsity:g}"] * 3), "preview_steps": 3},
        (0,),
    )
    return Spec(
        stem=stem,
        template=template,
        insertions=(Insertion(384, (391,), (3700, 6020)),),
        inside=Inside(Shift(3670, 500), (3680, 5950, 480, 500)),
        app=app,
        columns=columns,
        heights=heights,
        collapsed=collapsed,
        clip=(1920, 1088),
        schedules=(schedule,),
        reports=(Report(368, 0, "Report: second sampling", "second_sampling"),),
        note=note,
        steps=3,
        steps_before=8,
        widgets=widgets,
        picture=Picture(
            "LTX 2.5",
            task,
            "1920 x 1088, 121 frames",
            *clip,
            split=8,
            halves=("half size", "full size"),
        ),
    )


APP: tuple[tuple[Ref, str], ...] = (
    ("models", "prompt"),
    ("attention", "preset"),
    ("attention", "sparsity"),
)
"""What the app view shows of a workflow with one node of ours."""

WAN_MODELS = _models((37, 38, 39, 6, 7, 40), 6, 7, 40)

SPECS: tuple[Spec, ...] = (
    Spec(
        stem="wan2.1_text_to_video",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,)),),
        options=Options(LAYERS),
        folds=(WAN_MODELS, _sampling(48, 3, 8, 49)),
        app=(*APP, ("sampling", "seed")),
        columns=_columns(video=50, links=True),
        clip=(832, 480),
        note=notes.WAN21_T2V,
        steps=30,
        reports=(Report(3),),
        widgets={(40, 2): 81, (3, 1): FIXED},
        picture=Picture("Wan 2.1", "Text to video", "832 x 480, 81 frames", 5, 0, 12),
    ),
    Spec(
        stem="wan2.1_image_to_video",
        template="image_to_video_wan",
        insertions=(Insertion(37, (54,)),),
        options=Options(LAYERS),
        folds=(_models((37, 38, 39, 49, 6, 7, 51, 50), 6, 7, 50), _sampling(54, 3, 8, 55)),
        app=((52, "image"), *APP, ("sampling", "seed")),
        columns=_columns(52, video=56, width=700, below=(57,), wide_note=True),
        heights={52: 360},
        clip=(640, 640),
        note=notes.WAN21_I2V,
        steps=20,
        reports=(Report(3),),
        widgets={
            (50, 0): 640,
            (50, 1): 640,
            (50, 2): 81,
            (3, 1): FIXED,
            (52, 0): "example.png",
            (6, 0): PICTURE_PROMPT,
        },
        picture=Picture("Wan 2.1", "Image to video", "640 x 640, 81 frames", 6, 1, 12),
    ),
    Spec(
        stem="wan2.2_14B_image_to_video_4_steps",
        template="video_wan2_2_14B_i2v",
        preset="4-step",
        **_experts(1900, -250, (116, 104), (117, 103)),
        inside=_inside(1890, -250, 440, 1260),
        app=(
            (97, "image"),
            (129, "text"),
            ("schedule", "steps"),
            ("schedule2", "steps"),
            (129, "noise_seed"),
            (129, "enabled"),
        ),
        columns=(
            Column("Models", 340, (66, 105)),
            Column("Picture, sparsity of each step", NARROW, (97, "schedule", "schedule2")),
            Column("Generation", 458, (129, "note")),
            Column(RESULT, 700, (108, ("report", "report2"))),
        ),
        heights={97: 380, 129: 640},
        clip=(640, 640),
        reports=_reports(86, 85),
        schedules=(
            Schedule(
                "high_noise_schedule",
                "High noise: the first two steps",
                {"steps": f"off, {FOUR_STEPS}", "preview_steps": 2},
                (0,),
            ),
            Schedule(
                "low_noise_schedule",
                "Low noise: the last two steps",
                {"steps": f"{FOUR_STEPS}, {FOUR_STEPS}", "preview_steps": 2},
                (1,),
            ),
        ),
        note=notes.WAN22_I2V,
        steps=4,
        # Instance values by position: prompt, width, height, ..., turbo mode (the 4-step LoRA).
        widgets={
            (97, 0): "example.png",
            (129, 0): PICTURE_PROMPT,
            (129, 11): True,
            (86, 2): FIXED,
        },
        picture=Picture("Wan 2.2 14B", "Image to video, 4 steps", "two experts", 2, 0, 14, split=2),
    ),
    Spec(
        stem="wan2.2_14B_text_to_video",
        template="video_wan2_2_14B_t2v",
        **_experts(2315, -140, (120, 82), (121, 86)),
        inside=_inside(2490, -140, 270, 1260),
        app=((128, "text"), ("schedule", "end_sparsity"), (128, "enabled")),
        columns=(
            Column("Models", 340, (62, 64)),
            Column("Sparsity over the steps", NARROW, ("schedule", "preview")),
            Column("Generation", 458, (128, "note")),
            Column(RESULT, 700, (80, ("report", "report2"))),
        ),
        clip=(640, 640),
        reports=_reports(81, 78),
        schedules=(
            # 0.12 is between steps 3 and 4 of 20: the published "three exact high-noise steps".
            Schedule(
                "schedule",
                "Sparsity over both experts",
                {"start_percent": 0.12},
                (0, 1),
                has_preview=True,
            ),
        ),
        note=notes.WAN22_T2V,
        steps=20,
        widgets={(81, 2): FIXED},
        picture=Picture(
            "Wan 2.2 14B", "Text to video", "two experts, one ramp", 3, 1, 12, split=10
        ),
    ),
    Spec(
        stem="wan2.2_14B_first_last_frame",
        template="video_wan2_2_14B_flf2v",
        **_experts(0, 0, (73, 84), (74, 87)),
        folds=(
            replace(
                _models((72, 76, 77, 79, 78, 90, 81, 73, 74), 90, 78, 81),
                names={(73, "MODEL"): "high_noise_model", (74, "MODEL"): "low_noise_model"},
            ),
            Fold(
                "sampling",
                "Sampling",
                (84, 87, 85, 86),
                {
                    "seed": ((84, "noise_seed"),),
                    "steps": ((84, "steps"), (87, "steps")),
                    "switch_at_step": ((84, "end_at_step"), (87, "start_at_step")),
                    "cfg": ((84, "cfg"), (87, "cfg")),
                },
                {
                    (84, "model"): "high_noise_model",
                    (87, "model"): "low_noise_model",
                    (84, "LATENT"): "high_noise_latent",
                    (87, "LATENT"): "low_noise_latent",
                },
                290,
            ),
        ),
        app=(
            (80, "image"),
            (89, "image"),
            ("models", "prompt"),
            ("attention", "preset"),
            ("attention2", "preset"),
            ("sampling", "seed"),
        ),
        columns=(
            Column(MODELS, 530, ((80, 89), "models", "note")),
            Column(SPARSE, NARROW, ("attention", "attention2", "options")),
            Column(SAMPLING, 268, ("sampling", 93, 94)),
            Column(RESULT, 700, (83, ("report", "report2"))),
        ),
        heights={80: 290, 89: 290, "models": 440},
        clip=(640, 640),
        reports=_reports(84, 87),
        note=notes.WAN22_FLF,
        steps=20,
        # The lower half of the template is the same graph with LoRAs, switched off.
        without=(
            *(37, 38, 39, 68, 62, 56, 91, 92, 6, 7, 67, 54, 55, 70, 57, 58, 8, 60, 61, 95, 96),
            88,
        ),
        cut=("wan2.2_i2v_lightx2v_4steps", "**loras**", "📂 loras/"),
        widgets={(84, 2): FIXED, (80, 0): "example.png", (89, 0): "example.png"},
        picture=Picture("Wan 2.2 14B", "First and last frame", "two experts", 0, 0, 12, split=10),
    ),
    Spec(
        stem="bernini_r_video_editing",
        template="video_bernini_r_video_editing",
        **_experts(8490, 4960, (295, 275), (281, 277)),
        inside=_inside(8490, 4940, 440, 1340),
        folds=(Fold("slice", "Part of the video", (109, 110, 111), {}, height=90),),
        columns=(
            Column("Models, guide", 320, (79, 78)),
            Column("Source video", 320, (47, "slice", 101)),
            Column("Generation, reference pictures", 410, (298, 104, 100)),
            Column(RESULT, 430, (46, Band("What really ran", 1000, 780), ("report", "report2"))),
            Column("What to try", 350, ("note",)),
        ),
        # It only shows the number of frames.
        without=(112,),
        heights={47: 660, 298: 716, 104: 322, 100: 70},
        collapsed=(78,),
        clip=(480, 832),
        reports=_reports(275, 277),
        note=notes.BERNINI,
        steps=6,
        widgets={(275, 2): FIXED},
        picture=Picture("Bernini-R", "Video editing", "two experts, turbo", 7, 0, 8, split=3),
    ),
    Spec(
        stem="scail2_character_replacement",
        template="video_wan21_scail2_character_replacement",
        insertions=(
            Insertion(169, (95,), (2760, 3170), width=NARROW),
            Insertion(232, (224,), (2760, 3170), width=NARROW),
        ),
        options=Options(LAYERS, (2760, 3170 + BELOW), NARROW),
        inside=Inside(Shift(2725, 450), (2750, 3100, 420, 820)),
        folds=(
            Fold("segments", "Number of segments", (215, 263, 264), {}, height=110),
            Fold("join", "Segments as videos", (201, 269, 270), {}, height=150),
        ),
        app=(
            (155, "file"),
            (30, "image"),
            (213, "text"),
            (262, "text"),
            (213, "enabled"),
            (262, "enabled"),
        ),
        columns=(
            Column("Source", 308, (155, 30, "segments", 265)),
            Column("First segment", 445, (213, 202)),
            Column("Second segment", 445, (262, "join", 274)),
            Column(RESULT, 700, (271, ("report", "report2"), Band("Guides", 950), ("note", 320))),
        ),
        heights={155: 380, 30: 380, 265: 138, 213: 834, 262: 834, 202: 350},
        collapsed=(274,),
        clip=(896, 512),
        reports=(
            Report(19, 0, "Report: first segment", "first"),
            Report(227, 1, "Report: second segment", "second"),
        ),
        note=notes.SCAIL2,
        steps=6,
        widgets={(30, 0): "example.png"},
        lower={183: 60, 240: 60},
        picture=Picture("SCAIL-2", "Character replacement", "896 x 512, 81 frames", 6, 0, 14),
    ),
    Spec(
        stem="wan_animate2_character_animation",
        template="video_wan_animate2",
        insertions=(Insertion(224, (95, 18), (2580, 2660), width=NARROW),),
        options=Options(LAYERS, (2580, 2660 + BELOW), NARROW),
        inside=_inside(2580, 2660, 450, 830),
        # A second segment, which is switched off, and how to switch it on.
        without=(477, 539, 540),
        folds=(
            Fold("segments", "Number of segments", (288, 537, 536), {}, height=110),
            Fold("join", "Segments as a video", (289, 245), {}, height=106),
        ),
        app=((189, "image"), (240, "file"), (261, "text"), (261, "noise_seed"), (261, "enabled")),
        columns=(
            Column("Source", 320, (189, 240, "segments", "report")),
            Column(
                "Motion transfer",
                445,
                (261, "join", Band("Guides", 1060, 1535), ("note", 575)),
            ),
            Column(RESULT, 330, (246, 538, 574)),
            Column("Beside the driving video", 640, (292, 291)),
        ),
        heights={189: 330, 240: 330, 538: 138, 261: 796, 291: 150, 292: 677},
        collapsed=(574,),
        clip=(482, 854),
        reports=(Report(19, name="report"),),
        note=notes.ANIMATE2,
        steps=6,
        widgets={(189, 0): "example.png", (261, 1): ANIMATE2_PROMPT, (19, 2): FIXED},
        picture=Picture("Wan Animate2", "Character animation", "482 x 854, 81 frames", 6, 2, 14),
    ),
    Spec(
        stem="wan2.2_5B_text_to_video",
        template="video_wan2_2_5B_ti2v",
        insertions=(Insertion(37, (48,)),),
        options=Options(LAYERS),
        folds=(_models((37, 38, 39, 6, 7, 55), 6, 7, 55), _sampling(48, 3, 8, 57)),
        app=(*APP, ("sampling", "seed")),
        columns=_columns(56, video=58, below=(59,)),
        heights={56: 360},
        clip=(1280, 704),
        note=notes.WAN22_5B,
        steps=20,
        reports=(Report(3),),
        widgets={(3, 1): FIXED},
        picture=Picture("Wan 2.2 5B", "Text or image to video", "1280 x 704, 121 frames", 5, 1, 12),
    ),
    Spec(
        stem="hunyuan_video_text_to_video",
        template="hunyuan_video_text_to_video",
        insertions=(Insertion(12, (67, 17)),),
        folds=(
            _models((11, 12, 10, 44, 45, 26), 44, None, 45),
            Fold(
                "sampling",
                "Sampling",
                (16, 17, 22, 67, 25, 13, 73, 79),
                {
                    "seed": ((25, "noise_seed"),),
                    "scheduler": ((17, "scheduler"),),
                    "steps": ((17, "steps"),),
                    "shift": ((67, "shift"),),
                },
            ),
        ),
        app=(*APP, ("sampling", "seed")),
        columns=_columns(video=80, options=False, links=True),
        clip=(848, 480),
        without=(8, 74, 77, 78),
        note=notes.HUNYUAN,
        steps=20,
        reports=(Report(13),),
        widgets={(25, 1): FIXED},
        picture=Picture("HunyuanVideo", "Text to video", "848 x 480, 73 frames + text", 2, 1, 8),
    ),
    Spec(
        stem="hunyuan_video_1.5_text_to_video",
        template="video_hunyuan_video_1.5_720p_t2v",
        insertions=(Insertion(12, (105,)),),
        folds=(
            _models((11, 12, 10, 44, 93, 124), 44, 93, 124),
            Fold(
                "sampling",
                "Sampling",
                (105, 132, 128, 129, 130, 131, 127, 8, 101),
                {
                    "seed": ((129, "noise_seed"),),
                    "scheduler": ((128, "scheduler"),),
                    "steps": ((128, "steps"),),
                    "cfg": ((131, "cfg"),),
                    "shift": ((132, "shift"),),
                },
            ),
        ),
        app=(*APP, ("sampling", "seed")),
        columns=_columns(video=102, options=False, below=(104,)),
        clip=(1280, 720),
        # The second sampling at 1080 lines, which is switched off, and its notes.
        without=(
            *(108, 109, 111, 112, 113, 114, 116, 117, 118, 133, 134, 135, 136, 137, 138, 139),
            *(140, 141, 142, 143, 120, 121, 122, 125, 126),
        ),
        cut=("hunyuanvideo1.5_1080p_sr_distilled",),
        note=notes.HUNYUAN15,
        steps=20,
        reports=(Report(127),),
        picture=Picture(
            "HunyuanVideo 1.5", "Text to video, 720p", "1280 x 720, 121 frames", 3, 0, 12
        ),
    ),
    _ltx(
        "ltx2.5_text_to_video",
        "video_ltx2_5_t2v",
        ((405, "text"), ("schedule", "steps"), (405, "noise_seed"), (405, "enabled")),
        (
            Column("Models", 340, (412, 408)),
            Column("Size, sparsity of each step", 360, (409, "schedule", 411)),
            Column("Generation", 440, (405, "note")),
            Column(RESULT, 758, (75, ("report", 407))),
        ),
        {},
        (407,),
        notes.LTX_T2V,
        # 2 megapixels: 1920 x 1088.
        widgets={(409, 1): 2.0, (339, 1): FIXED},
        task="Text to video and sound",
        clip=(0, 1, 12),
    ),
    _ltx(
        "ltx2.5_image_to_video",
        "video_ltx2_5_i2v",
        (
            (395, "image"),
            (398, "value"),
            ("schedule", "steps"),
            (398, "noise_seed"),
            (398, "enabled"),
        ),
        (
            Column("Models", 340, (404, 401)),
            Column("Picture, size, sparsity of each step", 360, (395, 403, "schedule")),
            Column("Generation", 440, (398, "note")),
            Column(RESULT, 758, (75, ("report", (402, 399)))),
        ),
        {395: 324},
        (399,),
        notes.LTX_I2V,
        widgets={
            (403, 1): 2.0,
            (339, 1): FIXED,
            (395, 0): "example.png",
            (398, 0): PICTURE_PROMPT,
        },
        task="Image to video and sound",
        clip=(7, 1, 12),
    ),
    Spec(
        stem="minimax_h3_text_to_video_8_steps",
        template="video_minimax_h3_t2v",
        preset="4-step",
        insertions=(Insertion(135, (124, 126), (-30, 4640), width=430),),
        inside=Inside(Shift(-40, 490), (-50, 4560, 470, 480)),
        app=((140, "prompt"), (140, "noise_seed"), (140, "enabled")),
        columns=(
            Column("Models", 340, (117,)),
            Column("Size", 300, (115, 118)),
            Column("Generation", 440, (140, "note")),
            Column(RESULT, 818, (92, ("report", 116))),
        ),
        clip=(1344, 768),
        reports=(Report(125),),
        note=notes.MINIMAX_H3_T2V,
        steps=8,
        # Instance values by position: prompt, ..., turbo_mode, its LoRA, strength and steps.
        widgets={(140, 9): True, (115, 1): 0.98},
        picture=Picture("MiniMax H3", "Text to video, 8 steps", "video and sound", 2, 2, 12),
    ),
    Spec(
        stem="minimax_h3_image_to_video_4_steps",
        template="video_minimax_h3_i2v",
        preset="4-step",
        insertions=(Insertion(122, (9, 16), (-30, 4640), width=430),),
        inside=Inside(Shift(-40, 490), (-50, 4560, 470, 480)),
        app=((114, "image"), (105, "prompt"), (105, "noise_seed"), (105, "enabled")),
        columns=(
            Column("Models, guide", 340, (117, 116)),
            Column("Picture, size", 360, (114, 115, 118)),
            Column("Generation", 440, (105, "note")),
            Column(RESULT, 758, (92, "report")),
        ),
        heights={114: 400},
        clip=(1024, 1024),
        # The picture's own size in place of the chosen one, which nothing is linked to.
        without=(119, 120),
        reports=(Report(14),),
        note=notes.MINIMAX_H3_I2V,
        steps=4,
        widgets={
            (114, 0): "example.png",
            (105, 0): PICTURE_PROMPT,
            (105, 9): True,
            (105, 10): H3_FOUR_STEPS[1],
            (105, 12): 4,
            (115, 1): 0.98,
        },
        files={121: H3_FOUR_STEPS},
        picture=Picture("MiniMax H3", "Image to video, 4 steps", "video and sound", 5, 2, 12),
    ),
    Spec(
        stem="compare_dense_and_sparse",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,)),),
        options=Options(LAYERS),
        folds=(WAN_MODELS, second_sampling.BOTH),
        app=(*APP, ("both", "seed")),
        columns=(
            Column(
                MODELS,
                360,
                ("models", Band("Left: full attention. Right: Rectified SpaAttn", 700, 1540), 50),
            ),
            Column(SPARSE, 760, (("options", "attention"), "links")),
            Column("Sampling, one noise", 300, ("both",)),
            Column("What really ran", 478, ("report", Band("What to try", 480), "note")),
        ),
        heights={"models": 490},
        # Both clips and the gap between them.
        clip=(2 * 832 + 8, 480),
        note=notes.COMPARISON,
        steps=30,
        reports=(Report(3),),
        widgets={(40, 2): 81, (3, 1): FIXED, (50, 0): "video/dense_and_sparse"},
        extend=second_sampling.compare,
        picture=Picture("Compare", "Dense and sparse, one seed", "Wan 2.1", 6, 3, 12),
    ),
    Spec(
        stem="tune_with_the_probe",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,)),),
        folds=(
            replace(
                WAN_MODELS,
                title="Models, prompt, size, seed",
                nodes=(*WAN_MODELS.nodes, "seed"),
                height=600,
            ),
            *second_sampling.TUNING,
        ),
        columns=(
            Column(MODELS, 440, ("models", "links", "note")),
            Column(
                "1 - Measure while rendering",
                NARROW,
                ("attention", "probe", Band("3 - Render with the profile", 690), "patched", "load"),
            ),
            Column(
                "1 - Sampling", 330, ("measured", 50, Band("3 - Sampling", 780), "tuned", "report")
            ),
            Column(
                "2 - Choose and save",
                728,
                (("result", ("save", "later")), Band("3 - Video with the profile", 650), "saver"),
            ),
        ),
        heights={"models": 480, "save": 160, "load": 106},
        clip=(832, 480),
        note=notes.TUNING,
        steps=30,
        widgets={(40, 2): 81, (3, 1): FIXED, (50, 0): "video/measured"},
        extend=second_sampling.tune,
        picture=Picture("Tune", "A sparsity for each layer", "Wan 2.1", 3, 2, 12, is_tuned=True),
    ),
)
