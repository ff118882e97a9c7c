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
from .nodes import OURS, REPORT_SIZE, Box, Point
from .thumbnails import Picture

Json = dict[str, Any]


@dataclass(frozen=True)
class Insertion:
    """One `RectifiedSpaAttn` node on the model links from `source` to `targets`."""

    source: int
    targets: tuple[int, ...]
    position: Point
    title: str | None = None
    width: float = 460


@dataclass(frozen=True)
class Options:
    """One node with further options, for all attention nodes of a graph."""

    values: Mapping[str, Any]
    position: Point
    width: float = 460


@dataclass(frozen=True)
class Report:
    """One report node behind the sampler `sampler`, on the model of the insertion `of`.

    Inside a subgraph its picture also leaves through the subgraph's output `name`, to a preview
    at `preview` in the root graph. The links lead through the points of the routes, around nodes
    that they would otherwise seem to come from.
    """

    sampler: int
    position: Point
    of: int = 0
    title: str | None = None
    name: str = ""
    preview: Point = (0, 0)
    model_route: tuple[Point, ...] = ()
    after_route: tuple[Point, ...] = ()
    output_route: tuple[Point, ...] = ()
    preview_route: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """One schedule node in the root graph, with its preview.

    It reaches the attention nodes listed in `feeds` (indices into the insertions) through the
    subgraph input called `name`.
    """

    name: str
    title: str
    values: Mapping[str, Any]
    feeds: tuple[int, ...]
    position: Point
    preview: Box


@dataclass(frozen=True)
class Shift:
    """Everything from `from_x` on (and above `above_y`) moves right by `distance`."""

    from_x: float
    distance: float
    above_y: float = float("inf")


@dataclass(frozen=True)
class Spec:
    """One example workflow: `stem` names its files, `template` the official workflow.

    Nodes are put into the root graph or into subgraphs; where into several, `shift`, `options` and
    `groups` are each one's. `groups` are titled frames. `widgets` replaces values: (node id,
    position) to value; `files` model files: loader to folder, name and address. `lower` moves nodes
    down by pixels, where a node above them has grown since the template was drawn. `without` takes
    nodes out, and frames that are then empty. `extend` adds what only this workflow has; it gets
    the workflow, the attention nodes and the pack's version. `steps` is what the sampler is set to,
    over both experts; `steps_before` are those of a first sampler that stays without our node.
    """

    stem: str
    template: str
    insertions: tuple[Insertion, ...]
    shift: Shift
    groups: Mapping[str, Box]
    note: str
    note_box: Box
    steps: int
    picture: Picture
    options: Options | None = None
    reports: tuple[Report, ...] = ()
    preset: str = "balanced"
    root_groups: Mapping[str, Box] = field(default_factory=dict)
    root_shift: Shift | None = None
    schedules: tuple[Schedule, ...] = ()
    widgets: Mapping[tuple[int, int], Any] = field(default_factory=dict)
    files: Mapping[int, tuple[str, str, str]] = field(default_factory=dict)
    lower: Mapping[int, float] = field(default_factory=dict)
    without: tuple[int, ...] = ()
    extend: Callable[[Workflow, list[Json], str], None] | None = None
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


# The column that holds the attention node, its status text, options and the note, in canvas pixels;
# sized for the front end's newer node design ("Nodes 2.0"), which needs more room.
COLUMN = 500
BELOW = OURS["RectifiedSpaAttn"].size[1] + 60
BELOW_OPTIONS = BELOW + OURS["RectifiedSpaAttnOptions"].size[1] + 60
NOTE_HEIGHT = 540

# Around one report.
REPORT_FRAME = (REPORT_SIZE[0] + 20, REPORT_SIZE[1] + 90)

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


# The root graph's column of the LTX workflows.
LTX_COLUMN = 440

PICTURE_PROMPT = (
    "The character in the picture smiles, blinks and waves with both arms while the wind moves the "
    "hair and the clouds drift slowly across the sky. Steady camera."
)


def _groups(
    node: tuple[float, float], report: tuple[float, float], note_top: float = BELOW_OPTIONS
) -> dict[str, Box]:
    """Frames around the attention node's column and around the report."""
    return {
        "Sparse attention": (node[0] - 10, node[1] - 70, COLUMN - 20, note_top + NOTE_HEIGHT + 90),
        "What really ran": (report[0] - 10, report[1] - 70, *REPORT_FRAME),
    }


