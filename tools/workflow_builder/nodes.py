"""The nodes that the builder adds, in the form a workflow file stores them.

Those of this pack come from the table in `nodes/inputs.py`; a file keeps widget values by position,
in the order of the inputs there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rectified_spaattn.nodes.inputs import NODES, Node

Json = dict[str, Any]
Sockets = tuple[tuple[str, str], ...]
Point = tuple[float, float]
Box = tuple[float, float, float, float]

PACK_ID = "rectified-spaattn"
TITLE = "Rectified SpaAttn"

# The front end's own "cyan" preset.
NODE_COLORS = {"color": "#233", "bgcolor": "#355"}
# The palette's own, on which texts and links are legible; without an entry a note is yellow.
NOTE_COLORS = {"color": "", "bgcolor": ""}
# Its titles have to be legible on dark and light: the page takes the color for both.
GROUP_COLOR = "#488"

# Without their pictures: the nodes grow when there is something to show.
REPORT_SIZE: Point = (320, 90)
RESULT_SIZE: Point = (330, 150)

MUTED = 2
"""Mode of a node that the front end leaves out of what it sends."""


@dataclass(frozen=True)
class Kind:
    """What a file has to hold of one node class.

    `inputs` and `outputs` are (name, type) of the sockets, those in `optional` may stay empty;
    `widgets` are names and default values in stored order.
    """

    inputs: Sockets = ()
    outputs: Sockets = ()
    widgets: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    size: Point = (300, 100)


SIZES: Mapping[str, Point] = {
    "RectifiedSpaAttn": (460, 374),
    "RectifiedSpaAttnOptions": (460, 320),
    "RectifiedSpaAttnSchedule": (400, 366),
    "RectifiedSpaAttnReport": REPORT_SIZE,
    "RectifiedSpaAttnProbe": (460, 158),
    "RectifiedSpaAttnProbeResult": RESULT_SIZE,
    "RectifiedSpaAttnSaveProfile": (480, 160),
    "RectifiedSpaAttnLoadProfile": (340, 110),
    "RectifiedSpaAttnBenchmark": (1000, 720),
}
"""Of the nodes of this pack, with room for what they show after a run."""


def _kind(node: Node) -> Kind:
    sockets = [each for each in node.inputs if not each.is_widget]
    return Kind(
        tuple((each.name, each.kind) for each in sockets),
        tuple((each.name, each.kind) for each in node.outputs),
        node.defaults,
        tuple(each.name for each in sockets if each.optional),
        SIZES[node.node_id],
    )


OURS: Mapping[str, Kind] = {name: _kind(node) for name, node in NODES.items()}

CORE: Mapping[str, Kind] = {
    "ModelSamplingSD3": Kind(
        (("model", "MODEL"),), (("MODEL", "MODEL"),), {"shift": 8.0}, size=(315, 60)
    ),
    "KSampler": Kind(
        (
            ("model", "MODEL"),
            ("positive", "CONDITIONING"),
            ("negative", "CONDITIONING"),
            ("latent_image", "LATENT"),
        ),
        (("LATENT", "LATENT"),),
        {
            "seed": 0,
            "control_after_generate": "fixed",
            "steps": 30,
            "cfg": 6.0,
            "sampler_name": "uni_pc",
            "scheduler": "simple",
            "denoise": 1.0,
        },
        size=(315, 262),
    ),
    "VAEDecode": Kind(
        (("samples", "LATENT"), ("vae", "VAE")), (("IMAGE", "IMAGE"),), size=(210, 46)
    ),
    "ImageStitch": Kind(
        (("image1", "IMAGE"), ("image2", "IMAGE")),
        (("IMAGE", "IMAGE"),),
        {
            "direction": "right",
            "match_image_size": True,
            "spacing_width": 8,
            "spacing_color": "black",
        },
        ("image2",),
        (300, 150),
    ),
    "CreateVideo": Kind(
        (("images", "IMAGE"), ("audio", "AUDIO")),
        (("VIDEO", "VIDEO"),),
        {"fps": 16.0},
        ("audio",),
        (300, 110),
    ),
    "SaveVideo": Kind(
        (("video", "VIDEO"),),
        (),
        {"filename_prefix": "video/ComfyUI", "format": "auto", "codec": "auto"},
        size=(480, 440),
    ),
    "PrimitiveInt": Kind(
        (), (("INT", "INT"),), {"value": 0, "control_after_generate": "fixed"}, size=(315, 110)
    ),
    "PreviewImage": Kind((("images", "IMAGE"),), size=(480, 480)),
}


WIDGETS: Mapping[str, Mapping[str, str | None]] = {
    "CLIPTextEncode": {"text": "STRING"},
    "EmptyHunyuanLatentVideo": {"width": "INT", "height": "INT", "length": "INT"},
    "EmptyHunyuanVideo15Latent": {"width": "INT", "height": "INT", "length": "INT"},
    "WanImageToVideo": {"width": "INT", "height": "INT", "length": "INT"},
    "WanFirstLastFrameToVideo": {"width": "INT", "height": "INT", "length": "INT"},
    "Wan22ImageToVideoLatent": {"width": "INT", "height": "INT", "length": "INT"},
    "ModelSamplingSD3": {"shift": "FLOAT"},
    "FluxGuidance": {"guidance": "FLOAT"},
    "CFGGuider": {"cfg": "FLOAT"},
    "RandomNoise": {"noise_seed": "INT"},
    "BasicScheduler": {"scheduler": "COMBO", "steps": "INT"},
    "KSampler": {
        "seed": "INT",
        "control_after_generate": None,
        "steps": "INT",
        "cfg": "FLOAT",
        "sampler_name": "COMBO",
        "scheduler": "COMBO",
    },
    "KSamplerAdvanced": {
        "add_noise": None,
        "noise_seed": "INT",
        "control_after_generate": None,
        "steps": "INT",
        "cfg": "FLOAT",
        "sampler_name": "COMBO",
        "scheduler": "COMBO",
        "start_at_step": "INT",
        "end_at_step": "INT",
    },
    "PrimitiveInt": {"value": "INT"},
}
"""Widgets that a subgraph around such a node can show: name and type, in stored order."""


def kind_of(node_type: str) -> Kind:
    """What a file has to hold of a node of `OURS` or `CORE`."""
    return OURS[node_type] if node_type in OURS else CORE[node_type]


def make(
    node_type: str,
    position: Point,
    version: str,
    values: Mapping[str, Any] | None = None,
    title: str | None = None,
    size: Point | None = None,
) -> Json:
    """A node of `OURS` or `CORE` with its default values, overridden by `values`.

    `version` is this pack's, for the nodes of `OURS`. `ValueError` when a value has no widget.
    """
    is_ours = node_type in OURS
    kind = kind_of(node_type)
    origin = {"cnr_id": PACK_ID, "ver": version}
    if not is_ours:
        origin = {"cnr_id": "comfy-core", "ver": "0.8.0"}
    node: Json = {
        "id": 0,
        "type": node_type,
        "pos": list(position),
        "size": list(size or kind.size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [_socket(name, of, name in kind.optional) for name, of in kind.inputs],
        "outputs": [{"name": name, "type": of, "links": []} for name, of in kind.outputs],
        "properties": origin | {"Node name for S&R": node_type},
        "widgets_values": _positional(kind.widgets, values or {}),
    }
    if title is not None:
        node["title"] = title
    return node | (NODE_COLORS if is_ours else {})


def values_of(node: Json) -> dict[str, Any]:
    """The widget values of a node of these kinds, by name."""
    kind = kind_of(node["type"])
    return dict(zip(kind.widgets, node["widgets_values"], strict=True))


def note_node(text: str, position: Point, size: Point, title: str) -> Json:
    """A `MarkdownNote`, which only the front end knows; the server never sees it."""
    return {
        "id": 0,
        "type": "MarkdownNote",
        "pos": list(position),
        "size": list(size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": title,
        "properties": {},
        "widgets_values": [text],
    } | NOTE_COLORS


def widget_input(node: Json, name: str, widget_type: str) -> None:
    """List the widget `name` among the inputs of `node`, so that a link can drive it."""
    node["inputs"].append(
        {"name": name, "type": widget_type, "widget": {"name": name}, "link": None}
    )


def _socket(name: str, of: str, is_optional: bool) -> Json:
    shape = {"shape": 7} if is_optional else {}
    return {"name": name, "type": of, "link": None} | shape


def _positional(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> list[Any]:
    unknown = set(values) - set(defaults)
    if unknown:
        raise ValueError(f"widgets {sorted(unknown)} do not exist: one of {list(defaults)}")
    return list((dict(defaults) | dict(values)).values())
