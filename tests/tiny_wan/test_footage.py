"""Footage, the autoencoder and training on both, with moving waves instead of real videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rectified_spaattn.benchmarks.clips.picture_metrics import psnr


@pytest.fixture(scope="module")
def file(footage: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("footage") / "footage.safetensors"
    footage.save(path)
    return path


def test_a_file_keeps_the_pictures_in_little_space(
    tiny: SimpleNamespace, footage: Any, file: Path
) -> None:
    again = tiny.footage.Footage.load(file)
    assert again.names == footage.names
    pixels = 0
    for old, new in zip(footage.shots, again.shots, strict=True):
        assert new.frames.shape == old.frames.shape
        assert new.scene == old.scene
        pixels += old.frames.numel()
        error = (new.frames.float() - old.frames.float()).square().mean()
        assert 10 * torch.log10(255**2 / error) > 29
    assert file.stat().st_size < pixels / 10


def test_clips_repeat_by_seed_and_play_backwards_at_the_end(
    tiny: SimpleNamespace, footage: Any
) -> None:
    def draw(scene: int, seed: int) -> Tensor:
        clips: Tensor = footage.draw(scene, 2, (17, 32, 48), torch.Generator().manual_seed(seed))
        return clips

    clips = draw(0, 3)
    assert clips.shape == (2, 3, 17, 32, 48)
    assert -1 <= clips.min() < -0.5 < 0.5 < clips.max() <= 1
    assert torch.equal(clips, draw(0, 3))
    assert not torch.equal(clips, draw(0, 4))
    # The shot has 9 frames.
    assert torch.equal(clips[:, :, :8], clips[:, :, 9:].flip(2))
    with pytest.raises(ValueError, match="scene is 2, allowed are 0 to 1"):
        draw(2, 0)
    with pytest.raises(ValueError, match=r"scenes \[0\]"):
        tiny.footage.Footage(footage.names, footage.shots[:1])


def test_shapes_of_the_autoencoder(tiny: SimpleNamespace) -> None:
    network = tiny.autoencoder.Autoencoder(tiny.autoencoder.SMALL)
    for size in ((1, 8, 8), (5, 16, 40)):
        video = torch.rand(2, 3, *size) * 2 - 1
        latent = network.encode(video)
        assert latent.shape == (2, 16, *tiny.latents.latent_shape(*size))
        assert network.decode(latent).shape == video.shape
    with pytest.raises(ValueError, match="latent has shape"):
        network.decode(torch.zeros(1, 4, 1, 2, 2))


def test_the_autoencoder_starts_as_a_linear_code(tiny: SimpleNamespace, footage: Any) -> None:
    clips = footage.draw(1, 4, (9, 32, 32), torch.Generator().manual_seed(0))
    code = tiny.latents.LinearCode.fit(clips)
    network = tiny.autoencoder.Autoencoder(tiny.autoencoder.SMALL)
    network.start_from(code)
    patches = tiny.latents.to_patches(clips)
    numbers = (patches @ code.basis.T - code.mean) / code.std
    torch.testing.assert_close(network.encode(clips).movedim(1, -1), numbers, rtol=1e-3, atol=1e-3)
    shown = tiny.latents.from_patches(patches @ code.basis.T @ code.basis)
    again = network.decode(network.encode(clips))
    # Of the first frame, which stands for four, the network shows the last decoding, not the mean.
    torch.testing.assert_close(again[:, :, 1:], shown[:, :, 1:], rtol=1e-3, atol=1e-3)


def small(tiny: SimpleNamespace, **changes: Any) -> Any:
    return replace(tiny.train_autoencoder.SMALL_TRAINING, **changes)


def test_the_autoencoder_learns_and_eight_bits_cost_nothing(
    tiny: SimpleNamespace, footage: Any, tmp_path: Path
) -> None:
    config = small(tiny, steps=100, learning_rate=2e-3, ema=0.9, log_steps=50)
    trainer = tiny.train_autoencoder.AutoencoderTrainer(config, footage, tmp_path, "cpu")
    trainer.save()
    before = trainer.validate()
    trainer.run()
    after = trainer.validate()
    assert after["psnr"] > before["psnr"] + 1
    assert abs(after["psnr"] - after["psnr in 8 bits"]) < 0.1
    network = tiny.autoencoder.Autoencoder.load(tmp_path / tiny.model_files.VAE)
    clips = footage.draw(1, 4, config.size, torch.Generator().manual_seed(9))
    latents = network.encode(clips)
    assert 0.5 < latents.std() < 2
    assert psnr(network.decode(latents), clips).mean() > after["psnr"] - 3


def test_a_resumed_autoencoder_ends_in_the_same_state(
    tiny: SimpleNamespace, footage: Any, tmp_path: Path
) -> None:
    def trainer(name: str, resume: bool = False) -> Any:
        kind = tiny.train_autoencoder.AutoencoderTrainer
        return kind(small(tiny, steps=4), footage, tmp_path / name, "cpu", resume)

    whole, first = trainer("whole"), trainer("parts")
    whole.run()
    first.run(until=2)
    second = trainer("parts", resume=True)
    assert second.step == 2
    second.run()
    for name, value in whole.average.items():
        assert torch.equal(second.average[name], value), name


def test_a_piece_ends_by_the_clock(tiny: SimpleNamespace, footage: Any, tmp_path: Path) -> None:
    config = small(tiny, minutes=60.0)
    trainer = tiny.train_autoencoder.AutoencoderTrainer(config, footage, tmp_path, "cpu")
    trainer.run(piece=0.005)
    assert 0 < trainer.progress < 0.5, "of an hour"


def test_the_model_needs_an_autoencoder_first(
    tiny: SimpleNamespace, footage: Any, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="train the autoencoder first"):
        tiny.train.Trainer(tiny.train.SMALL_TRAINING, footage, tmp_path, "cpu")


def test_commands_train_on_footage_in_pieces(
    tiny: SimpleNamespace,
    file: Path,
    tmp_path: Path,
    run_tool: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_cpu = ["--device", "cpu", "--small", "--steps", "2"]
    for command in (
        ["train_autoencoder.py", tmp_path, file, *on_cpu],
        ["train_tiny_wan.py", tmp_path, file, *on_cpu, "--grids", "5x32x32:1", "--samples"],
    ):
        run_tool(*command)
        assert "2 steps" in capsys.readouterr().out
    assert (tmp_path / "autoencoder.png").is_file()
    lines = (tmp_path / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"s=0.4", "s=0.4 in 8 bits"} <= set(json.loads(lines[-1])["validation"])

    files = tiny.model_files
    model = files.load_model(tmp_path / files.WEIGHTS)
    prompts = files.Prompts.load(tmp_path / files.PROMPTS)
    assert prompts.names == ("calm", "rough")
    autoencoder = tiny.autoencoder.Autoencoder.load(tmp_path / files.VAE)
    video = tiny.sample.sample(model, autoencoder, prompts, 1, size=(5, 32, 48), steps=2)
    assert video.shape == (3, 5, 32, 48)
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        "0_calm.gif", "1_rough.gif", "sheet.png",
    }  # fmt: skip


def test_eight_bits_are_for_matrices(tiny: SimpleNamespace, tmp_path: Path) -> None:
    config = tiny.model.SMALL
    state = tiny.model.WanModel(config).state_dict()
    tiny.model_files.save_model(state, config, tmp_path / "model.safetensors")
    dtypes = {name: value.dtype for name, value in tiny.model_files.stored(state).items()}
    for name in ("blocks.0.ffn.0.weight", "text_embedding.0.weight"):
        assert dtypes[name] == torch.float8_e4m3fn
    for name in ("blocks.0.modulation", "blocks.0.norm3.weight", "head.head.weight"):
        assert dtypes[name] == torch.bfloat16
    loaded = tiny.model_files.load_model(tmp_path / "model.safetensors").state_dict()
    for name, value in state.items():
        torch.testing.assert_close(loaded[name], value, rtol=0.07, atol=1e-3)
