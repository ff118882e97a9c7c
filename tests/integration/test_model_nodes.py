"""Every node of ComfyUI that takes and returns a model, before and behind ours.

The list comes from the running server, so a node that a later ComfyUI brings is tried at once.
With every block kept our node must not change what another one does: the latents are those of the
same graph without ours, in either order, and the report counts sparse calls or says why not.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

from .comfy_server import GraphError, Run
from .expectations import EXACT, relative_error
from .graphs import SCENES, Graph, Link, ModelPatch, Scene, chain, rectified, sampled
from .tiny_models import write_lora

logger = logging.getLogger(__name__)

LATENT = (5, 12, 14)  # 210 tokens: four blocks
OTHER_MODEL = {"wan21_t2v": "wan22_t2v_high", "hunyuan_t2v": "hunyuan_t2v"}
"""What is merged into a model."""
RENDER = {"latent": LATENT, "cfg": 3.0}
Result = TypeVar("Result")

LEAST = {"wan21_t2v": (50, 25), "hunyuan_t2v": (50, 15)}
"""For each model: at least so many nodes must run, and so many of them must change the latents."""

ELSEWHERE = {
    "ModelSamplingSD3": "in every graph of these tests",
    "TorchCompileModel": "test_composition.py: a compilation takes half a minute",
    "TrainLoraNode": "trains for minutes, and its model is an input of LoraModelLoader",
}
"""Nodes that are not tried here, and where they are or why not."""

ACTIVE: dict[str, dict] = {
    "ComfySwitchNode": {"switch": False},
    "ContextWindowsManual": {"context_length": 3, "context_overlap": 1, "dim": 2},
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0},
    "LazyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0},
    "LTXVSpatioTemporalGuidance": {"blocks": "1"},
    "ModelMergeSimple": {"ratio": 0.5},
    "ModelMergeWAN2_1": {"blocks.0.": 0.5},
    "ModelNoiseScale": {"noise_scale": 0.5},
    "ScaleROPE": {"scale_x": 0.5, "scale_t": 0.5},
    "SelectModelDevice": {"device": "cpu"},
    "SkipLayerGuidanceDiT": {"double_layers": "0", "single_layers": "", "start_percent": 0.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "0", "single_layers": ""},
    "SkipLayerGuidanceSD3": {"layers": "0", "start_percent": 0.0, "end_percent": 1.0},
    "WanContextWindowsManual": {"context_length": 9, "context_overlap": 4},
}
"""Values with which a node does something to these small models; the others keep their defaults."""


DOES_NOT_APPLY = {
    "AnimaLLLiteApply": "cond_in_channels",  # takes networks for Anima
    "FluxKVCache": "KV_Attn_Input",  # patches Flux; HunyuanVideo has its form of call
    "FreeU": "model_channels",  # of UNets
    "FreeU_V2": "model_channels",
    "HyperTile": "hypertile_in",  # of UNets, another form of attention patch
    "HypernetworkLoader": "value_not_in_list",  # there are none for video models
    "LTXVReferenceAudio": "not enough values",  # needs LTX's audio VAE
    "QwenImageDiffsynthControlnet": "process_input_latent_image",  # takes networks for Qwen
    "RenormCFG": "in_channels",  # Lumina; HunyuanVideo has the attribute
    "SUPIRApply": "project_modules",  # takes networks for SDXL
    "SelfAttentionGuidance": "'NoneType' object has no attribute 'shape'",  # of UNets
    "TomePatchModel": "tomesd_m|is not callable",  # of UNets
    "TripoSplatSamplingPreview": "first_stage_model",  # needs the VAE of a 3D model
    "USOStyleReference": "all_hidden_states",  # takes networks for Flux
    "WanInfiniteTalkToVideo": "concat_latent_image",  # its network needs 40 heads
    "WanUni3CControlnetApply": "only works with Wan",
    "ZImageFunControlnet": "process_input_latent_image",  # takes networks for Z-Image
}
"""Nodes that end in an error on these models without ours too, and a pattern of that error."""

NO_NETWORK = "No module named 'comfy.ldm.wan.uni3c'"
"""The error of an older ComfyUI that lacks what the stand-in for MODEL_PATCH is made of."""

FORGOTTEN_MODEL = "'NoneType' object has no attribute 'model_patches_models'"
"""Uni3C's node loads all that ComfyUI has in its list of models, now and then a deleted one."""

SOCKETS = {
    "AUDIO_ENCODER_OUTPUT": "nothing",
    "CLIP": "nothing",
    "CLIP_VISION_OUTPUT": "nothing",
    "LORA_MODEL": "lora",
    "MODEL_PATCH": "uni3c",
    "VAE": "vae",
}
"""Types of sockets and the stand-ins that the test nodes have for them."""

CORE_SOCKETS = {
    "AUDIO": ("EmptyAudio", {"duration": 1.0, "sample_rate": 16000, "channels": 2}),
    "IMAGE": ("EmptyImage", {"width": 112, "height": 96, "batch_size": 1, "color": 0x808080}),
    "LATENT_OPERATION": ("LatentOperationTonemapReinhard", {"multiplier": 1.0}),
}
"""Types of sockets and the nodes of ComfyUI that have them."""

PLAIN = {"BOOLEAN": True, "INT": 1, "FLOAT": 1.0, "STRING": ""}
"""For widgets without a default."""


def takes_and_returns_a_model(info: dict) -> bool:
    """Whether a node of ComfyUI itself hands a model on, going by the server's description."""
    own = info["python_module"] == "nodes" or info["python_module"].startswith("comfy_extras.")
    return own and model_input(info) is not None and model_output(info) is not None


