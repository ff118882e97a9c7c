"""What comes out of the models: full attention with nothing left out, the method with less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_wan
from torch import Tensor

from rectified_spaattn.adapters import sparse_attention
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout, rectified_attention

from .models import (
    FULL,
    GRID,
    SPARSE,
    TEXT,
    counts,
    hunyuan,
    hunyuan15,
    hunyuan15_inputs,
    hunyuan_inputs,
    ltx2,
    ltx2_inputs,
    velocity,
    wan,
    wan_inputs,
)

TOP_P = SparseConfig(0.9, 64, 64, top_p=1.0, rectification="paper", tail_keys=1)
TOKENS = GRID[0] * GRID[1] * GRID[2]


@pytest.mark.parametrize("config", [FULL, TOP_P], ids=["sparsity 0", "top_p 1"])
def test_wan_with_nothing_left_out_is_unchanged(config: SparseConfig) -> None:
    model, inputs = wan(), wan_inputs()
    dense = velocity(model, inputs)
    with sparse_attention(model, config, min_tokens=0, backend="reference") as sparse:
        out = velocity(model, inputs)
    assert counts(sparse) == (2, {})
    assert sparse.record.density == 1.0
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(TEXT, TEXT), (6, 6), (6, 4)], ids=["full", "same", "ragged"])
def test_hunyuan_with_nothing_left_out_is_unchanged(lengths: tuple[int, int]) -> None:
    model, inputs = hunyuan(), hunyuan_inputs(*lengths)
    dense = velocity(model, inputs)
    with sparse_attention(model, FULL, min_tokens=0, backend="reference") as sparse:
        out = velocity(model, inputs)
    assert counts(sparse) == (4, {})
    assert sparse.record.density == 1.0
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)


def test_hunyuan_padding_has_no_influence() -> None:
    model, inputs = hunyuan(), hunyuan_inputs(6)
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference"):
        out = velocity(model, inputs)
        inputs["encoder_hidden_states"][:, 6:] = 100.0
        torch.testing.assert_close(velocity(model, inputs), out)


@pytest.mark.parametrize("kind", ["token_replace", "latent_concat"])
def test_hunyuan_image_to_video(kind: str) -> None:
    model, inputs = hunyuan(image_condition_type=kind), hunyuan_inputs(6)
    dense = velocity(model, inputs)
    with sparse_attention(model, FULL, min_tokens=0, backend="reference") as sparse:
        torch.testing.assert_close(velocity(model, inputs), dense, rtol=1e-5, atol=1e-5)
    assert counts(sparse) == (4, {})


def test_wan_image_to_video_leaves_the_image_in_cross_attention() -> None:
    model = wan(image_dim=8, added_kv_proj_dim=48)
    # This model takes the last 512 condition tokens for text.
    inputs = wan_inputs() | {"encoder_hidden_states": torch.randn(2, 512, 8)}
    inputs["encoder_hidden_states_image"] = torch.randn(2, 7, 8)
    dense = velocity(model, inputs)
    with sparse_attention(model, FULL, min_tokens=0, backend="reference") as sparse:
        torch.testing.assert_close(velocity(model, inputs), dense, rtol=1e-5, atol=1e-5)
    assert counts(sparse) == (2, {})


def test_wan_22_with_a_timestep_per_token() -> None:
    model, inputs = wan(), wan_inputs()
    inputs["timestep"] = torch.full((2, TOKENS), 500.0)
    inputs["timestep"][:, : GRID[1] * GRID[2]] = 0.0
    dense = velocity(model, inputs)
    with sparse_attention(model, FULL, min_tokens=0, backend="reference"):
        torch.testing.assert_close(velocity(model, inputs), dense, rtol=1e-5, atol=1e-5)


def test_fused_projections() -> None:
    model, inputs = wan(), wan_inputs()
    dense = velocity(model, inputs)
    model.fuse_qkv_projections()
    model.blocks[0].attn1.to_q = None  # so that only the fused layer can be used
    with sparse_attention(model, FULL, min_tokens=0, backend="reference") as sparse:
        torch.testing.assert_close(velocity(model, inputs), dense, rtol=1e-5, atol=1e-5)
    assert counts(sparse) == (2, {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit(dtype: torch.dtype) -> None:
    model = wan().to(dtype)
    inputs = {name: value.to(dtype) for name, value in wan_inputs().items()}
    dense = velocity(model, inputs)
    with sparse_attention(model, FULL, min_tokens=0, backend="reference") as sparse:
        out = velocity(model, inputs)
    assert counts(sparse) == (2, {})
    assert out.dtype == dtype
    torch.testing.assert_close(out, dense, rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_autocast() -> None:
    model, inputs = wan(), wan_inputs()
    autocast = torch.autocast("cpu", torch.bfloat16)
    with sparse_attention(model, FULL, min_tokens=0, backend="reference") as sparse, autocast:
        out = velocity(model, inputs)
    assert counts(sparse) == (2, {})
    torch.testing.assert_close(out.float(), velocity(model, inputs), rtol=0.05, atol=0.05)


def test_wan_does_what_the_method_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # q, k and v are taken where diffusers hands them to its attention function, in a dense run.
    seen: list[tuple[Tensor, ...]] = []
    attend = transformer_wan.dispatch_attention_fn

    def spy(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
        seen.append((q, k, v))
        return attend(q, k, v, **kwargs)

    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", spy)
    model, inputs = wan(num_layers=1), wan_inputs()
    velocity(model, inputs)
    q, k, v = (each.transpose(1, 2) for each in seen[0])
    expected, stats = rectified_attention(
        q, k, v, TokenLayout(GRID, TOKENS), SPARSE, return_stats=True
    )
    assert 0 < stats.density < 0.5

    got: list[Tensor] = []
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        hook = (
            model.blocks[0]
            .attn1.to_out[0]
            .register_forward_pre_hook(lambda _, args: got.append(args[0]))
        )
        velocity(model, inputs)
        hook.remove()
    assert sparse.record.density == pytest.approx(float(stats.density))
    merged = expected.transpose(1, 2).flatten(2)
    torch.testing.assert_close(got[0], merged, rtol=1e-5, atol=1e-5)
    dense = attend(*seen[0]).flatten(2)
    assert (merged - dense).abs().max() > 1e-2  # else this test would see nothing


def test_hunyuan_gives_the_method_the_right_tokens() -> None:
    layouts = []

    def spy(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, *rest: Any, **kwargs: Any) -> Any:
        layouts.append((layout, tuple(q.shape)))
        return rectified_attention(q, k, v, layout, *rest, **kwargs)

    model = hunyuan(num_layers=1, num_single_layers=1)
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        sparse.run.attention = spy
        velocity(model, hunyuan_inputs(6, 6))
        velocity(model, hunyuan_inputs(6, 4))
    whole, four, six = (TokenLayout(GRID, TOKENS + text) for text in (6, 4, 6))
    first = [(whole, (2, 2, TOKENS + 6, 16))] * 2  # a double block and a single one
    second = [(four, (1, 2, TOKENS + 4, 16)), (six, (1, 2, TOKENS + 6, 16))] * 2
    # Equal lengths: the padding is cut off, so one call serves the batch.
    assert [each for each in layouts if each[1][0] == 2] == first
    assert [each for each in layouts if each[1][0] == 1] == second


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="runs the kernels inside the models: needs an NVIDIA GPU"
)
@pytest.mark.parametrize("rectification", ["none", "paper", "precise"])
def test_kernels_do_what_the_reference_does_in_a_model(rectification: str) -> None:
    config = replace(SPARSE, rectification=rectification)
    pairs = [
        (wan(attention_head_dim=64), wan_inputs()),
        (hunyuan(attention_head_dim=64, rope_axes_dim=(16, 24, 24)), hunyuan_inputs(6, 4)),
        (hunyuan15(attention_head_dim=64, rope_axes_dim=(16, 24, 24)), hunyuan15_inputs()),
        (ltx2(attention_head_dim=64, cross_attention_dim=128), ltx2_inputs(guides=7)),
    ]
    for model, inputs in pairs:
        model.to("cuda", torch.float16)
        on_gpu = dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                is_real = value.is_floating_point()
                on_gpu[name] = value.to("cuda", torch.float16 if is_real else value.dtype)
        outs = []
        for backend in ("triton", "reference"):
            with sparse_attention(model, config, min_tokens=0, backend=backend) as sparse:
                outs.append(velocity(model, on_gpu))
            assert not sparse.record.dense
        torch.testing.assert_close(*outs, rtol=0.02, atol=0.02)


def test_grid_may_change_between_forwards() -> None:
    model = wan()
    with sparse_attention(model, FULL, min_tokens=0, backend="reference") as sparse:
        grids = [GRID, (1, 10, 9), (5, 6, 7)]
        outs = [velocity(model, wan_inputs(grid)) for grid in grids]
    assert counts(sparse) == (6, {})
    for grid, out in zip(grids, outs, strict=True):
        dense = velocity(model, wan_inputs(grid))
        torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)
