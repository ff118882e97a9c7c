"""The nodes as an artist meets them: one table of their names, inputs and outputs, as plain data.

The schemas that ComfyUI gets, the checks of values, the tests, the workflows' builder and the tests
of help pages and translations read it. Nothing here needs ComfyUI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..rspa_core.config import (
    BLOCK_SIZES,
    MAX_SPARSITY,
    ORDERS,
    PRECISIONS,
    RECTIFICATIONS,
    TAIL_KEYS,
    ConfigError,
    check_integer,
    check_number,
    shown,
)
from ..rspa_core.run.presets import PRESET_NAMES, PRESETS
from ..rspa_core.run.probe import (
    AS_THE_NODE,
    parse_probe_blocks,
    parse_probe_steps,
    parse_sparsities,
)
from ..rspa_core.run.profile import check_profile_name
from ..rspa_core.run.schedule import (
    CURVES,
    parse_dense_blocks,
    parse_dense_steps,
    parse_steps,
)

CATEGORY = "model/patch/attention"
SCHEDULE = "RSPA_SCHEDULE"
PROFILE = "RSPA_PROFILE"
OPTIONS = "RSPA_OPTIONS"
AUTO = "auto"
NO_PROFILE = "no profile chosen"
"""What Load Profile holds until a file is chosen."""


@dataclass(frozen=True)
class Input:
    """An input of a node.

    Attributes:
        name: as the node and its errors call it.
        kind: "switch", "number", "integer", "choice" or "text" for a widget; else the type of a
            socket, as "MODEL", "*" (anything) or one of ours.
        tooltip: for the artist.
        default: of a widget.
        low, high, step: of a number.
        choices: of a choice, as texts.
        parse: reads a text, and raises `ConfigError` for one that cannot be read.
        optional: whether the node runs without it.
        extra: what the web page gets beside it.
    """

    name: str
    kind: str
    tooltip: str
    default: Any = None
    low: float = 0
    high: float = 1
    step: float | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    optional: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_widget(self) -> bool:
        """Whether it has a value on the node, not only a socket."""
        return self.kind in ("switch", "number", "integer", "choice", "text")

    def checked(self, value: Any) -> Any:
        """`value` in its own type, read generously where the meaning is plain.

        Raises:
            ConfigError: it is not allowed; names the input, the value and what is allowed.
        """
        if self.kind == "switch":
            if not isinstance(value, bool):
                raise ConfigError(self.name, value, "True or False")
        elif self.kind == "number":
            check_number(self.name, value, self.low, self.high)
        elif self.kind == "integer":
            if isinstance(value, float) and math.isfinite(value) and value == int(value):
                value = int(value)
            check_integer(self.name, value, int(self.low), int(self.high))
        elif self.kind == "choice":
            text = _plain_text(value)
            if text not in self.choices:
                raise ConfigError(self.name, value, "one of " + ", ".join(self.choices))
            return text
        elif self.kind == "text":
            text = "" if value is None else _plain_text(value)
            if text is None:
                raise ConfigError(self.name, value, "a text")
            if self.parse is not None:
                self.parse(text)
            return text
        return value


def _plain_text(value: Any) -> str | None:
    """A text, or a number as one; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return shown(value)
    return None


@dataclass(frozen=True)
class Output:
    """An output of a node: its label, the type of its socket, and a tooltip."""

    name: str
    kind: str
    tooltip: str