def model_input(info: dict) -> str | None:
    """Name of the first input that a model fits."""
    names = (name for name, spec in inputs_of(info).items() if fits_a_model(spec))
    return next(names, None)


def model_output(info: dict) -> int | None:
    """Slot of the output that carries the model; a node of any type hands its input on."""
    kinds = info["output"]
    wanted = "MODEL" if "MODEL" in kinds else "COMFY_MATCHTYPE_V3"
    return kinds.index(wanted) if wanted in kinds else None


def fits_a_model(spec: list) -> bool:
    """Whether an input takes a model."""
    kind, extra = spec[0], spec[1] if len(spec) > 1 else {}
    if kind == "COMFY_MATCHTYPE_V3":
        return extra["template"]["allowed_types"] == "*"
    return kind == "MODEL"


def inputs_of(info: dict) -> dict[str, list]:
    """The inputs that a node must have."""
    return info["input"].get("required", {})


def with_node(class_type: str, info: dict, scene: Scene) -> ModelPatch:
    """The node on a model, its other inputs filled."""
    given = ACTIVE.get(class_type, {})
    own = model_input(info)

    def patch(graph: Graph, model: Link) -> Link:
        filled = {own: model}
        specs = info["input"].get("optional", {}) | inputs_of(info)
        for name, spec in specs.items():
            if name != own and (name in given or name in inputs_of(info)):
                filled[name] = filling(graph, scene, name, spec, given.get(name))
        return [graph.add(class_type, **filled)[0], model_output(info)]

    return patch


def filling(graph: Graph, scene: Scene, name: str, spec: list, given: Any) -> Any:
    """A value or a link for one input: as given, else its default, else the least that fits."""
    kind, extra = spec[0], spec[1] if len(spec) > 1 else {}
    if fits_a_model(spec):
        other = OTHER_MODEL[scene.experts[0]]
        return graph.add("UNETLoader", unet_name=f"{other}.safetensors", weight_dtype="default")
    choices = kind if isinstance(kind, list) else extra.get("options")
    if given is None and choices:
        first = choices[0]
        return extra.get("default", first["key"] if isinstance(first, dict) else first)
    if isinstance(kind, list):
        return given
    if kind in SOCKETS:
        return graph.add("RSPATestInput", kind=SOCKETS[kind])
    if kind in CORE_SOCKETS:
        class_type, values = CORE_SOCKETS[kind]
        return graph.add(class_type, **values)
    if kind == "CONDITIONING":
        width, spec = scene.model.text_width, json.dumps(scene.extras)
        return graph.add("RSPATestConditioning", tokens=40, width=width, seed=3, extras=spec)
    return extra.get("default", PLAIN.get(kind)) if given is None else given


@pytest.mark.timeout(1200)  # three renders for each of eighty nodes
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours_first", "ours_last"])
@pytest.mark.parametrize("name", list(LEAST))
def test_every_node_with_a_model(comfy, name, ours_first):
    """Ours changes neither what another node does nor whether it fails."""
    write_lora(comfy.server.base / "models" / "loras")
    scene, ours = SCENES[name], rectified(top_p=1.0)
    plain = comfy.dense(scene, **RENDER)
    tried, acting, failing, wrong = [], [], [], []
    for class_type, info in sorted(comfy.server.get("/object_info").items()):
        if class_type in ELSEWHERE or not takes_and_returns_a_model(info):
            continue
        node = with_node(class_type, info, scene)
        both = chain(ours, node) if ours_first else chain(node, ours)
        free = comfy.server.free
        alone = attempt(lambda node=node: comfy.dense(scene, after_shift=node, **RENDER), free)
        run = attempt(lambda both=both: comfy.run(sampled(scene, after_shift=both, **RENDER)), free)
        if problem := difference(class_type, alone, run):
            wrong.append(f"{class_type}: {problem}")
        elif isinstance(alone, str):
            failing.append(class_type)
        else:
            tried.append(class_type)
            if relative_error(alone, plain) > EXACT:
                acting.append(class_type)
    logger.info("%d nodes run, these of them act: %s", len(tried), ", ".join(acting))
    logger.info("not for this model: %s", ", ".join(failing))
    assert not wrong, "\n".join(wrong)
    least_tried, least_acting = LEAST[name]
    assert len(tried) >= least_tried
    assert len(acting) >= least_acting


def attempt(make: Callable[[], Result], free: Callable[[], None], times: int = 4) -> Result | str:
    """What `make` returns, or the first line of why the server could not."""
    try:
        return make()
    except GraphError as error:
        if times > 1 and FORGOTTEN_MODEL in str(error):
            free()
            return attempt(make, free, times - 1)
        return str(error).splitlines()[0]


def difference(class_type: str, alone: torch.Tensor | str, run: Run | str) -> str | None:
    """What is wrong with a run of a node together with ours; None for nothing.

    Args:
        alone: latents of the node without ours, or why there are none.
    """
    if isinstance(alone, str):
        known = NO_NETWORK if NO_NETWORK in alone else DOES_NOT_APPLY.get(class_type)
        if known is None or not re.search(known, alone):
            return f"fails without ours, and not as in DOES_NOT_APPLY: {alone}"
        same = isinstance(run, str) and re.search(known, run)
        return None if same else f"{alone}; with ours: {run}"
    if isinstance(run, str):
        return f"fails with ours alone: {run}"
    if run.samples.shape != alone.shape or not torch.isfinite(run.samples).all():
        return f"{tuple(run.samples.shape)} where {tuple(alone.shape)} was expected, or not finite"
    if (error := relative_error(run.samples, alone)) > EXACT:
        return f"latents are {error:.1e} from those without ours"
    if not any(each["sparse"] or each["reasons"] or each["warnings"] for each in run.reports):
        return "no sparse call, and no reason why not"
    return None
