"""What each example workflow takes from the official template, and what it changes.

Node ids are those of the templates. Positions are canvas pixels, x to the right, y down.
Where a value is not the node's default, the reason stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import notes
from .thumbnails import Picture

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Insertion:
    """One `RectifiedSpaAttn` node on the model links from `source` to `targets`."""

    source: int
    targets: tuple[int, ...]
    position: Point
    values: Mapping[str, Any]
    title: str = "Rectified SpaAttn"
    width: float = 460


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

    `widgets` replaces values: (node id, position) to value. `lower` moves nodes down by pixels,
    where a node above them has grown since the template was drawn.
    """

    stem: str
    template: str
    insertions: tuple[Insertion, ...]
    shift: Shift
    group: Box
    note: str
    note_box: Box
    picture: Picture
    root_shift: Shift | None = None
    schedules: tuple[Schedule, ...] = ()
    widgets: Mapping[tuple[int, int], Any] = field(default_factory=dict)
    lower: Mapping[int, float] = field(default_factory=dict)


# The column that holds the attention node, its status text and the note, in canvas pixels; sized
# for the front end's newer node design ("Nodes 2.0"), which needs more room.
COLUMN = 500
GROUP_HEIGHT = 1070
NOTE_HEIGHT = 560

# Published for Wan: 0.75 of the blocks skipped, the first two layers and the first tenth of the
# steps exact (arXiv 2511.19835). Steps sit at multiples of 1/20 or 1/30, so 0.08 stays clear of
# the boundary at 0.1 and gives the same whole steps: 2 of 20, 3 of 30.
WAN = {"sparsity": 0.75, "start_percent": 0.08, "dense_blocks": "0, 1"}
EXPERT = {"dense_blocks": "0, 1"}

# Control-after-generate: a fixed seed makes runs with and without the node comparable.
FIXED = "fixed"

PICTURE_PROMPT = (
    "The character in the picture smiles, blinks and waves with both arms while the wind moves the "
    "hair and the clouds drift slowly across the sky. Steady camera."
)

