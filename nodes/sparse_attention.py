"""Node RectifiedSpaAttn: sparse, rectified attention for a video model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..rspa_core.config import MAX_SPARSITY, ORDERS, PRECISIONS, RECTIFICATIONS
from ..rspa_core.run.presets import CUSTOM, PRESET_NAMES, PRESETS
from .host import build
from .inputs import BLOCK_SIZES, MAX_MIN_TOKENS, PRECISE_TAIL_KEYS, TAIL_KEY_CHOICES, patch_settings
from .models import fingerprint_of_patcher
from .patching import SparseAttentionPatch, install
from .profiles import PROFILE_TYPE
from .schedule import SCHEDULE_TYPE


class RectifiedSpaAttn(io.ComfyNode):
    """Patches a clone of the model; the work is in `patching.py`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return build(
            io.Schema,
            node_id="RectifiedSpaAttn",
            display_name="Rectified SpaAttn",
            category="model/patch/attention",
            description=(
                "Speeds up long or large videos: each part of the picture attends exactly only to "
                "the parts that matter, and the loss is corrected. For Wan 2.1 / 2.2 and "
                "HunyuanVideo. Place it after LoRAs and before the sampler; the node shows what "
                "really ran."
            ),
            search_aliases=[
                "sparse attention",
                "SpaAttn",
                "video speed up",
                "faster Wan",
                "faster Hunyuan",
                "block sparse",
            ],
            inputs=_inputs(),
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model with sparse attention. Connect it to the sampler.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        enabled: bool,
        sparsity: float,
        block_size: str,
        start_percent: float,
        end_percent: float,
        schedule: Any = None,
        rectification: str = "precise",
        token_order: str = "gilbert",
        top_p: float = 0.0,
        dense_blocks: str = "",
        min_tokens: int = 8192,
        verbose: bool = False,
        precision: str = "auto",
        preset: str = CUSTOM,
        tail_keys: str = PRECISE_TAIL_KEYS,
        profile: Any = None,
    ) -> io.NodeOutput:
        if not enabled:
            # Untouched, whatever came before: another of these nodes upstream stays in force.
            return io.NodeOutput(model)
        settings = patch_settings(
            sparsity=sparsity,
            block_size=block_size,
            start_percent=start_percent,
            end_percent=end_percent,
            schedule=schedule,
            rectification=rectification,
            token_order=token_order,
            top_p=top_p,
            dense_blocks=dense_blocks,
            min_tokens=min_tokens,
            precision=precision,
            preset=preset,
            tail_keys=tail_keys,
            profile=profile,
            model=fingerprint_of_patcher(model),
        )
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        patch = SparseAttentionPatch(settings, node_id, verbose=verbose)
        return io.NodeOutput(install(model, patch))