def _options(x: float, y: float) -> Options:
    """The published options for Wan, below the attention node at `x`, `y`."""
    return Options(LAYERS, (x, y + BELOW))


def _note(x: float, y: float, note_top: float = BELOW_OPTIONS) -> Box:
    """Place of the note in the column of the attention node at `x`, `y`."""
    return (x, y + note_top, COLUMN - 40, NOTE_HEIGHT)


def _report(
    sampler: int, position: Point, attention_end: float, sampler_end: float, y: float
) -> tuple[Report, ...]:
    """The report with its links above the nodes, at `y`.

    `attention_end` and `sampler_end` are where those nodes end on the right.
    """
    x = position[0]
    route = Report(
        sampler,
        position,
        model_route=((attention_end + 15, y - 20), (x - 22, y - 20)),
        after_route=((sampler_end + 10, y), (x - 34, y)),
    )
    return (route,)


def _ltx(
    stem: str,
    template: str,
    column: Point,
    end: tuple[float, float],
    note: str,
    widgets: Mapping[tuple[int, int], Any],
    task: str,
    seed: int,
) -> Spec:
    """LTX 2.5: the node is on the model of the second sampling, inside the subgraph.

    Args:
        stem, template, note, widgets: of the `Spec`.
        column: where schedule and note begin in the root graph; the rest there moves right.
        end: right of everything in the subgraph, and in the root graph before it moves.
        task, seed: of the thumbnail.
    """
    x, y = column
    inside, outside = end[0] + COLUMN + 60, end[1] + LTX_COLUMN + 60
    below = y + OURS["RectifiedSpaAttnSchedule"].size[1] + 60
    schedule = Schedule(
        "second_sampling_schedule",
        "Second sampling: three steps",
        {"steps": ", ".join([f"{PRESETS['balanced'].sparsity:g}"] * 3), "preview_steps": 3},
        (0,),
        (x + 10, y),
        (x + 10, below, 400, 260),
    )
    return Spec(
        stem=stem,
        template=template,
        insertions=(Insertion(384, (391,), (3700, 6020)),),
        shift=Shift(3670, COLUMN),
        groups={
            "Sparse attention": (3680, 5950, COLUMN - 20, 500),
            "What really ran": (inside - 10, 5950, *REPORT_FRAME),
        },
        root_groups={"What really ran": (outside - 10, y - 70, 1020, 1200)},
        root_shift=Shift(x, LTX_COLUMN),
        schedules=(schedule,),
        reports=(
            Report(
                368,
                (inside, 6020),
                0,
                "Report: second sampling",
                "second_sampling_report",
                (outside, y),
                model_route=((4185, 5920), (inside - 22, 5920)),
                after_route=((4840, 5935), (inside - 34, 5935)),
            ),
        ),
        note=note,
        note_box=(x + 10, below + 320, 400, 620),
        steps=3,
        steps_before=8,
        widgets=widgets,
        picture=Picture(
            "LTX 2.5",
            task,
            "1920 x 1088, 121 frames",
            seed,
            16,
            8,
            halves=("half size", "full size"),
        ),
    )


COMPARISON_GROUPS: dict[str, Box] = {
    "Seed for both": (300, 460, 445, 200),
    "Sparse attention": (770, 530, 480, BELOW_OPTIONS + 80),
    "Left: full attention": (1260, -30, 600, 530),
    "Right: Rectified SpaAttn": (1260, 530, 600, 570),
    "Side by side": (1890, -30, 860, 700),
    "What really ran": (1890, 690, 1030, 1230),
}
TUNING_GROUPS: dict[str, Box] = {
    "Seed for both": (300, 460, 445, 200),
    "1 - Measure while rendering": (770, -30, 1340, 1050),
    "2 - Choose and save": (2130, -30, 1790, 1050),
    "3 - Render with the profile": (770, second_sampling.LOWER - 60, 1340, 1240),
    "What really ran": (2130, second_sampling.LOWER - 60, 1030, 1240),
    "Later: the saved file": (3180, second_sampling.LOWER - 60, 500, 780),
}

