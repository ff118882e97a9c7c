"""The two workflows that sample twice from one seed: dense beside sparse, and measured, then tuned.

Both start from the template for Wan 2.1 with this pack's node in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import nodes, notes
from .graph import Graph, Workflow, find_input
from .nodes import Point

Json = dict[str, Any]

# Nodes of the template.
LOADER, VAE_LOADER, POSITIVE, NEGATIVE, LATENT = 37, 39, 6, 7, 40
SHIFT, SAMPLER, DECODER, VIDEO, SAVER = 48, 3, 8, 49, 50

LOWER = 1150
"""Where the lower row of the tuning begins: a square video makes *Save Video* as high as wide."""


def compare(workflow: Workflow, attention: list[Json], version: str) -> None:
    """Add a dense sampling, and stitch its clip to the sparse one."""
    root = workflow.root
    shift, _, decoder = _second_sampling(
        root, root.node(LOADER), "MODEL", "KSampler (dense)", (1270, 40), version
    )
    root.node(SAMPLER)["title"] = "KSampler (sparse)"
    # Above the prompts, and between them and the note.
    root.route(shift["inputs"][0]["link"], ((290, -50), (1250, -50)))
    root.route(attention[0]["inputs"][0]["link"], ((290, 675), (757, 675)))
    stitch = root.add_node(
        nodes.make("ImageStitch", (1910, 40), version, title="Dense left, sparse right")
    )
    root.disconnect(VIDEO, "images")
    root.wire(decoder, "IMAGE", stitch, "image1")
    root.wire(root.node(DECODER), "IMAGE", stitch, "image2")
    root.wire(stitch, "IMAGE", root.node(VIDEO), "images")
    places = {
        SHIFT: (1270, 600),
        SAMPLER: (1270, 720),
        DECODER: (1620, 600),
        VIDEO: (1910, 320),
        SAVER: (2240, 40),
    }
    _place(root, places, (490, 600))


def tune(workflow: Workflow, attention: list[Json], version: str) -> None:
    """Add the probe, its result, and a second sampling with the profile that comes of it."""
    root = workflow.root
    probe = nodes.make("RectifiedSpaAttnProbe", (780, 460), version)
    root.insert_after(attention[0]["id"], probe, (SHIFT,))
    result = root.add_node(nodes.make("RectifiedSpaAttnProbeResult", (2140, 40), version))
    save = root.add_node(nodes.make("RectifiedSpaAttnSaveProfile", (3420, 40), version))
    root.wire(probe, "model", result, "model")
    root.wire(root.node(SAMPLER), "LATENT", result, "after")
    root.wire(result, "profile", save, "profile")
    root.node(SAMPLER)["title"] = "KSampler (measured)"

    patched = root.add_node(
        nodes.make(
            "RectifiedSpaAttn",
            (780, LOWER + 10),
            version,
            nodes.values_of(attention[0]),
            f"{nodes.TITLE} with the profile",
        )
    )
    root.wire(root.node(LOADER), "MODEL", patched, "model")
    root.wire(save, "profile", patched, "profile")
    _, again, decoder = _second_sampling(
        root, patched, "model", "KSampler (with the profile)", (1270, LOWER + 10), version
    )
    video = root.add_node(nodes.make("CreateVideo", (1620, LOWER + 130), version))
    prefix = {"filename_prefix": "video/with_profile"}
    saver = root.add_node(
        nodes.make("SaveVideo", (1620, LOWER + 310), version, prefix, size=(480, 390))
    )
    report = root.add_node(nodes.make("RectifiedSpaAttnReport", (2140, LOWER + 10), version))
    load = root.add_node(nodes.make("RectifiedSpaAttnLoadProfile", (3190, LOWER + 10), version))
    load["mode"] = nodes.MUTED
    root.wire(decoder, "IMAGE", video, "images")
    root.wire(video, "VIDEO", saver, "video")
    root.wire(patched, "model", report, "model")
    root.wire(again, "LATENT", report, "after")
    row = LOWER - 60  # the upper edge of the lower row's groups
    routes = (
        (probe, "model", ((1254, 412), (766, 412))),
        (result, "model", ((1256, 990), (2120, 990))),
        (result, "after", ((1596, -60), (2114, -60))),
        (patched, "model", ((290, 675), (752, 675))),
        (patched, "profile", ((3932, row - 58), (760, row - 58))),
        (report, "model", ((1256, row - 38), (2120, row - 38))),
        (report, "after", ((1596, row - 18), (2114, row - 18))),
    )
    for node, name, points in routes:
        root.route(find_input(node, name)[1]["link"], points)
    places = {
        SHIFT: (1270, 40),
        SAMPLER: (1270, 160),
        DECODER: (1620, 40),
        VIDEO: (1620, 160),
        SAVER: (1620, 340),
    }
    _place(root, places, (480, 390))
    root.add_node(nodes.note_node(notes.LATER, (3190, LOWER + 180), (480, 440), "The saved file"))


def _second_sampling(
    root: Graph, source: Json, output: str, title: str, place: Point, version: str
) -> tuple[Json, Json, Json]:
    """The template's ModelSamplingSD3, KSampler and VAE Decode once more, on another model.

    Both samplers get their seed from one node. The three new nodes; the first stands at `place`.
    """
    x, y = place
    values = nodes.values_of(root.node(SAMPLER))
    shift = nodes.make("ModelSamplingSD3", place, version, nodes.values_of(root.node(SHIFT)))
    sampler = nodes.make("KSampler", (x, y + 120), version, values, title)
    decoder = nodes.make("VAEDecode", (x + 350, y), version)
    seed = nodes.make(
        "PrimitiveInt", (330, 530), version, {"value": values["seed"]}, "Seed for both"
    )
    for node in (shift, sampler, decoder, seed):
        root.add_node(node)
    root.wire(source, output, shift, "model")
    root.wire(shift, "MODEL", sampler, "model")
    root.wire(root.node(POSITIVE), "CONDITIONING", sampler, "positive")
    root.wire(root.node(NEGATIVE), "CONDITIONING", sampler, "negative")
    root.wire(root.node(LATENT), "LATENT", sampler, "latent_image")
    root.wire(sampler, "LATENT", decoder, "samples")
    root.wire(root.node(VAE_LOADER), "VAE", decoder, "vae")
    for each in (root.node(SAMPLER), sampler):
        nodes.widget_input(each, "seed", "INT")
        root.wire(seed, "INT", each, "seed")
    return shift, sampler, decoder


def _place(root: Graph, places: Mapping[int, Point], saver_size: Point) -> None:
    for node_id, place in places.items():
        root.node(node_id)["pos"] = list(place)
    root.node(SAVER)["size"] = list(saver_size)
