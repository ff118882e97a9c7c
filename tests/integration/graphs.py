"""API-format ComfyUI graphs for the tests, wired like the official templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from . import tiny_models

Link = list  # [node id, output slot]
ModelPatch = Callable[["Graph", Link], Link]
Start = Callable[["Graph", Link, Link, Link], tuple[Link, Link, Link]]

STEPS = 3


class Graph:
    """Builds a prompt dictionary node by node."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict] = {}

    def add(self, class_type: str, **inputs) -> Link:
        """Add a node; returns the link to its first output."""
        node_id = str(len(self.nodes) + 1)
        self.nodes[node_id] = {"class_type": class_type, "inputs": inputs}
        return [node_id, 0]


@dataclass(frozen=True)
class Scene:
    """One video model family as a test generates with it.

    experts: checkpoint names, two for Wan 2.2 A14B. latent: (T, H, W) in latent voxels.
    extras: further conditioning (see test_nodes), here without batch-independent defaults.
    sampler: "ksampler", "experts" (two KSamplerAdvanced), "basic_guider" or "cfg_guider".
    shift: of ModelSamplingSD3; None for a model that has another node for it. audio: frames of an
    audio latent that is sampled along. needs: node class without which a ComfyUI does not know the
    model.
    """

    experts: tuple[str, ...]
    latent: tuple[int, int, int]
    sampler: str = "ksampler"
    extras: dict = field(default_factory=dict)
    text_tokens: int = 40
    shift: float | None = 5.0
    audio: int = 0
    needs: str = ""

    @property
    def model(self) -> tiny_models.TinyModel:
        return tiny_models.MODELS[self.experts[0]]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along (T, H, W), rounded up where the patch does not divide the latent."""
        t, h, w = (-(-size // p) for size, p in zip(self.latent, self.model.patch, strict=True))
        return t, h, w

    @property
    def forwards(self) -> int:
        """Forward passes of a run at cfg 1, over all experts."""
        return STEPS * len(self.experts) if self.sampler == "experts" else STEPS


WAN_LATENT = (5, 22, 26)  # 715 tokens: no multiple of any block length
WAN_IMAGE = {"concat_latent_image": [1, 16, *WAN_LATENT], "concat_mask": [1, 1, *WAN_LATENT]}
HUNYUAN15_LATENT = (5, 11, 13)
LTX_LATENT = (5, 11, 13)

H3 = {"shift": None, "audio": 13, "needs": "MiniMaxH3ImageToVideo"}
H3_KEYFRAMES = [{"resolved_frame_index": 0, "latent": [1, 24, 1, 22, 26]}]
H3_REFERENCES = [
    {"kind": "image", "latent_h": 8, "latent_w": 6, "latent": [1, 24, 1, 8, 6]},
    {
        "kind": "video_audio",
        "latent_t": 2,
        "latent_h": 6,
        "latent_w": 8,
        "latent": [1, 24, 2, 6, 8],
        "ref_audio_t": 7,
        "audio_latent": [1, 32, 2, 7],
    },
    {"kind": "audio", "ref_audio_t": 5, "audio_latent": [1, 32, 2, 5]},
]

SCENES: dict[str, Scene] = {
    "wan21_t2v": Scene(("wan21_t2v",), WAN_LATENT),
    "wan21_i2v": Scene(
        ("wan21_i2v",), WAN_LATENT, extras={**WAN_IMAGE, "clip_vision": [1, 257, 1280]}
    ),
    "wan22_t2v_a14b": Scene(("wan22_t2v_high", "wan22_t2v_low"), WAN_LATENT, "experts"),
    "wan22_i2v_a14b": Scene(
        ("wan22_i2v_high", "wan22_i2v_low"), WAN_LATENT, "experts", extras=WAN_IMAGE
    ),
    "wan21_flf": Scene(
        ("wan21_flf",),
        WAN_LATENT,
        extras={**WAN_IMAGE, "clip_vision": [1, 2 * tiny_models.WAN_CLIP_TOKENS, 1280]},
    ),
    "wan22_5b": Scene(("wan22_5b",), WAN_LATENT, shift=8.0),
    # A source video of the same size and a reference image of another.
    "bernini_r": Scene(
        ("wan22_t2v_high", "wan22_t2v_low"),
        WAN_LATENT,
        "experts",
        {"context_latents": [[1, 16, *WAN_LATENT], [1, 16, 1, 9, 14]]},
        needs="BerniniConditioning",
    ),
    # Two references, each with a mask, and a pose video of half the size.
    "wan_scail2": Scene(
        ("wan_scail2",),
        WAN_LATENT,
        extras={
            "clip_vision": [1, tiny_models.WAN_CLIP_TOKENS, 1280],
            "reference_latents": [[1, 16, 1, 22, 26], [1, 16, 1, 22, 26]],
            "ref_mask_28ch": [1, 7, 28, 22, 26],
            "pose_video_latent": [1, 16, 5, 11, 13],
            "driving_mask_28ch": [1, 5, 28, 11, 13],
            "ref_mask_flag": True,
        },
        needs="SCAIL2ColoredMask",
    ),
    "wan_vace": Scene(
        ("wan_vace",),
        WAN_LATENT,
        extras={
            "vace_frames": [[1, 32, *WAN_LATENT]],
            "vace_mask": [[1, 64, *WAN_LATENT]],
            "vace_strength": [1.0],
        },
        shift=8.0,
    ),
    "hunyuan_t2v": Scene(
        ("hunyuan_t2v",), WAN_LATENT, "basic_guider", {"guidance": 6.0}, 37, shift=7.0
    ),
    "hunyuan_i2v": Scene(("hunyuan_i2v",), WAN_LATENT, "basic_guider", WAN_IMAGE, 37, shift=7.0),
    "hunyuan15_t2v": Scene(
        ("hunyuan15",),
        HUNYUAN15_LATENT,
        "cfg_guider",
        {"conditioning_byt5small": [1, 11, tiny_models.BYT5_WIDTH]},
        37,
        shift=7.0,
    ),
    "hunyuan15_i2v": Scene(
        ("hunyuan15",),
        HUNYUAN15_LATENT,
        "cfg_guider",
        {
            "clip_vision": [1, 49, tiny_models.HUNYUAN15_VISION_WIDTH],
            "concat_latent_image": [1, 32, *HUNYUAN15_LATENT],
            "concat_mask": [1, 1, *HUNYUAN15_LATENT],
        },
        37,
        shift=7.0,
    ),
    "minimax_h3_t2v": Scene(("minimax_h3",), WAN_LATENT, **H3),
    "minimax_h3_i2v": Scene(
        ("minimax_h3",), WAN_LATENT, extras={"minimax_keyframes": H3_KEYFRAMES}, **H3
    ),
    "minimax_h3_r2v": Scene(
        ("minimax_h3",), WAN_LATENT, extras={"minimax_refs": H3_REFERENCES}, **H3
    ),
    "ltx_video": Scene(
        ("ltx_video",),
        LTX_LATENT,
        "cfg_guider",
        {"frame_rate": 25, "attention_mask": [40, 5]},
        shift=None,
    ),
    "ltx_av": Scene(
        ("ltx_av",), LTX_LATENT, "cfg_guider", {"frame_rate": 25}, shift=None, audio=33
    ),
}


def unpatched(graph: Graph, model: Link) -> Link:
    """The model as it is."""
    return model


OPTIONS = {
    "rectification": "paper",
    "tail_keys": "auto",
    "precision": "auto",
    "token_order": "gilbert",
    "top_p": 0.0,
    "dense_blocks": "",
    "min_tokens": 0,
    "verbose": True,
    "backend": "reference",
}


def rectified(**settings) -> ModelPatch:
    """Our node and its options with test defaults: no token gate, small blocks, a report logged.

    `settings` are inputs of either node.
    """
    inputs = {
        "enabled": True,
        "preset": "custom",
        "sparsity": 0.75,
        "block_size": "64",
        "start_percent": 0.0,
        "end_percent": 1.0,
    }
    options = {name: settings.pop(name, default) for name, default in OPTIONS.items()}
    inputs |= settings

    def patch(graph: Graph, model: Link) -> Link:
        link = graph.add("RectifiedSpaAttnOptions", **options)
        return graph.add("RectifiedSpaAttn", model=model, options=link, **inputs)

    return patch


def scheduled(schedule: dict, **settings) -> ModelPatch:
    """Our node with a schedule node connected."""
    inputs = {
        "start_sparsity": 0.6,
        "end_sparsity": 0.8,
        "curve": "linear",
        "start_percent": 0.1,
        "end_percent": 1.0,
        "steps": "",
        "dense_steps": "",
        "preview_steps": 20,
        **schedule,
    }

    def patch(graph: Graph, model: Link) -> Link:
        node = graph.add("RectifiedSpaAttnSchedule", **inputs)
        return rectified(schedule=node, **settings)(graph, model)

    return patch


def model_node(class_type: str, **inputs) -> ModelPatch:
    """Any other node that takes and returns a model."""

    def patch(graph: Graph, model: Link) -> Link:
        return graph.add(class_type, model=model, **inputs)

    return patch


def chain(*patches: ModelPatch) -> ModelPatch:
    """Several model nodes one after the other."""

    def patch(graph: Graph, model: Link) -> Link:
        for each in patches:
            model = each(graph, model)
        return model

    return patch


def sampled(
    scene: Scene,
    patch: ModelPatch = unpatched,
    *,
    after_shift: ModelPatch = unpatched,
    cfg: float = 1.0,
    conditioning: ModelPatch = unpatched,
    negative_tokens: int | None = None,
    extras: dict | None = None,
    latent: tuple[int, int, int] | None = None,
    batch: int = 1,
    steps: int = STEPS,
    sampler: str = "euler",
    start: Start | None = None,
) -> dict:
    """The graph that samples a scene and saves its latent, and that of the audio as "audio".

    `patch` sits between loader and ModelSamplingSD3, as the templates would have our node;
    `after_shift` follows ModelSamplingSD3. `conditioning` is applied to the positive text,
    `start` to both texts and the empty video latent.
    """
    graph = Graph()
    spec = json.dumps(scene.extras if extras is None else extras)
    width = scene.model.text_width

    def text(tokens: int, seed: int) -> Link:
        return graph.add("RSPATestConditioning", tokens=tokens, width=width, seed=seed, extras=spec)

    positive = conditioning(graph, text(scene.text_tokens, 100))
    negative = text(negative_tokens or scene.text_tokens, 200)
    is_ltx = scene.experts[0].startswith("ltx")
    frames, height, latent_width = latent or scene.latent
    empty = graph.add(
        "RSPATestLatent",
        channels=scene.model.latent_channels,
        frames=frames,
        height=height,
        width=latent_width,
        batch=batch,
        audio=0 if is_ltx else scene.audio,
        nonce=0,
    )
    if start is not None:
        positive, negative, empty = start(graph, positive, negative, empty)
    if is_ltx and scene.audio:
        audio = graph.add("RSPATestAudioLatent", frames=scene.audio, batch=batch)
        empty = graph.add("LTXVConcatAVLatent", video_latent=empty, audio_latent=audio)

    def load(name: str) -> tuple[Link, Link]:
        """Patched model before and after the sampling shift."""
        model = graph.add("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default")
        model = patch(graph, model)
        shifted = model
        if is_ltx:
            shifted = graph.add("ModelSamplingLTXV", model=model, max_shift=2.05, base_shift=0.95)
        elif scene.shift is not None:
            shifted = graph.add("ModelSamplingSD3", model=model, shift=scene.shift)
        return model, after_shift(graph, shifted)

    conds = {"positive": positive, "negative": negative}
    if scene.sampler == "ksampler":
        _, model = load(scene.experts[0])
        result = graph.add(
            "KSampler", model=model, latent_image=empty, seed=7, steps=steps, cfg=cfg,
            sampler_name=sampler, scheduler="simple", denoise=1.0, **conds,
        )  # fmt: skip
    elif scene.sampler == "experts":
        result = _two_experts(graph, scene, load, conds, empty, cfg, steps, sampler)
    else:
        model, shifted = load(scene.experts[0])
        result = _custom_advanced(graph, scene, model, shifted, conds, empty, cfg, steps, sampler)
    if scene.audio:
        result = graph.add("LTXVSeparateAVLatent", av_latent=result)
        graph.add("RSPATestSaveLatent", latent=[result[0], 1], name="audio")
    graph.add("RSPATestSaveLatent", latent=result, name="latent")
    return graph.nodes


def _two_experts(graph, scene, load, conds, empty, cfg, steps, sampler) -> Link:
    """Wan 2.2 A14B: the high-noise expert starts, the low-noise expert finishes."""
    total = 2 * steps
    result = empty
    for index, name in enumerate(scene.experts):
        first = index == 0
        result = graph.add(
            "KSamplerAdvanced",
            model=load(name)[1],
            latent_image=result,
            add_noise="enable" if first else "disable",
            noise_seed=7 if first else 0,
            steps=total,
            cfg=cfg,
            sampler_name=sampler,
            scheduler="simple",
            start_at_step=0 if first else steps,
            end_at_step=steps if first else 10000,
            return_with_leftover_noise="enable" if first else "disable",
            **conds,
        )
    return result


def _custom_advanced(graph, scene, model, shifted, conds, empty, cfg, steps, sampler) -> Link:
    """HunyuanVideo: SamplerCustomAdvanced; the scheduler reads the model before the shift."""
    if scene.sampler == "basic_guider":
        guider = graph.add("BasicGuider", model=shifted, conditioning=conds["positive"])
    else:
        guider = graph.add("CFGGuider", model=shifted, cfg=cfg, **conds)
    return graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=7),
        guider=guider,
        sampler=graph.add("KSamplerSelect", sampler_name=sampler),
        sigmas=graph.add(
            "BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0
        ),
        latent_image=empty,
    )
