"""The small Wan model: names, sizes, files, and the same numbers as ComfyUI's own class."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

PROBE = Path(__file__).with_name("comfy_probe.py")
NAMES = tuple(f"scene {number}" for number in range(8))
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
EMBEDDERS = ("time_proj", "time_embedder.linear_1", "time_embedder.linear_2")
EMBEDDERS += ("text_embedder.linear_1", "text_embedder.linear_2")


def random_model(tiny: SimpleNamespace, config: Any) -> torch.nn.Module:
    """A model whose biases, norms and zero weights are random too, so that every one matters."""
    torch.manual_seed(0)
    model = tiny.model.WanModel(config)
    for weight in model.parameters():
        if weight.dim() == 1 or not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def random_inputs(text_dim: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn((2, 16, 3, 8, 12), generator=generator),
        "t": torch.tensor([37.0, 910.0]),
        "context": torch.randn((2, 8, text_dim), generator=generator),
    }


def test_output_has_the_shape_of_the_input_and_starts_at_zero(tiny: SimpleNamespace) -> None:
    inputs = random_inputs(128)
    out = tiny.model.WanModel(tiny.model.SMALL)(**inputs)
    assert out.shape == inputs["x"].shape
    assert not out.any()


@pytest.mark.parametrize("shape", [(1, 15, 1, 4, 4), (1, 16, 1, 3, 4), (16, 1, 4, 4)])
def test_shapes_that_do_not_fit_are_refused(tiny: SimpleNamespace, shape: tuple[int, ...]) -> None:
    model = tiny.model.WanModel(tiny.model.SMALL)
    with pytest.raises(ValueError, match="x has shape"):
        model(torch.zeros(shape), torch.zeros(1), torch.zeros(1, 8, 128))


def test_widths_that_do_not_fit_are_refused(tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="dim is 100"):
        tiny.model.WanConfig(dim=100, heads=3)
    with pytest.raises(ValueError, match="layers is 0"):
        tiny.model.WanConfig(layers=0)


@pytest.mark.parametrize("name", ["USUAL", "SMALL"])
def test_a_file_holds_the_model(tiny: SimpleNamespace, name: str, tmp_path: Path) -> None:
    config = getattr(tiny.model, name)
    model = tiny.model.WanModel(config)
    assert sum(each.numel() for each in model.parameters()) == config.parameters
    path = tmp_path / tiny.model_files.WEIGHTS
    tiny.model_files.save_model(model.state_dict(), config, path)
    again = tiny.model_files.load_model(path)
    assert again.config == config
    for key, value in tiny.model_files.stored(model.state_dict()).items():
        assert torch.equal(again.state_dict()[key], value.float()), key


def test_the_repositorys_files_are_of_this_model_and_keep_to_the_budget(
    tiny: SimpleNamespace,
) -> None:
    files, folder = tiny.model_files, Path(tiny.model.__file__).parent / "checkpoint"
    paths = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in paths] == sorted([files.WEIGHTS, files.VAE, files.PROMPTS])
    assert sum(path.stat().st_size for path in paths) <= files.MAX_BYTES
    assert files.load_model(folder / files.WEIGHTS).config == tiny.model.USUAL
    page = (folder.parent / "README.md").read_text(encoding="utf-8")
    names = files.Prompts.load(folder / files.PROMPTS).names
    assert all(f"| {number} {name} |" in page for number, name in enumerate(names))
    assert "© Blender Foundation" in page
    autoencoder = tiny.autoencoder.Autoencoder.load(folder / files.VAE)
    assert autoencoder.config == tiny.autoencoder.USUAL


def test_injected_attention_sees_every_layer(tiny: SimpleNamespace) -> None:
    model = random_model(tiny, tiny.model.SMALL)
    inputs = random_inputs(128)
    seen = []

    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        seen.append((layer, q.shape, k.shape, v.shape))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    with torch.no_grad():
        plain = model(**inputs)
        torch.testing.assert_close(model(**inputs, attend=attend), plain)
        other = model(**inputs, attend=lambda q, k, v, layer: torch.zeros_like(v))
    shape = torch.Size((2, 2, 3 * 4 * 6, 32))
    assert seen == [(layer, shape, shape, shape) for layer in range(2)]
    assert (other - plain).abs().max() > 0.01


def test_flops_grow_with_the_square_of_the_tokens(tiny: SimpleNamespace) -> None:
    config = tiny.model.USUAL
    assert 3.8 < config.forward_flops(1 << 17) / config.forward_flops(1 << 16) < 4


def test_prompts_are_orthogonal_and_survive_a_file(tiny: SimpleNamespace, tmp_path: Path) -> None:
    prompts = tiny.model_files.Prompts.make(NAMES, 4096)
    assert prompts.embeddings.shape == (9, 8, 4096)
    rows = prompts.embeddings[:-1].flatten(0, 1)
    torch.testing.assert_close(rows @ rows.T / 4096, torch.eye(64))
    assert not prompts.embeddings[prompts.empty].any()
    path = tmp_path / "prompts.safetensors"
    prompts.save(path)
    again = tiny.model_files.Prompts.load(path)
    assert again.names == NAMES
    assert torch.equal(again.embeddings, prompts.embeddings)
    stored = load_file(path)
    assert stored["prompt.0"].shape == stored["empty"].shape == (1, 8, 4096)


def test_narrow_prompts_have_fewer_tokens(tiny: SimpleNamespace) -> None:
    assert tiny.model_files.Prompts.make(NAMES, 64).embeddings.shape == (9, 7, 64)
    for width in (8, 100):
        with pytest.raises(ValueError, match="text_dim"):
            tiny.model_files.Prompts.make(NAMES, width)


def test_diffusers_names_are_those_of_its_conversion_script(tiny: SimpleNamespace) -> None:
    names = set(tiny.model_files.to_diffusers(random_model(tiny, tiny.model.SMALL).state_dict()))

    def with_biases(layers: list[str]) -> set[str]:
        return {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}

    outer = ["patch_embedding", "proj_out", *(f"condition_embedder.{each}" for each in EMBEDDERS)]
    wanted = with_biases(outer) | {"scale_shift_table"}
    assert {name for name in names if not name.startswith("blocks.")} == wanted
    inner = ["ffn.net.0.proj", "ffn.net.2", "norm2"]
    inner += [f"attn{number}.{each}" for number in (1, 2) for each in PROJECTIONS]
    wanted = with_biases(inner) | {"scale_shift_table"}
    wanted |= {f"attn{number}.norm_{each}.weight" for number in (1, 2) for each in "qk"}
    block = "blocks.1."
    assert {name.removeprefix(block) for name in names if name.startswith(block)} == wanted


CURRENT = ("COMFYUI_DIR", "~/comfy/ComfyUI")
OLDEST = ("COMFYUI_DIR_OLD", "~/comfy/ComfyUI-0.8.0")


@pytest.mark.parametrize("variable, default", [CURRENT, OLDEST], ids=["current", "oldest"])
def test_comfyui_loads_the_file_and_gets_the_same_velocity(
    tiny: SimpleNamespace, variable: str, default: str, tmp_path: Path
) -> None:
    folder = Path(os.environ.get(variable) or default).expanduser()
    python = folder / ".venv/bin/python"
    if not python.exists():
        pytest.skip(f"no ComfyUI with a virtual environment at {folder} (set {variable})")
    config = tiny.model.USUAL
    weights, given, got = (tmp_path / f"{name}.safetensors" for name in ("model", "in", "out"))
    tiny.model_files.save_model(random_model(tiny, config).state_dict(), config, weights)
    inputs = random_inputs(config.text_dim)
    save_file(inputs, given)
    command = [str(each) for each in (python, PROBE, folder, weights, given, got)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]

    with safe_open(got, "pt") as file:
        # A width that detection leaves out is the default of ComfyUI's class.
        detected = {"text_dim": 4096} | json.loads(file.metadata()["config"])
    wanted = {
        "class": "WAN21",
        "mismatched": [],
        "image_model": "wan2.1",
        "model_type": "t2v",
        "dim": config.dim,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "ffn_dim": config.ffn_dim,
        "text_dim": config.text_dim,
        "in_dim": 16,
        "out_dim": 16,
    }
    assert {name: detected[name] for name in wanted} == wanted

    with torch.no_grad():
        velocity = tiny.model_files.load_model(weights)(**inputs)
    theirs = load_file(got)["velocity"]
    assert theirs.std() > 0.5
    assert (velocity - theirs).abs().max() < 1e-4 * theirs.abs().max()
