"""Training and sampling of the small Wan model: it learns, it resumes, it repeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image


@pytest.fixture
def folder(tiny: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder with an autoencoder."""
    torch.manual_seed(0)
    tiny.autoencoder.Autoencoder(tiny.autoencoder.SMALL).save(tmp_path / tiny.model_files.VAE)
    return tmp_path


@pytest.fixture
def trainer(tiny: SimpleNamespace, footage: Any, folder: Path) -> Callable[..., Any]:
    """A new run in a folder of that name in `folder`, with changes to the small one."""

    def make(changes: dict[str, Any], name: str = ".", **options: Any) -> Any:
        config = replace(tiny.train.SMALL_TRAINING, **changes)
        target = folder / name
        target.mkdir(exist_ok=True)
        vae = target / tiny.model_files.VAE
        if not vae.exists():
            vae.symlink_to(folder / vae.name)
        return tiny.train.Trainer(config, footage, target, "cpu", **options)

    return make


def log_of(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_noise_levels_are_shifted_like_wan_does(tiny: SimpleNamespace) -> None:
    levels = tiny.model_flow.sampling_levels(4, 3.0)
    torch.testing.assert_close(levels, torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))
    torch.testing.assert_close(tiny.model_flow.shift_levels(levels, 1.0), levels)
    with pytest.raises(ValueError, match="steps is 0"):
        tiny.model_flow.sampling_levels(0, 3.0)


def test_tokens_of_a_video(tiny: SimpleNamespace) -> None:
    assert tiny.train.token_count((65, 384, 640)) == 17 * 24 * 40
    with pytest.raises(ValueError, match="multiples of 16"):
        tiny.train.token_count((9, 40, 64))


def test_one_batch_can_be_learnt(trainer: Callable[..., Any]) -> None:
    run = trainer({"steps": 150, "learning_rate": 4e-3, "warmup": 10, "dropout": 0.0, "tokens": 96})
    latents, labels = run.draw(run.config.grids[0])
    losses = torch.stack([run.update(latents, labels)[0] for _ in range(150)])
    start, end = losses[:5].mean(), losses[-25:].mean()
    # Predicting nothing costs what noise, of variance one, and latents have together.
    assert start > 1
    assert end < 0.5 * start


def test_a_resumed_run_ends_in_the_same_state(trainer: Callable[..., Any], folder: Path) -> None:
    whole = trainer({"steps": 4}, "whole")
    whole.run()
    trainer({"steps": 4}, "parts").run(until=2)
    second = trainer({"steps": 4}, "parts", resume=True)
    assert second.step == 2
    second.run()

    assert second.step == whole.step == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
        assert torch.equal(second.average[name], whole.average[name]), name
    assert torch.equal(second.noise.get_state(), whole.noise.get_state())
    assert torch.equal(second.choices.get_state(), whole.choices.get_state())
    parts = [entry for entry in log_of(folder / "parts") if "loss" in entry]
    wanted = [entry for entry in log_of(folder / "whole") if "loss" in entry]
    assert [entry["step"] for entry in parts] == [1, 2, 3, 4]
    assert [entry["loss"] for entry in parts] == [entry["loss"] for entry in wanted]


def test_a_run_to_continue_and_shares_of_one_are_needed(trainer: Callable[..., Any]) -> None:
    with pytest.raises(FileNotFoundError, match="train_state"):
        trainer({}, resume=True)
    with pytest.raises(ValueError, match="shares"):
        trainer({"shares": (0.5, 0.6)})


def test_a_run_begins_with_the_weights_of_another(
    tiny: SimpleNamespace, trainer: Callable[..., Any], folder: Path
) -> None:
    trainer({"steps": 1}, "one").run()
    start = folder / "one" / "tiny_wan.safetensors"
    other = trainer({"steps": 1}, "other", start=start)
    for name, value in tiny.model_files.load_model(start).state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name
        assert torch.equal(other.average[name], value), name


