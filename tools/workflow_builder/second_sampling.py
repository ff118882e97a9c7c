"""The two workflows that sample twice from one seed: dense beside sparse, and measured, then tuned.

Both start from the template for Wan 2.1 with this pack's node in place.
"""

from __future__ import annotations

from typing import Any

from . import nodes, notes
from .graph import Graph, Workflow
from .layout import Fold, Ref

Json = dict[str, Any]

# Nodes of the template.
LOADER, VAE_LOADER, POSITIVE, NEGATIVE, LATENT = 37, 39, 6, 7, 40
SHIFT, SAMPLER, DECODER, VIDEO = 48, 3, 8, 49

OWN = ("steps", "cfg", "sampler_name", "scheduler")
"""Widgets of a KSampler that the node around it shows, besides the seed."""

BOTH = Fold(
    "both",
    "Dense and sparse sampling",
    (SHIFT, SAMPLER, DECODER, "shift", "sampler", "decoder", "stitch", VIDEO),
    {name: ((SAMPLER, name), ("sampler", name)) for name in ("seed", *OWN)}
    | {"shift": ((SHIFT, "shift"), ("shift", "shift"))},
    {
        (SHIFT, "model"): "sparse_model",
        ("shift", "model"): "dense_model",
        (SAMPLER, "LATENT"): "sparse_latent",
    },
)
"""One set of widgets for both samplings: whatever differs is the attention."""

TUNING = (
    Fold(
        "measured",
        "Sampling, measured",
        (SHIFT, SAMPLER, DECODER, VIDEO),
        {name: ((SAMPLER, name),) for name in OWN} | {"shift": ((SHIFT, "shift"),)},
    ),
    Fold(
        "tuned",
        "Sampling with the profile",
        ("shift", "sampler", "decoder", "video"),
        {name: (("sampler", name),) for name in OWN} | {"shift": (("shift", "shift"),)},
    ),
)


def compare(workflow: Workflow, attention: list[Json], version: str) -> dict[Ref, Json]:
    """Add a dense sampling, and stitch its clip to the sparse one."""
    root = workflow.root
    root.node(SAMPLER)["title"] = "KSampler (sparse)"
    added = _second_sampling(root, root.node(LOADER), "MODEL", "KSampler (dense)", version)
    stitch = root.add_node(
        nodes.make("ImageStitch", (0, 0), version, title="Dense left, sparse right")
    )
    root.disconnect(VIDEO, "images")
    root.wire(added["decoder"], "IMAGE", stitch, "image1")
    root.wire(root.node(DECODER), "IMAGE", stitch, "image2")
    root.wire(stitch, "IMAGE", root.node(VIDEO), "images")
    return added | {"stitch": stitch}


def tune(workflow: Workflow, attention: list[Json], version: str) -> dict[Ref, Json]:
    """Add the probe, its result, and a second sampling with the profile that comes of it."""
    root = workflow.root
    root.node(SAMPLER)["title"] = "KSampler (measured)"
    probe = nodes.make("RectifiedSpaAttnProbe", (0, 0), version)
    root.insert_after(attention[0]["id"], probe, (SHIFT,))
    values, title = nodes.values_of(attention[0]), f"{nodes.TITLE} with the profile"
    ours: dict[Ref, Json] = {
        "result": nodes.make("RectifiedSpaAttnProbeResult", (0, 0), version),
        "save": nodes.make("RectifiedSpaAttnSaveProfile", (0, 0), version),
        "patched": nodes.make("RectifiedSpaAttn", (0, 0), version, values, title),
        "report": nodes.make("RectifiedSpaAttnReport", (0, 0), version),
        "load": nodes.make("RectifiedSpaAttnLoadProfile", (0, 0), version),
    }
    for node in ours.values():
        root.add_node(node)
    ours["load"]["mode"] = nodes.MUTED
    root.wire(root.node(LOADER), "MODEL", ours["patched"], "model")
    again = "KSampler (with the profile)"
    added = _second_sampling(root, ours["patched"], "model", again, version)
    seed = {"value": nodes.values_of(root.node(SAMPLER))["seed"]}
    prefix = {"filename_prefix": "video/with_profile"}
    added |= {
        "seed": nodes.make("PrimitiveInt", (0, 0), version, seed, "Seed for both"),
        "video": nodes.make("CreateVideo", (0, 0), version),
        "saver": nodes.make("SaveVideo", (0, 0), version, prefix, "Save Video (with the profile)"),
    }
    for name in ("seed", "video", "saver"):
        root.add_node(added[name])
    for sampler in (root.node(SAMPLER), added["sampler"]):
        nodes.widget_input(sampler, "seed", "INT")
        root.wire(added["seed"], "INT", sampler, "seed")
    for source, output, target, name in (
        (probe, "model", ours["result"], "model"),
        (root.node(SAMPLER), "LATENT", ours["result"], "after"),
        (ours["result"], "profile", ours["save"], "profile"),
        (ours["save"], "profile", ours["patched"], "profile"),
        (ours["patched"], "model", ours["report"], "model"),
        (added["sampler"], "LATENT", ours["report"], "after"),
        (added["decoder"], "IMAGE", added["video"], "images"),
        (added["video"], "VIDEO", added["saver"], "video"),
    ):
        root.wire(source, output, target, name)
    later = root.add_node(nodes.note_node(notes.LATER, (0, 0), (0, 0), "The saved file"))
    return ours | added | {"probe": probe, "later": later}


def _second_sampling(
    root: Graph, source: Json, output: str, title: str, version: str
) -> dict[Ref, Json]:
    """The template's ModelSamplingSD3, KSampler and VAE Decode once more, on another model."""
    values = nodes.values_of(root.node(SAMPLER))
    shift = nodes.make("ModelSamplingSD3", (0, 0), version, nodes.values_of(root.node(SHIFT)))
    sampler = nodes.make("KSampler", (0, 0), version, values, title)
    decoder = nodes.make("VAEDecode", (0, 0), version)
    for node in (shift, sampler, decoder):
        root.add_node(node)
    root.wire(source, output, shift, "model")
    root.wire(shift, "MODEL", sampler, "model")
    root.wire(root.node(POSITIVE), "CONDITIONING", sampler, "positive")
    root.wire(root.node(NEGATIVE), "CONDITIONING", sampler, "negative")
    root.wire(root.node(LATENT), "LATENT", sampler, "latent_image")
    root.wire(sampler, "LATENT", decoder, "samples")
    root.wire(root.node(VAE_LOADER), "VAE", decoder, "vae")
    return {"shift": shift, "sampler": sampler, "decoder": decoder}