SPECS: tuple[Spec, ...] = (
    Spec(
        stem="wan2.1_text_to_video",
        template="text_to_video_wan",
        insertions=(Insertion(37, (48,), (780, 40), WAN),),
        shift=Shift(770, COLUMN),
        group=(770, -30, COLUMN - 20, GROUP_HEIGHT),
        note=notes.WAN21_T2V,
        note_box=(780, 470, COLUMN - 40, NOTE_HEIGHT),
        widgets={(40, 2): 81, (3, 1): FIXED},
        lower={50: 40},
        picture=Picture(
            "Wan 2.1",
            "Text to video",
            "832 x 480, 81 frames",
            "winter",
            0.75,
            (None,) * 3 + (0.75,) * 27,
        ),
    ),
    Spec(
        stem="wan2.1_image_to_video",
        template="image_to_video_wan",
        insertions=(Insertion(37, (54,), (870, 70), WAN),),
        shift=Shift(860, COLUMN),
        group=(860, 0, COLUMN - 20, GROUP_HEIGHT),
        note=notes.WAN21_I2V,
        note_box=(870, 500, COLUMN - 40, NOTE_HEIGHT),
        widgets={
            (50, 0): 640,
            (50, 1): 640,
            (50, 2): 81,
            (3, 1): FIXED,
            (52, 0): "example.png",
            (6, 0): PICTURE_PROMPT,
        },
        lower={56: 40},
        picture=Picture(
            "Wan 2.1",
            "Image to video",
            "640 x 640, 81 frames",
            "meadow",
            0.75,
            (None,) * 2 + (0.75,) * 18,
        ),
    ),
    Spec(
        stem="wan2.2_14B_image_to_video_4_steps",
        template="video_wan2_2_14B_i2v",
        insertions=(
            Insertion(116, (104,), (1900, -250), EXPERT, "Rectified SpaAttn (high noise)", 400),
            Insertion(117, (103,), (1900, 210), EXPERT, "Rectified SpaAttn (low noise)", 400),
        ),
        shift=Shift(2020, 420),
        group=(1880, -330, 440, 960),
        root_shift=Shift(430, 440),
        schedules=(
            Schedule(
                "high_noise_schedule",
                "High noise: the first two steps",
                {"steps": "off, 0.6", "preview_steps": 2},
                (0,),
                (430, -420),
                (430, -60, 400, 260),
            ),
            Schedule(
                "low_noise_schedule",
                "Low noise: the last two steps",
                {"steps": "0.8, 0.8", "preview_steps": 2},
                (1,),
                (430, 270),
                (430, 630, 400, 260),
            ),
        ),
        note=notes.WAN22_I2V,
        note_box=(-40, 120, 430, 660),
        # Instance values by position: prompt, width, height, ..., turbo mode (the 4-step LoRA).
        widgets={
            (97, 0): "example.png",
            (129, 0): PICTURE_PROMPT,
            (129, 11): True,
            (86, 2): FIXED,
        },
        picture=Picture(
            "Wan 2.2 14B",
            "Image to video, 4 steps",
            "two experts",
            "dusk",
            0.8,
            (None, 0.6, 0.8, 0.8),
            split=2,
        ),
    ),
    Spec(
        stem="wan2.2_14B_text_to_video",
        template="video_wan2_2_14B_t2v",
        insertions=(
            Insertion(120, (82,), (2315, -140), EXPERT, "Rectified SpaAttn (high noise)", 400),
            Insertion(121, (86,), (2315, 320), EXPERT, "Rectified SpaAttn (low noise)", 400),
        ),
        shift=Shift(2490, 270),
        group=(2295, -220, 440, 960),
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
        widgets={(81, 2): FIXED},
        picture=Picture(
            "Wan 2.2 14B",
            "Text to video",
            "two experts, one ramp",
            "city",
            0.7,
            (None,) * 3 + tuple(0.6 + 0.2 * (i / 20 - 0.12) / 0.88 for i in range(3, 20)),
            split=10,
        ),
    ),
    Spec(
        stem="wan2.2_5B_text_to_video",
        template="video_wan2_2_5B_ti2v",
        insertions=(Insertion(37, (48,), (860, 50), WAN),),
        shift=Shift(850, COLUMN),
        group=(850, -20, COLUMN - 20, GROUP_HEIGHT),
        note=notes.WAN22_5B,
        note_box=(860, 480, COLUMN - 40, NOTE_HEIGHT),
        widgets={(3, 1): FIXED},
        lower={58: 40},
        picture=Picture(
            "Wan 2.2 5B",
            "Text or image to video",
            "1280 x 704, 121 frames",
            "station",
            0.75,
            (None,) * 2 + (0.75,) * 18,
        ),
    ),
    Spec(
        stem="hunyuan_video_text_to_video",
        template="hunyuan_video_text_to_video",
        # Published for HunyuanVideo: 0.8, no exact steps or layers at 50 steps. At 20 steps each
        # one counts for more, so the first stays exact.
        insertions=(Insertion(12, (67, 17), (820, 0), {"sparsity": 0.8, "start_percent": 0.04}),),
        shift=Shift(810, COLUMN),
        group=(810, -70, COLUMN - 20, GROUP_HEIGHT),
        note=notes.HUNYUAN,
        note_box=(820, 430, COLUMN - 40, NOTE_HEIGHT),
        widgets={(25, 1): FIXED},
        lower={80: 40},
        picture=Picture(
            "HunyuanVideo",
            "Text to video",
            "848 x 480, 73 frames + text",
            "alps",
            0.8,
            (None,) + (0.8,) * 19,
        ),
    ),
    Spec(
        stem="hunyuan_video_1.5_text_to_video",
        template="video_hunyuan_video_1.5_720p_t2v",
        # Nothing is published for 1.5: HunyuanVideo's sparsity with one more exact step.
        insertions=(Insertion(12, (105,), (250, 50), {"sparsity": 0.8, "start_percent": 0.08}),),
        shift=Shift(240, COLUMN, above_y=1220),
        group=(240, -20, COLUMN - 20, GROUP_HEIGHT),
        note=notes.HUNYUAN15,
        lower={117: 20},
        note_box=(250, 480, COLUMN - 40, NOTE_HEIGHT),
        picture=Picture(
            "HunyuanVideo 1.5",
            "Text to video, 720p",
            "1280 x 720, 121 frames",
            "harbour",
            0.8,
            (None,) * 2 + (0.8,) * 18,
        ),
    ),
)