@dataclass(frozen=True)
class Node:
    """A node as its schema describes it.

    Attributes:
        node_id: under which workflows store it.
        title: in menus and on the node.
        description: below the title in menus.
        aliases: words by which the node search finds it.
        inputs, outputs: in their order.
        is_output: whether ComfyUI runs it without a node behind it.
        speaks: whether it is told its own id, to show a line of text.
    """

    node_id: str
    title: str
    description: str
    aliases: tuple[str, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    is_output: bool = False
    speaks: bool = False

    def input(self, name: str) -> Input:
        """The input of that name."""
        return next(each for each in self.inputs if each.name == name)

    @property
    def widgets(self) -> tuple[Input, ...]:
        """Inputs with a value on the node."""
        return tuple(each for each in self.inputs if each.is_widget)

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of a new node."""
        return {each.name: each.default for each in self.widgets}

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of widgets, each checked and in its own type.

        Raises:
            ConfigError: a value is not allowed.
        """
        return {name: self.input(name).checked(value) for name, value in values.items()}

    def problem(self, values: Mapping[str, Any]) -> str | None:
        """What is wrong with the texts among `values` that are known before the run, or None."""
        try:
            self.checked({name: value for name, value in values.items() if value is not None})
        except ConfigError as error:
            return str(error)
        return None


def switch(name: str, default: bool, tooltip: str, **more: Any) -> Input:
    """A switch."""
    return Input(name, "switch", tooltip, default, **more)


def number(
    name: str, default: float, low: float, high: float, step: float, tooltip: str, **more: Any
) -> Input:
    """A number with decimals."""
    return Input(name, "number", tooltip, default, low, high, step, **more)


def integer(name: str, default: int, low: int, high: int, tooltip: str, **more: Any) -> Input:
    """A whole number."""
    return Input(name, "integer", tooltip, default, low, high, **more)


def choice(name: str, default: str, choices: tuple[Any, ...], tooltip: str, **more: Any) -> Input:
    """One of some texts."""
    return Input(name, "choice", tooltip, default, choices=tuple(map(str, choices)), **more)


def text(
    name: str, default: str, parse: Callable[[str], Any] | None, tooltip: str, **more: Any
) -> Input:
    """A line of text."""
    return Input(name, "text", tooltip, default, parse=parse, **more)


def socket(name: str, kind: str, tooltip: str, **more: Any) -> Input:
    """An input without a widget."""
    return Input(name, kind, tooltip, **more)


def _preset_values() -> dict[str, dict[str, Any]]:
    """The presets as values of the main node's widgets, for the web page to fill in."""
    names = ("sparsity", "block_size", "start_percent", "end_percent", "ramp")
    return {
        preset: {name: getattr(values, name) for name in names}
        | {"block_size": str(values.block_size)}
        for preset, values in PRESETS.items()
    }


def _preset_texts() -> str:
    """ "quality (sparsity 0.6 from 20 %, blocks of 64, 8 averages), balanced (...)" """
    return ", ".join(
        f"{name} (sparsity {preset.sparsity:g} from {100 * preset.start_percent:g} %, blocks of "
        f"{preset.block_size}, {preset.tail_keys} averages)"
        for name, preset in PRESETS.items()
    )


def _percents(start: float, start_tooltip: str, end_tooltip: str) -> tuple[Input, Input]:
    return (
        number("start_percent", start, 0.0, 1.0, 0.001, start_tooltip),
        number("end_percent", 1.0, 0.0, 1.0, 0.001, end_tooltip),
    )


def _ramp(default: float, tooltip: str) -> Input:
    # Optional, so that graphs without it stay valid.
    return number("ramp", default, 0.0, 1.0, 0.05, tooltip, optional=True)


_BALANCED = PRESETS["balanced"]

MAIN = Node(
    "RectifiedSpaAttn",
    "Rectified SpaAttn (Sparse Attention)",
    "Speeds up long or large videos: each part of the picture attends exactly only to the parts "
    "that matter, and the loss is corrected. For Wan, HunyuanVideo, MiniMax H3 and LTX. Place it "
    "after LoRAs and before the sampler; the node shows what really ran.",
    (
        *("sparse attention", "SpaAttn", "block sparse", "稀疏注意力"),
        *("speed", "speed up", "accelerate", "加速"),
        *("faster video", "faster Wan", "faster Hunyuan", "faster MiniMax H3", "faster LTX"),
        *("wan", "hunyuan", "ltx", "video", "sage", "radial", "cache"),
    ),
    (
        socket(
            "model",
            "MODEL",
            "A Wan, HunyuanVideo, MiniMax H3 or LTX model; the help has all variants. Other models "
            "pass through and stay dense.",
        ),
        switch(
            "enabled",
            True,
            "Off: the model passes through untouched, for comparing with and without.",
        ),
        choice(
            "preset",
            "balanced",
            PRESET_NAMES,
            f"Sets the values below: {_preset_texts()}. custom: the values as they are. Changing "
            "one of them by hand goes to custom, or to the preset that has these values.",
            extra={"rspa_presets": _preset_values()},
        ),
        number(
            "sparsity",
            _BALANCED.sparsity,
            0.0,
            MAX_SPARSITY,
            0.01,
            "Share of the video that is skipped in each attention call. Higher is faster and "
            "further from the full result. What was really computed is shown on the node.",
        ),
        choice(
            "block_size",
            str(_BALANCED.block_size),
            tuple(sorted(BLOCK_SIZES, reverse=True)),
            "How many tokens are kept or skipped together. 64 picks more finely and stays closer "
            "to the full result at the same sparsity; 128 has less overhead.",
        ),
        *_percents(
            _BALANCED.start_percent,
            "Sparse from here on, as a share of the steps (0 = first step). The first steps "
            "decide composition and motion: raise this if they change too much.",
            "Sparse up to here (1 = last step). Lower it to finish with full attention.",
        ),
        _ramp(
            _BALANCED.ramp,
            "Keeps more where the video is still noise and less where it is nearly done, in the "
            "same time: sparsity stays the average of the steps. 0 = all steps alike, 1 = the "
            "whole ramp.",
        ),
        socket(
            "schedule",
            SCHEDULE,
            "Optional, from a Rectified SpaAttn Schedule node. Replaces sparsity, start_percent, "
            "end_percent and ramp.",
            optional=True,
        ),
        socket(
            "profile",
            PROFILE,
            "Optional, from Load Profile or Probe Result: one sparsity for each transformer block "
            "in place of the one above. start_percent, end_percent or the schedule still say when.",
            optional=True,
        ),
        socket(
            "options",
            OPTIONS,
            "Optional, from a Rectified SpaAttn Options node: everything that is rarely changed.",
            optional=True,
        ),
    ),
    (Output("model", "MODEL", "The model with sparse attention. Connect it to the sampler."),),
    speaks=True,
)

OPTIONS_NODE = Node(
    "RectifiedSpaAttnOptions",
    "Rectified SpaAttn Options",
    "What is rarely changed about Rectified SpaAttn: how the skipped part is made up for, number "
    "formats, layers that stay dense. Connect it to the options input.",
    ("sparse attention options", "SpaAttn settings", "dense blocks", "tail keys"),
    (
        choice(
            "rectification",
            AUTO,
            (AUTO, *RECTIFICATIONS),
            "How the skipped part is made up for. precise: skipped blocks take part as averages of "
            "groups of their tokens, the closest to the full result. paper: as published, a little "
            "faster. none: they are ignored. auto: what the preset says, else precise.",
        ),
        choice(
            "tail_keys",
            AUTO,
            (AUTO, *TAIL_KEYS),
            "With precise: how many averages stand for each skipped block. 8 is closer to the full "
            "result and slower, 1 is not recommended. auto: what the preset says, else 4.",
        ),
        choice(
            "precision",
            AUTO,
            PRECISIONS,
            "Number format in which the kept parts of the video are compared. int8 is coarser, but "
            "changes the result far less than sparsity does. auto: int8 on RTX 30, 40 and 50 "
            "cards, H100 and H200, 16-bit on others. Where int8 does not pass its check, 16-bit "
            "is used.",
        ),
        choice(
            "token_order",
            "gilbert",
            ORDERS,
            "How the video is cut into blocks. gilbert and tile keep neighbours in space and time "
            "together; raster cuts row by row and is there for comparison.",
        ),
        number(
            "top_p",
            0.0,
            0.0,
            1.0,
            0.01,
            "Keep more where attention is spread out: blocks are added until their estimated share "
            "of the attention exceeds this. 0 = off. It can only lower sparsity.",
        ),
        text(
            "dense_blocks",
            "",
            parse_dense_blocks,
            "Transformer blocks that keep full attention, counted from 0, as in reports and "
            "profiles: '0, 1, -1' is the first, second and last; 'single 0-2' are HunyuanVideo's "
            "first three single blocks.",
        ),
        integer(
            "min_tokens",
            8192,
            0,
            1_000_000,
            "Smaller videos stay dense, because sparse attention does not pay there. A Wan video "
            "of 832 x 480 with 81 frames has 32,760 tokens.",
        ),
        switch(
            "verbose",
            False,
            "Log one line per model call and, at the end, all counts as JSON.",
        ),
        choice(
            "backend",
            AUTO,
            (AUTO, "reference"),
            "What computes sparse attention. auto: kernels on the GPU; without a GPU everything "
            "stays dense, which is faster there. reference: plain torch on any device, for "
            "checking results; many times slower than full attention.",
        ),
    ),
    (Output("options", OPTIONS, "Connect to the options input of Rectified SpaAttn."),),
)

SCHEDULE_NODE = Node(
    "RectifiedSpaAttnSchedule",
    "Rectified SpaAttn Schedule",
    "Changes the sparsity of Rectified SpaAttn over the sampling: a curve, or one value per step. "
    "Early steps decide composition and motion, so they usually get less of it.",
    ("sparsity schedule", "sparse attention schedule", "SpaAttn schedule"),
    (
        number(
            "start_sparsity",
            0.6,
            0.0,
            MAX_SPARSITY,
            0.01,
            "Sparsity at start_percent; with curve = constant, throughout.",
        ),
        number(
            "end_sparsity",
            0.8,
            0.0,
            MAX_SPARSITY,
            0.01,
            "Sparsity at end_percent. Not used with curve = constant.",
        ),
        choice(
            "curve",
            "linear",
            CURVES,
            "constant: start_sparsity throughout. linear: a straight ramp. cosine: a ramp that "
            "starts and ends gently.",
        ),
        *_percents(
            0.1,
            "Full attention before this share of the steps (0 = first step).",
            "Full attention after this share of the steps (1 = last step).",
        ),
        text(
            "steps",
            "",
            parse_steps,
            "One value per step instead of the curve and the percents: 'off, 0.6, 0.8' is full "
            "attention in the first step, then 0.6, then 0.8 to the end. Made for 4 to 8 steps. "
            "Empty = use the curve.",
        ),
        text(
            "dense_steps",
            "",
            parse_dense_steps,
            "Steps that keep full attention in any case: '1, -1' is the first and the last.",
        ),
        integer(
            "preview_steps",
            20,
            1,
            200,
            "How many steps the preview shows. Set it to your sampler's steps; the schedule itself "
            "does not depend on it.",
        ),
        _ramp(
            0.0,
            "Keeps more where the video is still noise and less where it is nearly done, in the "
            "same time: the average over the steps stays that of the curve. 0 = the curve as it "
            "is, 1 = the whole ramp. Not with steps.",
        ),
        number(
            "preview_shift",
            8.0,
            1.0,
            100.0,
            0.1,
            "For which shift the preview shows a ramp, as in ModelSamplingSD3. The schedule itself "
            "follows the noise of your sampler.",
            optional=True,
        ),
    ),
    (
        Output("schedule", SCHEDULE, "Connect to the schedule input of Rectified SpaAttn."),
        Output(
            "preview",
            "IMAGE",
            "A picture of the sparsity in each step; connect a Preview Image node.",
        ),
    ),
)

REPORT = Node(
    "RectifiedSpaAttnReport",
    "Rectified SpaAttn Report",
    "Shows what Rectified SpaAttn really did in a run: which blocks and steps were sparse and how "
    "sparse, why the others were not, and the time of every step.",
    ("sparse attention report", "SpaAttn statistics", "attention density", "time per step"),
    (
        socket(
            "model",
            "MODEL",
            "The model that the sampler uses, from Rectified SpaAttn or from a node behind it.",
        ),
        socket(
            "after",
            "*",
            "Anything that comes out of the sampler, such as its latent: the report is made when "
            "it is there.",
        ),
    ),
    (
        Output("image", "IMAGE", "The whole report as a picture, to save it or to post it."),
        Output("summary", "STRING", "The run in plain lines, ready to paste into a post."),
        Output("json", "STRING", "All counts and times as JSON, for tables and scripts."),
    ),
    is_output=True,
)

PROBE = Node(
    "RectifiedSpaAttnProbe",
    "Rectified SpaAttn Probe",
    "Measures, while the sampler renders, how far sparse attention is from full attention in each "
    "block of the model. Place it after Rectified SpaAttn and connect Rectified SpaAttn Probe "
    "Result. Measured steps take several times as long.",
    ("SpaAttn probe", "measure sparse attention", "sparsity per block"),
    (
        socket("model", "MODEL", "The model from Rectified SpaAttn, with the settings to measure."),
        text(
            "steps",
            "2, 50%, -1",
            parse_probe_steps,
            "Steps in which to measure: 1 is the first, -1 the last, 50% the one half-way. Each "
            "one more makes the render longer.",
        ),
        text(
            "blocks",
            "",
            parse_probe_blocks,
            "Transformer blocks to measure, empty for all; counted from 0, as in reports and "
            "profiles: '0-9, -1' is the first ten and the last; 'single 0-2' are HunyuanVideo's "
            "first three single blocks.",
        ),
        text(
            "sparsities",
            "0.5, 0.65, 0.75, 0.85, 0.92",
            parse_sparsities,
            "Sparsities to try at each block, above 0 and up to 0.98. A profile stays within the "
            "lowest and the highest of them.",
        ),
    ),
    (
        Output(
            "model",
            "MODEL",
            "The model with the probe. Connect it to the sampler and to Rectified SpaAttn Probe "
            "Result.",
        ),
    ),
    speaks=True,
)

PROBE_RESULT = Node(
    "RectifiedSpaAttnProbeResult",
    "Rectified SpaAttn Probe Result",
    "Turns what Rectified SpaAttn Probe has measured into a profile: more sparsity in the blocks "
    "that bear it, less in the others, from closest to fastest. Moving the slider does not render "
    "again.",
    ("SpaAttn probe result", "sparsity profile", "error per block"),
    (
        socket(
            "model",
            "MODEL",
            "The model from Rectified SpaAttn Probe, the same that the sampler uses.",
        ),
        socket(
            "after",
            "*",
            "Anything that comes out of the sampler, such as its latent: the result is made when "
            "it is there.",
        ),
        number(
            "closest_to_fastest",
            AS_THE_NODE,
            0.0,
            1.0,
            0.05,
            "Which of the measured profiles: 0 is the closest to full attention, 1 the fastest, "
            "0.5 as fast as the sparsity of Rectified SpaAttn in all blocks, with less error. The "
            "picture shows where it lies and the error it comes to.",
            extra={"display": "slider"},
        ),
        text(
            "name",
            "",
            check_profile_name,
            "What you call the profile. It is kept in the file and in the picture.",
        ),
    ),
    (
        Output(
            "profile",
            PROFILE,
            "A sparsity for each block. Connect it to Rectified SpaAttn or to Rectified SpaAttn "
            "Save Profile.",
        ),
        Output("image", "IMAGE", "The picture that the node shows, to save it or to post it."),
        Output(
            "summary",
            "STRING",
            "The result in plain lines, with a table of the worst blocks.",
        ),
    ),
    is_output=True,
)

SAVE_PROFILE = Node(
    "RectifiedSpaAttnSaveProfile",
    "Rectified SpaAttn Save Profile",
    "Saves a sparsity profile to models/rectified_spaattn, so that a model is measured only once. "
    "A file that is there already is kept: the new one gets a number.",
    ("save sparsity profile", "SpaAttn profile"),
    (
        socket("profile", PROFILE, "The profile to save, from Rectified SpaAttn Probe Result."),
        text(
            "filename",
            "profile",
            None,
            "Name of the file. 'wan/fast' saves fast.safetensors in the subfolder wan.",
        ),
    ),
    (
        Output(
            "profile",
            PROFILE,
            "The same profile. Connect it to Rectified SpaAttn to use it at once.",
        ),
    ),
    is_output=True,
    speaks=True,
)

LOAD_PROFILE = Node(
    "RectifiedSpaAttnLoadProfile",
    "Rectified SpaAttn Load Profile",
    "Loads a sparsity profile from models/rectified_spaattn. It belongs to the model that it was "
    "measured on; others are refused.",
    ("load sparsity profile", "SpaAttn profile"),
    (
        # Its choices are the files, or `NO_PROFILE` where there are none.
        choice(
            "profile_name",
            NO_PROFILE,
            (),
            "A file in models/rectified_spaattn. Press R to see new files.",
            optional=True,
        ),
    ),
    (
        Output("profile", PROFILE, "Connect to the profile input of Rectified SpaAttn."),
        Output(
            "summary",
            "STRING",
            "What the profile was measured on and how sparse it is, as text.",
        ),
    ),
    speaks=True,
)

BENCHMARK = Node(
    "RectifiedSpaAttnBenchmark",
    "Rectified SpaAttn Benchmark",
    "Measures in about two minutes what sparse attention gains on this graphics card: full "
    "attention of all that is installed, ComfyUI's sparse attention and the presets, side by side. "
    "Needs no model.",
    ("sparse attention benchmark", "SpaAttn speed test", "attention benchmark", "which preset"),
    (
        choice(
            "call",
            AUTO,
            (AUTO, "wan-720p", "wan-480p", "hunyuan-720p"),
            "The attention call to measure: Wan 14B with 81 frames, or HunyuanVideo with 129. "
            "auto: wan-720p, or wan-480p where memory or speed ask for it; the rest of the heads "
            "is left out where they do not fit.",
        ),
    ),
    (
        Output("image", "IMAGE", "The picture that the node shows, to save it or to post it."),
        Output("summary", "STRING", "The figures and what they mean in plain lines."),
        Output(
            "json",
            "STRING",
            "All figures as JSON, the same as the file in output/rectified_spaattn.",
        ),
    ),
    is_output=True,
    speaks=True,
)

NODES: Mapping[str, Node] = MappingProxyType(
    {
        each.node_id: each
        for each in (
            MAIN,
            OPTIONS_NODE,
            SCHEDULE_NODE,
            REPORT,
            PROBE,
            PROBE_RESULT,
            SAVE_PROFILE,
            LOAD_PROFILE,
            BENCHMARK,
        )
    }
)
"""All nodes by their ids, in the order of the menu."""
