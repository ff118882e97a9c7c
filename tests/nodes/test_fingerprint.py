"""Fingerprints of ComfyUI's transformers, by their parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rectified_spaattn.nodes.models import fingerprint_of, fingerprint_of_patcher
from rectified_spaattn.rspa_core.run.profile import ModelFingerprint

from .stand_ins import h3_model, hunyuan_model, ltx_model, wan_model

WAN_SIZES = {"blocks": [object()] * 40, "dim": 5120, "num_heads": 40}
HUNYUAN_SIZES = {"hidden_size": 3072, "num_heads": 24}


def test_wan() -> None:
    expected = ModelFingerprint("Wan", 40, 0, 5120, 40)
    assert fingerprint_of(wan_model(**WAN_SIZES)) == expected
    variant = wan_model(**WAN_SIZES, vace_blocks=[object()] * 8, patch_embedding_pose=object())
    assert fingerprint_of(variant) == expected


def test_hunyuan() -> None:
    expected = ModelFingerprint("HunyuanVideo", 2, 3, 3072, 24)
    for text_is_last in (False, True):
        assert fingerprint_of(hunyuan_model(text_is_last, **HUNYUAN_SIZES)) == expected


def test_hunyuan_1_5_may_have_no_single_blocks() -> None:
    model = hunyuan_model(
        patch_size=[1, 1, 1], double_blocks=[object()] * 54, single_blocks=[], **HUNYUAN_SIZES
    )
    assert fingerprint_of(model) == ModelFingerprint("HunyuanVideo", 54, 0, 3072, 24)


def test_minimax_h3() -> None:
    assert fingerprint_of(h3_model()) == ModelFingerprint("MiniMax H3", 4, 0, 32, 2)


def test_ltx() -> None:
    model = ltx_model(inner_dim=4096, num_attention_heads=32)
    assert fingerprint_of(model) == ModelFingerprint("LTX", 4, 0, 4096, 32)
    assert fingerprint_of(ltx_model()) is None, "sizes under other names"


@pytest.mark.parametrize("model", [wan_model(**WAN_SIZES), hunyuan_model(**HUNYUAN_SIZES)])
def test_compiled_models_have_the_same(model: Any) -> None:
    assert fingerprint_of(SimpleNamespace(_orig_mod=model)) == fingerprint_of(model) is not None


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(SimpleNamespace(), id="no part in common"),
        pytest.param(None, id="no model"),
        pytest.param(hunyuan_model(patch_size=2, **HUNYUAN_SIZES), id="an image model"),
        pytest.param(hunyuan_model(patch_size=[2, 2], **HUNYUAN_SIZES), id="HunyuanImage"),
        pytest.param(wan_model(), id="sizes under other names"),
        pytest.param(wan_model(**{**WAN_SIZES, "dim": object()}), id="a size that is no number"),
        pytest.param(wan_model(**{**WAN_SIZES, "blocks": []}), id="no blocks"),
        pytest.param(wan_model(**{**WAN_SIZES, "blocks": object()}), id="blocks of another form"),
    ],
)
def test_other_models_have_none(model: Any) -> None:
    assert fingerprint_of(model) is None


def test_model_patchers() -> None:
    """Of whatever is patched: something without a transformer is no reason to fail."""
    wan = wan_model(**WAN_SIZES)
    assert fingerprint_of_patcher(SimpleNamespace(model=SimpleNamespace(diffusion_model=wan)))
    assert fingerprint_of_patcher(SimpleNamespace(model=SimpleNamespace())) is None
    assert fingerprint_of_patcher(SimpleNamespace()) is None
