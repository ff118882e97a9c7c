"""The transformers of diffusers that can be sparse: one row each in `FAMILIES`.

A row is found by the name of a class among a model's bases, so that subclasses count and a
diffusers release without the class does no harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..rspa_core import ConfigError, TokenLayout
from ..rspa_core.run.profile import ModelFingerprint
from ..rspa_core.run.reasons import DenseReason, Reason, why
from .processors import (
    BlockPlace,
    Hunyuan15SparseProcessor,
    HunyuanSparseProcessor,
    Ltx2SparseProcessor,
    SparseProcessor,
    WanSparseProcessor,
)


@dataclass(frozen=True)
class Family:
    """What has to be known about a class of transformers.

    Attributes:
        name: of the family, as in profiles.
        lists: attributes that hold the blocks, by kind of block.
        attention: attribute of a block with the self-attention over the video tokens.
        processor: class that stands in for the processors of these modules.
        layout: (configuration, arguments of a forward by name) to where its video tokens are.
    """

    name: str
    lists: Mapping[str, str]
    attention: str
    processor: type[SparseProcessor]
    layout: Callable[[Any, Mapping[str, Any]], TokenLayout | DenseReason]


@dataclass(frozen=True)
class Parts:
    """What an installation has to know about one transformer.

    Attributes:
        family: None for a class that is not known.
        modules: the self-attention modules over the video tokens, by their block.
        fingerprint: tells whether a profile fits; None for a class that is not known.
    """

    family: Family | None
    modules: dict[BlockPlace, Any]
    fingerprint: ModelFingerprint | None


def uncompiled(transformer: nn.Module) -> Any:
    """A transformer without what torch.compile has put around it."""
    return getattr(transformer, "_orig_mod", transformer)


def parts_of(transformer: nn.Module) -> Parts:
    """The parts of a transformer of diffusers; of a class that is not known, none.

    Raises:
        ConfigError: it is no model of diffusers.
    """
    model = uncompiled(transformer)
    bases = [each.__name__ for each in type(model).__mro__]
    family = next((FAMILIES[name] for name in bases if name in FAMILIES), None)
    if family is None:
        if "ModelMixin" not in bases:
            raise ConfigError("transformer", type(model).__name__, "a model of diffusers")
        return Parts(None, {}, None)
    modules: dict[BlockPlace, Any] = {}
    totals = []
    for kind, name in family.lists.items():
        blocks = getattr(model, name)
        totals.append(len(blocks))
        for index, block in enumerate(blocks):
            place = BlockPlace((kind, index), len(blocks))
            modules[place] = getattr(block, family.attention)
    config: Any = model.config
    heads = config.num_attention_heads
    main, single = (*totals, 0)[:2]
    sizes = (main, single, heads * config.attention_head_dim, heads)
    return Parts(family, modules, ModelFingerprint(family.name, *sizes))


def unsupported(transformer: nn.Module) -> DenseReason:
    """Why a transformer of a class that is not known stays dense."""
    name = type(uncompiled(transformer)).__name__
    return why(Reason.UNSUPPORTED_MODEL, name, ", ".join(FAMILIES))


def _of_latent(patch: tuple[int, int, int], given: Mapping[str, Any]) -> TokenLayout:
    """Of a latent `[B, C, T, H, W]`, whose incomplete last patches are cut off."""
    sizes = given["hidden_states"].shape[-3:]
    frames, height, width = (size // step for size, step in zip(sizes, patch, strict=True))
    return TokenLayout((frames, height, width), frames * height * width)


def _cubic(config: Any, given: Mapping[str, Any]) -> TokenLayout:
    frames, height, width = config.patch_size
    return _of_latent((frames, height, width), given)


def _square(config: Any, given: Mapping[str, Any]) -> TokenLayout:
    return _of_latent((config.patch_size_t, config.patch_size, config.patch_size), given)


def _packed(config: Any, given: Mapping[str, Any]) -> TokenLayout | DenseReason:
    """Of tokens `[B, N, C]`: the video's, then those of keyframes and references."""
    sizes = [given.get(name) for name in ("num_frames", "height", "width")]
    if None in sizes:
        return why(Reason.UNKNOWN_CONDITIONS, "grid", "num_frames, height or width is not given")
    patch = (config.patch_size_t, config.patch_size, config.patch_size)
    frames, height, width = (size // step for size, step in zip(sizes, patch, strict=True))
    length = given["hidden_states"].shape[1]
    if length < math.prod((frames, height, width)):
        return why(Reason.OTHER_LENGTH, length, frames * height * width)
    return TokenLayout((frames, height, width), length)


FAMILIES = {
    "WanTransformer3DModel": Family(
        "Wan", {"double": "blocks"}, "attn1", WanSparseProcessor, _cubic
    ),
    "HunyuanVideoTransformer3DModel": Family(
        "HunyuanVideo",
        {"double": "transformer_blocks", "single": "single_transformer_blocks"},
        "attn",
        HunyuanSparseProcessor,
        _square,
    ),
    "HunyuanVideo15Transformer3DModel": Family(
        "HunyuanVideo",
        {"double": "transformer_blocks"},
        "attn",
        Hunyuan15SparseProcessor,
        _square,
    ),
    "LTX2VideoTransformer3DModel": Family(
        "LTX", {"double": "transformer_blocks"}, "attn1", Ltx2SparseProcessor, _packed
    ),
}
