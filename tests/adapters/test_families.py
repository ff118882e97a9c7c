"""Every class of transformers that diffusers has for our families: what is sparse, and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2VideoTransformer3DModel,
    UNet2DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn

from rectified_spaattn.adapters import install, sparse_attention
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout, rectified_attention
from rectified_spaattn.rspa_core.run.profile import ModelFingerprint, SparsityProfile
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule

from .models import (
    FULL,
    GRID,
    SPARSE,
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

TOKENS = GRID[0] * GRID[1] * GRID[2]
TOP_P = SparseConfig(0.9, 64, 64, top_p=1.0, rectification="paper", tail_keys=1)
Case = tuple[Callable[..., Any], dict[str, Any], int]
CASES: dict[str, Case] = {
    "wan": (wan, wan_inputs(), 2),
    "hunyuan": (hunyuan, hunyuan_inputs(6, 4), 4),
    "hunyuan 1.5, image to video": (hunyuan15, hunyuan15_inputs(), 2),
    "hunyuan 1.5, text to video": (hunyuan15, hunyuan15_inputs(has_image=False), 2),
    "ltx 2.0": (ltx2, ltx2_inputs(), 2),
    "ltx 2.0 with keyframes": (ltx2, ltx2_inputs(guides=7), 2),
    "ltx 2.3": (
        lambda: ltx2(
            gated_attn=True, cross_attn_mod=True, audio_gated_attn=True, audio_cross_attn_mod=True,
            use_prompt_embeddings=True, perturbed_attn=True, rope_type="split",
        ),
        ltx2_inputs() | {"sigma": torch.full((2,), 500.0), "use_cross_timestep": True},
        2,
    ),
}  # fmt: skip
cases = pytest.mark.parametrize("name", CASES)


def at_work(model: Any, config: SparseConfig = SPARSE, **options: Any) -> Any:
    return sparse_attention(model, config, min_tokens=0, backend="reference", **options)


@cases
@pytest.mark.parametrize("config", [FULL, TOP_P], ids=["sparsity 0", "all blocks kept"])
def test_with_nothing_left_out_it_is_unchanged(name: str, config: SparseConfig) -> None:
    make, inputs, calls = CASES[name]
    model = make()
    dense = velocity(model, inputs)
    with at_work(model, config) as sparse:
        out = velocity(model, inputs)
    assert counts(sparse) == (calls, {})
    assert sparse.record.density == 1.0
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)


@cases
def test_sparse_differs_and_goes_away(name: str) -> None:
    make, inputs, calls = CASES[name]
    model = make()
    dense = velocity(model, inputs)
    with at_work(model) as sparse:
        out = velocity(model, inputs)
        assert counts(sparse) == (calls, {})
        assert sparse.record.density < 0.5
        assert (out - dense).abs().max() > 1e-4
    assert torch.equal(velocity(model, inputs), dense)


def poked(inputs: dict[str, Any], voxel: tuple[int, int, int]) -> dict[str, Any]:
    """The same inputs with another value in one token of the video."""
    x = inputs["hidden_states"].clone()
    if x.ndim == 3:
        frame, row, column = voxel
        x[:, (frame * GRID[1] + row) * GRID[2] + column] += 1.0
    else:
        steps = [size // tokens for size, tokens in zip(x.shape[2:], GRID, strict=True)]
        frame, row, column = (at * step for at, step in zip(voxel, steps, strict=True))
        x[:, :, frame, row, column] += 1.0
    return inputs | {"hidden_states": x}


@cases
def test_voxels_are_where_the_layout_has_them(name: str) -> None:
    """A wrong place would pass every comparison above: attention does not know places."""
    make, inputs, _ = CASES[name]
    model, seen = make(), []

    def spy(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, *rest: Any, **kwargs: Any) -> Any:
        seen.append((layout, q))
        return rectified_attention(q, k, v, layout, *rest, **kwargs)

    with at_work(model) as sparse:
        sparse.run.attention = spy

        def first_call(given: dict[str, Any]) -> tuple[TokenLayout, Tensor]:
            seen.clear()
            velocity(model, given)
            return seen[0]

        layout, before = first_call(inputs)
        assert layout.grid == GRID
        for voxel in ((0, 0, 0), (1, 3, 5), (2, 7, 11)):
            _, after = first_call(poked(inputs, voxel))
            moved = (after - before).abs().amax(dim=(0, 1, 3)) > 1e-6
            frame, row, column = voxel
            place = layout.video_start + (frame * GRID[1] + row) * GRID[2] + column
            assert moved.nonzero().flatten().tolist() == [place]


def test_both_transformers_of_wan_2_2() -> None:
    """As its pipeline does: one scheduler, early steps for one model, late ones for the other."""
    early, late = wan(), wan(num_layers=3)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    schedule = SparsitySchedule(0.75, 0.75, start_percent=0.2)
    options = {"schedule": schedule, "scheduler": scheduler}
    boundary = 0.875 * scheduler.config.num_train_timesteps
    with at_work(early, **options) as first, at_work(late, **options) as second:
        scheduler.set_timesteps(6)
        x, steps = wan_inputs()["hidden_states"], []
        for t in scheduler.timesteps:
            model = early if t >= boundary else late
            steps.append(model)
            inputs = wan_inputs(timestep=float(t)) | {"hidden_states": x}
            velocity(model, inputs)  # without the text
            x = scheduler.step(velocity(model, inputs), t, x, return_dict=False)[0]
    assert steps == [early] * 3 + [late] * 3
    # Steps 0 and 1 of six begin before a fifth of them is done: two calls, two blocks each.
    assert counts(first) == (4, {"schedule: first 20 %": 8})
    assert counts(second) == (18, {})


def test_hunyuan_15_attends_exactly_to_its_text_and_not_to_padding() -> None:
    model = hunyuan15()
    inputs, layouts = hunyuan15_inputs((6, 6), (2, 2)), []

    def spy(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, *rest: Any, **kwargs: Any) -> Any:
        layouts.append(layout)
        return rectified_attention(q, k, v, layout, *rest, **kwargs)

    with at_work(model) as sparse:
        sparse.run.attention = spy
        out = velocity(model, inputs)
        inputs["encoder_hidden_states"][:, 6:] = 100.0
        inputs["encoder_hidden_states_2"][:, 2:] = 100.0
        torch.testing.assert_close(velocity(model, inputs), out)
    # Two tokens of the image, two glyphs, six of the text.
    assert layouts == [TokenLayout(GRID, TOKENS + 10)] * 4


def test_ltx_2_leaves_audio_alone() -> None:
    model = ltx2()
    before = model.attn_processors
    inputs = ltx2_inputs() | {"isolate_modalities": True}  # no cross-attention between the two
    with torch.no_grad():
        dense, dense_audio = model(**inputs, return_dict=False)
        with at_work(model):
            after = model.attn_processors
            out, audio = model(**inputs, return_dict=False)
    changed = {name for name in after if after[name] is not before[name]}
    assert changed == {f"transformer_blocks.{index}.attn1.processor" for index in (0, 1)}
    assert torch.equal(audio, dense_audio)
    assert not torch.equal(out, dense)


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            {"video_self_attention_mask": torch.ones(2, TOKENS, TOKENS)},
            f"attention mask of shape (2, {TOKENS}, {TOKENS}), torch.float32",
        ),
        (
            {"spatio_temporal_guidance_blocks": [0, 1]},
            "attention argument perturbation_mask",
        ),
        (
            {"num_frames": None, "video_coords": torch.ones(2, 3, TOKENS, 2)},
            "conditions not understood (grid: num_frames, height or width is not given)",
        ),
        (
            {"height": 16, "video_coords": torch.ones(2, 3, TOKENS, 2)},
            f"{TOKENS} tokens where {2 * TOKENS} were expected",
        ),
        (
            {"num_frames": float(GRID[0])},
            "conditions not understood (ConfigError: grid = (3.0, 8, 12) is not allowed: a tuple "
            "(T, H, W) of three whole numbers, 1 or more)",
        ),
    ],
    ids=["mask", "guidance", "grid", "tokens", "number"],
)
def test_ltx_2_dense_with_a_reason(change: dict[str, Any], reason: str) -> None:
    model, inputs = ltx2(perturbed_attn=True), ltx2_inputs() | change
    dense = velocity(model, inputs)
    with at_work(model) as sparse:
        assert torch.equal(velocity(model, inputs), dense)
    assert counts(sparse) == (0, {reason: 2})


def test_a_class_that_is_not_known_stays_dense(caplog: pytest.LogCaptureFixture) -> None:
    widths = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "ffn_dim": 32}
    widths |= {"in_channels": 4, "out_channels": 4, "text_dim": 8, "freq_dim": 16}
    model = WanVACETransformer3DModel(**widths, vace_layers=[0], vace_in_channels=4).eval()
    inputs = wan_inputs() | {"control_hidden_states": wan_inputs()["hidden_states"]}
    dense = velocity(model, inputs)
    profile = SparsityProfile(
        ModelFingerprint("Wan", 2, 0, 48, 2), (0.0, 0.6), (), GRID, 0.05, 64, "paper", "gilbert", 1
    )
    with at_work(model, dense_blocks="7", profile=profile) as sparse:
        assert torch.equal(velocity(model, inputs), dense)
        assert torch.equal(velocity(model, inputs), dense)
    names = (
        "WanTransformer3DModel, HunyuanVideoTransformer3DModel, HunyuanVideo15Transformer3DModel, "
        "LTX2VideoTransformer3DModel"
    )
    reason = f"model class WanVACETransformer3DModel is not supported ({names})"
    assert counts(sparse) == (0, {reason: 2})
    assert reason in sparse.report
    assert caplog.messages == [f"Rectified SpaAttn: this model stays dense: {reason}"]


def test_a_model_that_is_no_transformer_stays_dense() -> None:
    model = UNet2DModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    x = torch.ones(1, 3, 8, 8)
    dense = model(x, 5).sample
    with at_work(model) as sparse:
        assert torch.equal(model(x, 5).sample, dense)
        assert torch.equal(model(sample=x, timestep=5).sample, dense)
    ((reason, number),) = counts(sparse)[1].items()
    assert (counts(sparse)[0], number) == (0, 2)
    assert reason.startswith("model class UNet2DModel is not supported")


class WithMoreTokens(WanTransformer3DModel):  # type: ignore[misc]
    """A model nobody has seen: tokens of its own behind the video's."""

    def __init__(self, **widths: Any) -> None:
        super().__init__(**widths)
        more = torch.zeros(1, 5, 48)
        for block in self.blocks:
            block.forward = self.with_more(block.forward, more)

    def with_more(self, call: Any, more: Tensor) -> Any:
        def forward(video: Tensor, text: Tensor, time: Tensor, rotary: Any) -> Tensor:
            own = more.expand(len(video), -1, -1)
            turned = tuple(torch.cat([each, each[:, :5]], dim=1) for each in rotary)
            out: Tensor = call(torch.cat([video, own], dim=1), text, time, turned)
            return out[:, :-5]

        return forward