def test_a_pause_is_no_time_of_the_run(
    trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = iter(range(0, 36_000, 3_600))
    run = trainer({"minutes": 1.0})
    now = [0.0]
    step = run.take_step

    def long_step() -> Any:
        now[0] += next(hours) or 30.5  # as long as half the run, and hours
        return step()

    monkeypatch.setattr(run, "take_step", long_step)
    monkeypatch.setattr(f"{type(run).__mro__[1].__module__}.PAUSE_S", 31.0)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    run.run(until=4)
    assert run.step == 4
    assert run.seconds == pytest.approx(30.5)


def test_pool_renews_clips_and_keeps_scenes_balanced(tiny: SimpleNamespace, footage: Any) -> None:
    size = (1, 8, 8)

    def pool(turn: int = 0) -> Any:
        return tiny.pool.ClipPool(footage, lambda clips: clips, size, 12, 4, 0, turn)

    generator = torch.Generator().manual_seed(0)
    first = pool()
    before = first.clips.clone()
    assert before.shape == (8, 3, 3, 1, 8, 8)
    assert first.scenes.bincount().tolist() == [4] * 2
    for _ in range(3):
        clips, scenes = first.next_batch(generator)
        assert clips.shape == (12, 3, 1, 8, 8)
        for clip, scene in zip(clips, scenes, strict=True):
            drawn = before[first.scenes == scene].flatten(0, 1)
            later = first.clips[first.scenes == scene].flatten(0, 1)
            assert bool((torch.cat([drawn, later]) == clip).flatten(1).all(1).any())
    changed = (first.clips != before).flatten(1).any(1)
    assert changed.tolist() == [True] * 3 + [False] * 5
    assert torch.equal(pool(turn=3).clips, first.clips)
    with pytest.raises(ValueError, match="reuse is 9, allowed are 1 to 8"):
        tiny.pool.ClipPool(footage, lambda clips: clips, size, 12, 9, 0)


def test_schedules_follow_the_clock_without_steps(trainer: Callable[..., Any]) -> None:
    run = trainer({"minutes": 1.0, "revisit": 0.0, "warmup": 1})
    config = run.config
    assert run.choose_grid() == config.grids[0]
    assert run.learning_rate() == pytest.approx(config.learning_rate)
    run.seconds = 45.0
    assert run.progress == 0.75
    assert run.choose_grid() == config.grids[1]
    run.seconds = 60.0
    assert run.learning_rate() == pytest.approx(config.learning_rate / 20)


def test_samples_depend_on_prompt_seed_and_guidance(
    tiny: SimpleNamespace, footage: Any, folder: Path
) -> None:
    torch.manual_seed(0)
    config = tiny.model.SMALL
    model = tiny.model.WanModel(config).eval()
    torch.nn.init.normal_(model.head.head.weight, std=0.1)  # it starts at zero
    prompts = tiny.model_files.Prompts.make(footage.names, config.text_dim)
    autoencoder = tiny.autoencoder.Autoencoder.load(folder / tiny.model_files.VAE)
    sizes = {"size": (9, 32, 48), "steps": 3}
    calls: list[tuple[int, float]] = []

    def on_step(step: int, level: float) -> None:
        calls.append((step, round(level, 3)))

    video = tiny.sample.sample(model, autoencoder, prompts, 1, **sizes, on_step=on_step)
    assert video.shape == (3, 9, 32, 48)
    assert calls == [(0, 1.0), (1, 0.857), (2, 0.6)]
    assert torch.equal(video, tiny.sample.sample(model, autoencoder, prompts, 1, **sizes))
    for change in ({"seed": 1}, {"cfg": 1.0}):
        other = tiny.sample.sample(model, autoencoder, prompts, 1, **sizes, **change)
        assert not torch.equal(video, other), change
    assert not torch.equal(video, tiny.sample.sample(model, autoencoder, prompts, 0, **sizes))
    with pytest.raises(ValueError, match="scene is 2"):
        tiny.sample.sample(model, autoencoder, prompts, 2, **sizes)


def test_pictures(tiny: SimpleNamespace, tmp_path: Path) -> None:
    # Every frame differs: a GIF shows equal neighbours as one longer frame.
    video = torch.linspace(-1, 1, 9).view(1, 9, 1, 1).expand(3, 9, 32, 48)
    tiny.pictures.save_gif(video, tmp_path / "video.gif")
    tiny.pictures.contact_sheet([video], columns=3).save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "video.gif") as gif:
        assert (gif.size, gif.n_frames) == ((48, 32), 9)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 52 - 4, 32)
