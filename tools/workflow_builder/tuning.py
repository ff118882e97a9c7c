"""The graph of `tune_with_the_probe`: measure a model, choose, save, render with the profile."""

from __future__ import annotations

from typing import Any

from . import nodes, notes
from .graph import Graph, Workflow, find_input
from .specs import Box

Json = dict[str, Any]

# Nodes of the template.
LOADER, VAE_LOADER, POSITIVE, NEGATIVE, LATENT = 37, 39, 6, 7, 40
SHIFT, SAMPLER, DECODER, VIDEO, SAVER = 48, 3, 8, 49, 50

# Where the second row begins. A square video makes *Save Video* about as high as it is wide.
LOWER = 1150
GROUPS: dict[str, Box] = {
    "Seed for both": (300, 460, 445, 200),
    "1 - Measure while rendering": (770, -30, 1340, 1050),
    "2 - Choose and save": (2130, -30, 1790, 1050),
    "3 - Render with the profile": (770, LOWER - 60, 1340, 1240),
    "What really ran": (2130, LOWER - 60, 1030, 1240),
    "Later: the saved file": (3180, LOWER - 60, 500, 780),
}
NOTE: Box = (-130, 720, 875, 620)


def extend(workflow: Workflow, attention: list[Json], version: str) -> None:
    """Add the probe, its result, and the second render."""
    root = workflow.root
    loader, sampler = root.node(LOADER), root.node(SAMPLER)
    values = dict(zip(nodes.CORE["KSampler"].widgets, sampler["widgets_values"], strict=True))
    seed = root.add_node(
        nodes.make("PrimitiveInt", (330, 530), version, {"value": values["seed"]}, "Seed for both")
    )

    probe = nodes.make("RectifiedSpaAttnProbe", (780, 640), version, size=(460, 150))
    root.insert_after(attention[0]["id"], probe, (SHIFT,))
    result = nodes.make("RectifiedSpaAttnProbeResult", (2140, 40), version)
    save = nodes.make("RectifiedSpaAttnSaveProfile", (3420, 40), version)
    for node in (result, save):
        root.add_node(node)
    root.wire(probe, "model", result, "model")
    root.wire(sampler, "LATENT", result, "after")
    root.wire(result, "profile", save, "profile")

    sparse = dict(
        zip(nodes.OURS["RectifiedSpaAttn"].widgets, attention[0]["widgets_values"], strict=True)
    )
    patched = nodes.make(
        "RectifiedSpaAttn",
        (780, LOWER + 10),
        version,
        sparse,
        "Rectified SpaAttn (with the profile)",
    )
    shift = nodes.make("ModelSamplingSD3", (1270, LOWER + 10), version)
    shift["widgets_values"] = list(root.node(SHIFT)["widgets_values"])
    again = nodes.make(
        "KSampler", (1270, LOWER + 130), version, values, "KSampler (with the profile)"
    )
    decoder = nodes.make("VAEDecode", (1620, LOWER + 10), version)
    video = nodes.make("CreateVideo", (1620, LOWER + 130), version)
    saver = nodes.make(
        "SaveVideo",
        (1620, LOWER + 310),
        version,
        {"filename_prefix": "video/with_profile"},
        size=(480, 390),
    )
    report = nodes.make(
        "RectifiedSpaAttnReport", (2140, LOWER + 10), version, title="Rectified SpaAttn Report"
    )
    load = nodes.make("RectifiedSpaAttnLoadProfile", (3190, LOWER + 10), version)
    load["mode"] = nodes.MUTED
    for node in (patched, shift, again, decoder, video, saver, report, load):
        root.add_node(node)
    root.wire(loader, "MODEL", patched, "model")
    root.wire(save, "profile", patched, "profile")
    root.wire(patched, "model", shift, "model")
    root.wire(shift, "MODEL", again, "model")
    root.wire(root.node(POSITIVE), "CONDITIONING", again, "positive")
    root.wire(root.node(NEGATIVE), "CONDITIONING", again, "negative")
    root.wire(root.node(LATENT), "LATENT", again, "latent_image")
    root.wire(again, "LATENT", decoder, "samples")
    root.wire(root.node(VAE_LOADER), "VAE", decoder, "vae")
    root.wire(decoder, "IMAGE", video, "images")
    root.wire(video, "VIDEO", saver, "video")
    root.wire(patched, "model", report, "model")
    root.wire(again, "LATENT", report, "after")
    _route(root, probe, result, patched, report)
    sampler["title"] = "KSampler (measured)"
    for each in (sampler, again):
        nodes.widget_input(each, "seed", "INT")
        root.wire(seed, "INT", each, "seed")
    places = {
        SHIFT: (1270, 40),
        SAMPLER: (1270, 160),
        DECODER: (1620, 40),
        VIDEO: (1620, 160),
        SAVER: (1620, 340),
    }
    for node_id, place in places.items():
        root.node(node_id)["pos"] = list(place)
    root.node(SAVER)["size"] = [480, 390]
    root.add_node(nodes.note_node(notes.LATER, (3190, LOWER + 180), (480, 440), "The saved file"))


def _route(root: Graph, probe: Json, result: Json, patched: Json, report: Json) -> None:
    """Lead the long links around the nodes, between the two rows and above them."""
    row = LOWER - 60  # the upper edge of the second row's groups
    routes = (
        (probe, "model", ((1254, 592), (766, 592))),
        (result, "model", ((1256, 990), (2120, 990))),
        (result, "after", ((1596, -60), (2114, -60))),
        (patched, "model", ((290, 675), (752, 675))),
        (patched, "profile", ((3932, row - 58), (760, row - 58))),
        (report, "model", ((1256, row - 38), (2120, row - 38))),
        (report, "after", ((1596, row - 18), (2114, row - 18))),
    )
    for node, name, points in routes:
        root.route(find_input(node, name)[1]["link"], points)
