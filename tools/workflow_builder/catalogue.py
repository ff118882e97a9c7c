"""What each example workflow takes from the official template, and what it changes.

Where a value is neither the node's default nor its preset's, the reason stands beside it.
"""

from __future__ import annotations

from rectified_spaattn.rspa_core.run.presets import PRESETS

from . import comparison, notes, tuning
from .nodes import REPORT_SIZE
from .specs import Box, Insertion, Point, Report, Schedule, Shift, Spec
from .thumbnails import Picture

# The column that holds the attention node, its status text and the note, in canvas pixels; sized
# for the front end's newer node design ("Nodes 2.0"), which needs more room.
COLUMN = 500
NOTE_TOP, NOTE_HEIGHT = 630, 500

# Around one report.
REPORT_FRAME = (REPORT_SIZE[0] + 20, REPORT_SIZE[1] + 90)

# Published for Wan: the first two layers exact (arXiv 2511.19835).
LAYERS = {"dense_blocks": "0, 1"}

# The preset's sparsity as an entry in a list of steps.
FOUR_STEPS = f"{PRESETS['wan']['4-step'].sparsity:g}"

# Control-after-generate: a fixed seed makes runs with and without the node comparable.
FIXED = "fixed"

PICTURE_PROMPT = (
    "The character in the picture smiles, blinks and waves with both arms while the wind moves the "
    "hair and the clouds drift slowly across the sky. Steady camera."
)


def _groups(node: tuple[float, float], report: tuple[float, float]) -> dict[str, Box]:
    """Frames around the attention node's column and around the report."""
    return {
        "Sparse attention": (node[0] - 10, node[1] - 70, COLUMN - 20, NOTE_TOP + NOTE_HEIGHT + 90),
        "What really ran": (report[0] - 10, report[1] - 70, *REPORT_FRAME),
    }


def _note(x: float, y: float) -> Box:
    """Place of the note below the attention node at `x`, `y`."""
    return (x, y + NOTE_TOP, COLUMN - 40, NOTE_HEIGHT)


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
        title="Rectified SpaAttn Report",
        model_route=((attention_end + 15, y - 20), (x - 22, y - 20)),
        after_route=((sampler_end + 10, y), (x - 34, y)),
    )
    return (route,)


SPECS: tuple[Spec, ...] = (
    Spec(
        stem="wan2.1_text_to_video",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,), (780, 40), LAYERS),),
        shift=Shift(770, COLUMN),
        groups=_groups((780, 40), (2140, 40)),
        note=notes.WAN21_T2V,
        note_box=_note(780, 40),
        steps=30,
        reports=_report(3, (2140, 40), 1240, 1585, -50),
        widgets={(40, 2): 81, (3, 1): FIXED},
        lower={50: 40},
        picture=Picture("Wan 2.1", "Text to video", "832 x 480, 81 frames", 0, 12),
    ),
    Spec(
        stem="wan2.1_image_to_video",
        template="image_to_video_wan",
        insertions=(Insertion(37, (54,), (870, 70), LAYERS),),
        shift=Shift(860, COLUMN),
        groups=_groups((870, 70), (2490, 70)),
        note=notes.WAN21_I2V,
        note_box=_note(870, 70),
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
            Insertion(116, (104,), (1900, -250), LAYERS, "Rectified SpaAttn (high noise)", 400),
            Insertion(117, (103,), (1900, 380), LAYERS, "Rectified SpaAttn (low noise)", 400),
        ),
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
                (430, -60, 400, 260),
            ),
            Schedule(
                "low_noise_schedule",
                "Low noise: the last two steps",
                {"steps": f"{FOUR_STEPS}, {FOUR_STEPS}", "preview_steps": 2},
                (1,),
                (430, 270),
                (430, 630, 400, 260),
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
            Insertion(120, (82,), (2315, -140), LAYERS, "Rectified SpaAttn (high noise)", 400),
            Insertion(121, (86,), (2315, 490), LAYERS, "Rectified SpaAttn (low noise)", 400),
        ),
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
                (-200, 90, 400, 260),
            ),
        ),
        note=notes.WAN22_T2V,
        note_box=(-200, 420, 400, 660),
        steps=20,
        widgets={(81, 2): FIXED},
        picture=Picture("Wan 2.2 14B", "Text to video", "two experts, one ramp", 1, 12, split=10),
    ),
    Spec(
        stem="wan2.2_5B_text_to_video",
        template="video_wan2_2_5B_ti2v",
        insertions=(Insertion(37, (48,), (860, 50), LAYERS),),
        shift=Shift(850, COLUMN),
        groups=_groups((860, 50), (2410, 50)),
        note=notes.WAN22_5B,
        note_box=_note(860, 50),
        steps=20,
        reports=_report(3, (2410, 50), 1320, 1665, -50),
        widgets={(3, 1): FIXED},
        lower={58: 40},
        picture=Picture("Wan 2.2 5B", "Text or image to video", "1280 x 704, 121 frames", 0, 4),
    ),
    Spec(
        stem="hunyuan_video_text_to_video",
        template="hunyuan_video_text_to_video",
        family="hunyuan_video",
        insertions=(Insertion(12, (67, 17), (820, 0)),),
        shift=Shift(810, COLUMN),
        groups=_groups((820, 0), (2660, 0)),
        note=notes.HUNYUAN,
        note_box=_note(820, 0),
        steps=20,
        reports=_report(13, (2660, 0), 1280, 1885, -190),
        widgets={(25, 1): FIXED},
        lower={80: 40},
        picture=Picture("HunyuanVideo", "Text to video", "848 x 480, 73 frames + text", 1, 8),
    ),
    Spec(
        stem="hunyuan_video_1.5_text_to_video",
        template="video_hunyuan_video_1.5_720p_t2v",
        family="hunyuan_video",
        insertions=(Insertion(12, (105,), (250, 50)),),
        shift=Shift(240, COLUMN, above_y=1220),
        groups=_groups((250, 50), (2690, 50)),
        note=notes.HUNYUAN15,
        note_box=_note(250, 50),
        steps=20,
        reports=_report(127, (2690, 50), 710, 1408, -290),
        lower={117: 20},
        picture=Picture("HunyuanVideo 1.5", "Text to video, 720p", "1280 x 720, 121 frames", 0, 24),
    ),
    Spec(
        stem="compare_dense_and_sparse",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,), (780, 600), LAYERS),),
        shift=Shift(770, COLUMN),
        groups=comparison.GROUPS,
        note=notes.COMPARISON,
        note_box=comparison.NOTE,
        steps=30,
        reports=comparison.REPORTS,
        widgets={(40, 2): 81, (3, 1): FIXED, (50, 0): "video/dense_and_sparse"},
        extend=comparison.extend,
        picture=Picture("Compare", "Dense and sparse, one seed", "Wan 2.1", 1, 20),
    ),
    Spec(
        stem="tune_with_the_probe",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,), (780, 40)),),
        shift=Shift(770, COLUMN),
        groups=tuning.GROUPS,
        note=notes.TUNING,
        note_box=tuning.NOTE,
        steps=30,
        widgets={(40, 2): 81, (3, 1): FIXED, (50, 0): "video/measured"},
        extend=tuning.extend,
        picture=Picture("Tune", "A sparsity for each layer", "Wan 2.1", 0, layout="chart"),
    ),
)