def _inputs() -> list[Any]:
    """The inputs in the order in which saved workflows store them; new ones go last."""
    return [
        io.Model.Input(
            "model",
            tooltip="A Wan 2.1 / 2.2, HunyuanVideo or HunyuanVideo 1.5 model. Other models pass "
            "through and stay dense.",
        ),
        io.Boolean.Input(
            "enabled",
            default=True,
            tooltip="Off: the model passes through untouched, for comparing with and without.",
        ),
        io.Float.Input(
            "sparsity",
            default=0.75,
            min=0.0,
            max=MAX_SPARSITY,
            step=0.01,
            tooltip="Share of the video that is skipped in each attention call. Higher is faster "
            "and further from the full result. What was really computed is shown on the node.",
        ),
        io.Combo.Input(
            "block_size",
            options=list(BLOCK_SIZES),
            default="128",
            tooltip="How many tokens are kept or skipped together. 64 picks more finely and stays "
            "closer to the full result at the same sparsity; 128 has less overhead.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.2,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Sparse from here on, as a share of the sampling (0 = first step). The first "
            "steps decide composition and motion: raise this if they change too much.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Sparse up to here (1 = last step). Lower it to finish with full attention.",
        ),
        SCHEDULE_TYPE.Input(
            "schedule",
            optional=True,
            tooltip="Optional, from a Rectified SpaAttn Schedule node. Replaces sparsity, "
            "start_percent and end_percent.",
        ),
        build(
            io.Combo.Input,
            "rectification",
            options=list(RECTIFICATIONS),
            default="precise",
            advanced=True,
            tooltip="How the skipped part is made up for. precise: skipped blocks take part as "
            "averages of four groups of their tokens, the closest to the full result. paper: as "
            "published, a little faster. none: they are ignored.",
        ),
        build(
            io.Combo.Input,
            "token_order",
            options=list(ORDERS),
            default="gilbert",
            advanced=True,
            tooltip="How the video is cut into blocks. gilbert and tile keep neighbours in space "
            "and time together; raster cuts row by row and is there for comparison.",
        ),
        build(
            io.Float.Input,
            "top_p",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Keep more where attention is spread out: blocks are added until their "
            "estimated share of the attention exceeds this. 0 = off. It can only lower sparsity.",
        ),
        build(
            io.String.Input,
            "dense_blocks",
            default="",
            advanced=True,
            tooltip="Transformer blocks that keep full attention: '0, 1, -1' is the first, second "
            "and last; 'single 0-2' are HunyuanVideo's first three single blocks.",
        ),
        build(
            io.Int.Input,
            "min_tokens",
            default=8192,
            min=0,
            max=MAX_MIN_TOKENS,
            advanced=True,
            tooltip="Smaller videos stay dense, because sparse attention does not pay there. A "
            "Wan video of 832 x 480 with 81 frames has 32,760 tokens.",
        ),
        build(
            io.Boolean.Input,
            "verbose",
            default=False,
            advanced=True,
            tooltip="Log one line per model call and, at the end, all counts as JSON.",
        ),
        build(
            io.Combo.Input,
            "precision",
            options=list(PRECISIONS),
            default="auto",
            optional=True,  # prompts saved before it existed stay valid
            advanced=True,
            tooltip="Number format in which the kept parts of the video are compared. int8 is "
            "coarser, but changes the result far less than sparsity does. auto: int8 on RTX 30, "
            "40 and 50 cards, 16-bit on others. Where int8 does not pass its check, 16-bit is "
            "used.",
        ),
        io.Combo.Input(
            "preset",
            options=list(PRESET_NAMES),
            default=CUSTOM,
            optional=True,
            tooltip=f"Sets the inputs it names: {_preset_texts()}. custom: the inputs as they are. "
            "Changing one of them by hand goes back to custom.",
            extra_dict={"rspa_presets": _preset_values()},
        ),
        build(
            io.Combo.Input,
            "tail_keys",
            options=list(TAIL_KEY_CHOICES),
            default=PRECISE_TAIL_KEYS,
            optional=True,
            advanced=True,
            tooltip="With rectification = precise: how many averages stand for each skipped block. "
            "8 is closer to the full result and slower, 1 is not recommended.",
        ),
        PROFILE_TYPE.Input(
            "profile",
            optional=True,
            tooltip="Optional, from Load Profile or Probe Result: one sparsity for each "
            "transformer block in place of the one above. start_percent, end_percent or the "
            "schedule still say when.",
        ),
    ]


def _preset_values() -> dict[str, dict[str, Any]]:
    """The presets as values of the widgets, for the web page to fill in."""
    return {
        name: {
            **preset.as_dict(),
            "block_size": str(preset.block_size),
            "tail_keys": str(preset.tail_keys),
        }
        for name, preset in PRESETS.items()
    }


def _preset_texts() -> str:
    """ "quality (sparsity 0.6 from 20 %, blocks of 64, 8 averages), balanced (...)" """
    return ", ".join(
        f"{name} (sparsity {preset.sparsity:g} from {100 * preset.start_percent:g} %, blocks of "
        f"{preset.block_size}, {preset.tail_keys} averages)"
        for name, preset in PRESETS.items()
    )
