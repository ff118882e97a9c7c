"""The graph of `compare_dense_and_sparse`: two samplings from one seed, stitched side by side."""

from __future__ import annotations

from typing import Any

from . import nodes
from .graph import Workflow
from .specs import Box, Report

Json = dict[str, Any]

# Nodes of the template.
LOADER, VAE_LOADER, POSITIVE, NEGATIVE, LATENT = 37, 39, 6, 7, 40
SHIFT, SAMPLER, DECODER, VIDEO, SAVER = 48, 3, 8, 49, 50

RIGHT, DENSE_Y, SPARSE_Y = 1270, 40, 600
GROUPS: dict[str, Box] = {
    "Seed for both": (300, 460, 445, 200),
    "Sparse attention": (770, 530, 480, 620),
    "Left: full attention": (1260, -30, 600, 530),
    "Right: Rectified SpaAttn": (1260, 530, 600, 570),
    "Side by side": (1890, -30, 860, 700),
    "What really ran": (1890, 690, 1030, 1230),
}
NOTE: Box = (-130, 720, 875, 600)
# Its model link runs below the samplers, so that it does not seem to come from VAE Decode.
REPORTS = (
    Report(
        SAMPLER,
        (1905, 760),
        title="Rectified SpaAttn Report",
        model_route=((1255, 1125), (1876, 1125)),
    ),
)


def extend(workflow: Workflow, attention: list[Json], version: str) -> None:
    """Add the dense half and what joins both."""
    root = workflow.root
    loader, vae, sampler, video = map(root.node, (LOADER, VAE_LOADER, SAMPLER, VIDEO))
    values = dict(zip(nodes.CORE["KSampler"].widgets, sampler["widgets_values"], strict=True))

    seed = root.add_node(
        nodes.make("PrimitiveInt", (330, 530), version, {"value": values["seed"]}, "Seed for both")
    )
    shift = nodes.make("ModelSamplingSD3", (RIGHT, DENSE_Y), version)
    shift["widgets_values"] = list(root.node(SHIFT)["widgets_values"])
    dense = nodes.make("KSampler", (RIGHT, DENSE_Y + 120), version, values, "KSampler (dense)")
    decoder = nodes.make("VAEDecode", (RIGHT + 350, DENSE_Y), version)
    for node in (shift, dense, decoder):
        root.add_node(node)
    root.wire(loader, "MODEL", shift, "model")
    root.wire(shift, "MODEL", dense, "model")
    root.wire(root.node(POSITIVE), "CONDITIONING", dense, "positive")
    root.wire(root.node(NEGATIVE), "CONDITIONING", dense, "negative")
    root.wire(root.node(LATENT), "LATENT", dense, "latent_image")
    root.wire(dense, "LATENT", decoder, "samples")
    root.wire(vae, "VAE", decoder, "vae")
    # Above the prompts, and between them and the note.
    root.route(shift["inputs"][0]["link"], ((290, -50), (1250, -50)))
    root.route(attention[0]["inputs"][0]["link"], ((290, 675), (757, 675)))
    sampler["title"] = "KSampler (sparse)"
    for each in (dense, sampler):
        nodes.widget_input(each, "seed", "INT")
        root.wire(seed, "INT", each, "seed")

    stitch = root.add_node(
        nodes.make("ImageStitch", (1910, 40), version, title="Dense left, sparse right")
    )
    root.disconnect(VIDEO, "images")
    root.wire(decoder, "IMAGE", stitch, "image1")
    root.wire(root.node(DECODER), "IMAGE", stitch, "image2")
    root.wire(stitch, "IMAGE", video, "images")

    places = {
        SHIFT: (RIGHT, SPARSE_Y),
        SAMPLER: (RIGHT, SPARSE_Y + 120),
        DECODER: (RIGHT + 350, SPARSE_Y),
        VIDEO: (1910, 320),
        SAVER: (2240, 40),
    }
    for node_id, place in places.items():
        root.node(node_id)["pos"] = list(place)
    root.node(SAVER)["size"] = [490, 600]