def test_an_added_stream_of_tokens_stays_dense() -> None:
    torch.manual_seed(0)
    model = WithMoreTokens(
        num_attention_heads=2, attention_head_dim=24, num_layers=2, ffn_dim=32,
        in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
    ).eval()  # fmt: skip
    dense = velocity(model, wan_inputs())
    with at_work(model) as sparse:
        assert torch.equal(velocity(model, wan_inputs()), dense)
    assert counts(sparse) == (0, {f"{TOKENS + 5} tokens where {TOKENS} were expected": 2})


def test_a_subclass_counts() -> None:
    class Own(LTX2VideoTransformer3DModel):  # type: ignore[misc]
        pass

    model = ltx2()
    model.__class__ = Own
    with at_work(model) as sparse:
        velocity(model, ltx2_inputs())
    assert counts(sparse) == (2, {})


def test_arguments_by_position() -> None:
    model, inputs = ltx2(), ltx2_inputs()
    with at_work(model, num_steps=4, schedule=SparsitySchedule(0.75, 0.75)) as sparse:
        by_name = velocity(model, inputs)
        names = ("hidden_states", "audio_hidden_states", "encoder_hidden_states")
        names += ("audio_encoder_hidden_states", "timestep")
        rest = {name: value for name, value in inputs.items() if name not in names}
        with torch.no_grad():
            out = model(*(inputs[name] for name in names), **rest, return_dict=False)[0]
    assert torch.equal(out, by_name)
    assert counts(sparse) == (4, {})


def test_only_models_of_diffusers() -> None:
    with pytest.raises(ValueError, match="transformer = 'Linear' is not allowed: a model of diff"):
        install(nn.Linear(1, 1), SPARSE)