SPECS: tuple[Spec, ...] = (
    Spec(
        stem="wan2.1_text_to_video",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,), (780, 40)),),
        shift=Shift(770, COLUMN),
        groups=_groups((780, 40), (2140, 40)),
        note=notes.WAN21_T2V,
        note_box=_note(780, 40),
        options=_options(780, 40),
        steps=30,
        reports=_report(3, (2140, 40), 1240, 1585, -50),
        widgets={(40, 2): 81, (3, 1): FIXED},
        lower={50: 40},
        picture=Picture("Wan 2.1", "Text to video", "832 x 480, 81 frames", 0, 12),
    ),
    Spec(
        stem="wan2.1_image_to_video",
        template="image_to_video_wan",
        insertions=(Insertion(37, (54,), (870, 70)),),
        shift=Shift(860, COLUMN),
        groups=_groups((870, 70), (2490, 70)),
        note=notes.WAN21_I2V,
        note_box=_note(870, 70),
        options=_options(870, 70),
        steps=20,
        reports=_report(3, (2490, 70), 1330, 1672, -30),
        widgets={
            (50, 0): 640,
            (50, 1): 640,
            (50, 2): 81,
            (3, 1): FIXED,
            (52, 0): "example.png",
            (6, 0): PICTURE_PROMPT,
        },
        lower={56: 40},
        picture=Picture("Wan 2.1", "Image to video", "640 x 640, 81 frames", 1, 4),
    ),
    Spec(
        stem="wan2.2_14B_image_to_video_4_steps",
        template="video_wan2_2_14B_i2v",
        preset="4-step",
        insertions=(
            Insertion(116, (104,), (1900, -250), "Rectified SpaAttn (high noise)", 400),
            Insertion(117, (103,), (1900, -250 + BELOW), "Rectified SpaAttn (low noise)", 400),
        ),
        options=Options(LAYERS, (1900, -250 + 2 * BELOW), 400),
        shift=Shift(2020, 420),
        groups={
            "Sparse attention": (1880, -330, 440, 1260),
            "What really ran": (3390, -330, 2110, 1250),
        },
        reports=(
            Report(
                86,
                (3410, -250),
                0,
                "Report: high noise",
                "high_noise_report",
                (2370, -350),
                model_route=((2350, -420), (3382, -420)),
                after_route=((2764, -395), (3368, -395)),
                output_route=((4424, -420), (5500, -420)),
                preview_route=((1436, -475), (2340, -475)),
            ),
            Report(
                85,
                (4480, -250),
                1,
                "Report: low noise",
                "low_noise_report",
                (3440, -350),
                model_route=((2350, 1040), (4444, 1040), (4444, -100)),
                after_route=((3140, -370), (4456, -370)),
                preview_route=((1424, -500), (3414, -500)),
            ),
        ),
        root_groups={"What really ran": (2350, -420, 2110, 1200)},
        root_shift=Shift(430, 440),
        schedules=(
            Schedule(
                "high_noise_schedule",
                "High noise: the first two steps",
                {"steps": f"off, {FOUR_STEPS}", "preview_steps": 2},
                (0,),
                (430, -420),
                (430, -10, 400, 220),
            ),
            Schedule(
                "low_noise_schedule",
                "Low noise: the last two steps",
                {"steps": f"{FOUR_STEPS}, {FOUR_STEPS}", "preview_steps": 2},
                (1,),
                (430, 270),
                (430, 680, 400, 220),
            ),
        ),
        note=notes.WAN22_I2V,
        note_box=(-40, 120, 430, 700),
        steps=4,
        # Instance values by position: prompt, width, height, ..., turbo mode (the 4-step LoRA).
        widgets={
            (97, 0): "example.png",
            (129, 0): PICTURE_PROMPT,
            (129, 11): True,
            (86, 2): FIXED,
        },
        picture=Picture("Wan 2.2 14B", "Image to video, 4 steps", "two experts", 0, 20, split=2),
    ),
    Spec(
        stem="wan2.2_14B_text_to_video",
        template="video_wan2_2_14B_t2v",
        insertions=(
            Insertion(120, (82,), (2315, -140), "Rectified SpaAttn (high noise)", 400),
            Insertion(121, (86,), (2315, -140 + BELOW), "Rectified SpaAttn (low noise)", 400),
        ),
        options=Options(LAYERS, (2315, -140 + 2 * BELOW), 400),
        shift=Shift(2490, 270),
        groups={
            "Sparse attention": (2295, -220, 440, 1260),
            "What really ran": (3530, -300, 2110, 1250),
        },
        reports=(
            Report(
                81,
                (3550, -220),
                0,
                "Report: high noise",
                "high_noise_report",
                (1450, -200),
                model_route=((2740, -390), (3520, -390)),
                after_route=((3100, -365), (3506, -365)),
                output_route=((4564, -390), (5640, -390)),
                preview_route=((790, -325), (1420, -325)),
            ),
            Report(
                78,
                (4620, -220),
                1,
                "Report: low noise",
                "low_noise_report",
                (2520, -200),
                model_route=((2740, 1060), (4588, 1060), (4588, -70)),
                after_route=((3490, -340), (4596, -340)),
                preview_route=((778, -350), (2494, -350)),
            ),
        ),
        root_groups={"What really ran": (1430, -270, 2110, 1200)},
        root_shift=Shift(-210, 460),
        schedules=(
            # 0.12 is between steps 3 and 4 of 20: the published "three exact high-noise steps".
            Schedule(
                "schedule",
                "Sparsity over both experts",
                {"start_percent": 0.12},
                (0, 1),
                (-200, -270),
                (-200, 140, 400, 220),
            ),
        ),
        note=notes.WAN22_T2V,
        note_box=(-200, 420, 400, 660),
        steps=20,
        widgets={(81, 2): FIXED},
        picture=Picture("Wan 2.2 14B", "Text to video", "two experts, one ramp", 1, 12, split=10),
    ),
    Spec(
        stem="wan2.2_14B_first_last_frame",
        template="video_wan2_2_14B_flf2v",
        insertions=(
            Insertion(73, (84,), (890, -70), "Rectified SpaAttn (high noise)", 400),
            Insertion(74, (87,), (890, -70 + BELOW), "Rectified SpaAttn (low noise)", 400),
        ),
        options=Options(LAYERS, (890, -70 + 2 * BELOW), 400),
        shift=Shift(880, 430),
        groups={
            "Sparse attention": (880, -140, 420, 1310),
            "What really ran": (2490, -190, 2050, 1290),
        },
        reports=(
            Report(
                84,
                (2500, -70),
                0,
                "Report: high noise",
                model_route=((1310, -160), (2478, -160)),
                after_route=((1645, -135), (2466, -135)),
            ),
            Report(
                87,
                (3530, -70),
                1,
                "Report: low noise",
                model_route=((1310, 1190), (3508, 1190)),
                after_route=((1660, 1215), (3496, 1215)),
            ),
        ),
        note=notes.WAN22_FLF,
        note_box=(-500, 660, 480, 660),
        steps=20,
        # The lower half of the template is the same graph with LoRAs, switched off.
        without=(37, 38, 39, 68, 62, 56, 91, 92, 6, 7, 67, 54, 55, 70, 57, 58, 8, 60, 61, 95, 96),
        widgets={(84, 2): FIXED, (80, 0): "example.png", (89, 0): "example.png"},
        picture=Picture("Wan 2.2 14B", "First and last frame", "two experts", 0, 16, split=10),
    ),
    Spec(
        stem="bernini_r_video_editing",
        template="video_bernini_r_video_editing",
        insertions=(
            Insertion(295, (275,), (8490, 4960), "Rectified SpaAttn (high noise)", 400),
            Insertion(281, (277,), (8490, 4960 + BELOW), "Rectified SpaAttn (low noise)", 400),
        ),
        options=Options(LAYERS, (8490, 4960 + 2 * BELOW), 400),
        shift=Shift(8480, 440),
        groups={
            "Sparse attention": (8480, 4860, 420, 1340),
            "What really ran": (10490, 4860, 2090, 1290),
        },
        reports=(
            Report(
                275,
                (10510, 4960),
                0,
                "Report: high noise",
                "high_noise_report",
                (4080, 4370),
                model_route=((8915, 4780), (10480, 4780)),
                after_route=((9605, 4805), (10466, 4805)),
                output_route=((11524, 4780), (12600, 4780)),
                preview_route=((3600, 4290), (4050, 4290)),
            ),
            Report(
                277,
                (11560, 4960),
                1,
                "Report: low noise",
                "low_noise_report",
                (5130, 4370),
                model_route=((8915, 6240), (11530, 6240), (11530, 5090)),
                after_route=((9945, 4830), (11536, 4830)),
                preview_route=((3614, 4265), (5100, 4265)),
            ),
        ),
        root_groups={"What really ran": (4070, 4310, 2080, 1190)},
        note=notes.BERNINI,
        note_box=(3120, 5300, 900, 620),
        steps=6,
        widgets={(275, 2): FIXED},
        lower={111: 60, 112: 60},
        picture=Picture("Bernini-R", "Video editing", "two experts, turbo", 0, 8, split=3),
    ),
    Spec(
        stem="scail2_character_replacement",
        template="video_wan21_scail2_character_replacement",
        insertions=(
            Insertion(169, (95,), (2760, 3170), width=400),
            Insertion(232, (224,), (2760, 3170), width=400),
        ),
        options=Options(LAYERS, (2760, 3170 + BELOW), 400),
        shift=Shift(2725, 450),
        groups={
            "Sparse attention": (2750, 3100, 420, 820),
            "What really ran": (3940, 3100, 1020, 1240),
        },
        reports=(
            Report(
                19,
                (3950, 3170),
                0,
                "Report: first segment",
                "first_report",
                (4050, 4410),
                model_route=((3180, 3050), (3920, 3050)),
                after_route=((3810, 3075), (3906, 3075)),
                preview_route=((1945, 4265), (4020, 4265)),
            ),
            Report(
                227,
                (3950, 3170),
                1,
                "Report: second segment",
                "second_report",
                (5100, 4410),
                model_route=((3180, 3050), (3920, 3050)),
                after_route=((3880, 3075), (3906, 3075)),
                preview_route=((2525, 4240), (5070, 4240)),
            ),
        ),
        root_groups={"What really ran": (4040, 4340, 2080, 1190)},
        note=notes.SCAIL2,
        note_box=(1990, 5560, 830, 640),
        steps=6,
        widgets={(30, 0): "example.png"},
        lower={183: 60, 240: 60, 264: 130, 202: 80},
        picture=Picture("SCAIL-2", "Character replacement", "896 x 512, 81 frames", 0, 14),
    ),
    Spec(
        stem="wan2.2_5B_text_to_video",
        template="video_wan2_2_5B_ti2v",
        insertions=(Insertion(37, (48,), (860, 50)),),
        shift=Shift(850, COLUMN),
        groups=_groups((860, 50), (2410, 50)),
        note=notes.WAN22_5B,
        note_box=_note(860, 50),
        options=_options(860, 50),
        steps=20,
        reports=_report(3, (2410, 50), 1320, 1665, -50),
        widgets={(3, 1): FIXED},
        lower={58: 40},
        picture=Picture("Wan 2.2 5B", "Text or image to video", "1280 x 704, 121 frames", 0, 4),
    ),
    Spec(
        stem="hunyuan_video_text_to_video",
        template="hunyuan_video_text_to_video",
        insertions=(Insertion(12, (67, 17), (820, 0)),),
        shift=Shift(810, COLUMN),
        groups=_groups((820, 0), (2660, 0), BELOW),
        note=notes.HUNYUAN,
        note_box=_note(820, 0, BELOW),
        steps=20,
        reports=_report(13, (2660, 0), 1280, 1885, -190),
        widgets={(25, 1): FIXED},
        lower={80: 40},
        picture=Picture("HunyuanVideo", "Text to video", "848 x 480, 73 frames + text", 1, 8),
    ),
    Spec(
        stem="hunyuan_video_1.5_text_to_video",
        template="video_hunyuan_video_1.5_720p_t2v",
        insertions=(Insertion(12, (105,), (250, 50)),),
        shift=Shift(240, COLUMN, above_y=1220),
        groups=_groups((250, 50), (2690, 50), BELOW),
        note=notes.HUNYUAN15,
        note_box=_note(250, 50, BELOW),
        steps=20,
        reports=_report(127, (2690, 50), 710, 1408, -290),
        lower={117: 20},
        picture=Picture("HunyuanVideo 1.5", "Text to video, 720p", "1280 x 720, 121 frames", 0, 24),
    ),
    _ltx(
        "ltx2.5_text_to_video",
        "video_ltx2_5_t2v",
        (2470, 6550),
        (5020, 3740),
        notes.LTX_T2V,
        # 2 megapixels: 1920 x 1088.
        widgets={(409, 1): 2.0, (339, 1): FIXED},
        task="Text to video and sound",
        seed=0,
    ),
    _ltx(
        "ltx2.5_image_to_video",
        "video_ltx2_5_i2v",
        (1980, 6400),
        (5480, 3340),
        notes.LTX_I2V,
        widgets={
            (403, 1): 2.0,
            (339, 1): FIXED,
            (395, 0): "example.png",
            (398, 0): PICTURE_PROMPT,
        },
        task="Image to video and sound",
        seed=1,
    ),
    Spec(
        stem="minimax_h3_text_to_video_8_steps",
        template="video_minimax_h3_t2v",
        preset="4-step",
        insertions=(Insertion(135, (124, 126), (-30, 4640), width=430),),
        shift=Shift(-40, 490),
        groups={
            "Sparse attention": (-50, 4560, 470, 480),
            "What really ran": (1960, 4560, *REPORT_FRAME),
        },
        reports=(
            Report(
                125,
                (1970, 4640),
                name="report",
                preview=(450, 4840),
                model_route=((415, 4470), (1936, 4470)),
                after_route=((1155, 4500), (1922, 4500)),
                preview_route=((-680, 4790), (424, 4790)),
            ),
        ),
        root_groups={"What really ran": (440, 4770, 1020, 1190)},
        note=notes.MINIMAX_H3_T2V,
        note_box=(-3050, 4840, 460, 740),
        steps=8,
        # Instance values by position: prompt, ..., turbo_mode, its LoRA, strength and steps.
        widgets={(140, 9): True, (115, 1): 0.98},
        picture=Picture("MiniMax H3", "Text to video, 8 steps", "video and sound", 1, 16),
    ),
    Spec(
        stem="minimax_h3_image_to_video_4_steps",
        template="video_minimax_h3_i2v",
        preset="4-step",
        insertions=(Insertion(122, (9, 16), (-30, 4640), width=430),),
        shift=Shift(-40, 490),
        groups={
            "Sparse attention": (-50, 4560, 470, 480),
            "What really ran": (1960, 4560, *REPORT_FRAME),
        },
        reports=(
            Report(
                14,
                (1970, 4640),
                name="report",
                preview=(900, 4850),
                model_route=((415, 4470), (1936, 4470)),
                after_route=((1155, 4500), (1922, 4500)),
                preview_route=((-230, 4800), (874, 4800)),
            ),
        ),
        root_groups={"What really ran": (890, 4780, 1020, 1190)},
        note=notes.MINIMAX_H3_I2V,
        note_box=(-3070, 4860, 460, 740),
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
        picture=Picture("MiniMax H3", "Image to video, 4 steps", "video and sound", 1, 24),
    ),
    Spec(
        stem="compare_dense_and_sparse",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,), (780, 600)),),
        options=_options(780, 600),
        shift=Shift(770, COLUMN),
        groups=COMPARISON_GROUPS,
        note=notes.COMPARISON,
        note_box=(-130, 720, 875, 600),
        steps=30,
        # Its model link runs below the samplers, so that it does not seem to come from VAE Decode.
        reports=(Report(3, (1905, 760), model_route=((1255, 1125), (1876, 1125))),),
        widgets={(40, 2): 81, (3, 1): FIXED, (50, 0): "video/dense_and_sparse"},
        extend=second_sampling.compare,
        picture=Picture("Compare", "Dense and sparse, one seed", "Wan 2.1", 1, 20),
    ),
    Spec(
        stem="tune_with_the_probe",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,), (780, 40)),),
        shift=Shift(770, COLUMN),
        groups=TUNING_GROUPS,
        note=notes.TUNING,
        note_box=(-130, 720, 875, 620),
        steps=30,
        widgets={(40, 2): 81, (3, 1): FIXED, (50, 0): "video/measured"},
        extend=second_sampling.tune,
        picture=Picture("Tune", "A sparsity for each layer", "Wan 2.1", 0, layout="chart"),
    ),
)
