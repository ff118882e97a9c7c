"""Training and sampling of the small Wan model: it learns, it resumes, it repeats."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


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
    assert tiny.train.token_count((49, 384, 416)) == 13 * 24 * 26
    with pytest.raises(ValueError, match="multiples of 16"):
        tiny.train.token_count((9, 40, 64))


def test_one_batch_can_be_learnt(tiny: SimpleNamespace, tmp_path: Path) -> None:
    config = replace(
        tiny.train.SMALL, steps=250, learning_rate=4e-3, warmup=10, dropout=0.0, tokens=96
    )
    trainer = tiny.train.Trainer(config, tmp_path, "cpu")
    latents, labels = trainer.draw(config.grids[0])
    losses = torch.stack([trainer.update(latents, labels)[0] for _ in range(config.steps)])
    start, end = losses[:5].mean(), losses[-25:].mean()
    # Predicting nothing costs what noise and unit-variance latents have together, about two.
    assert 1.2 < start < 3
    assert end < 0.5 * start


def test_a_resumed_run_ends_in_the_same_state(tiny: SimpleNamespace, tmp_path: Path) -> None:
    config = replace(tiny.train.SMALL, steps=4)
    whole = tiny.train.Trainer(config, tmp_path / "whole", "cpu")
    whole.run()
    first = tiny.train.Trainer(config, tmp_path / "parts", "cpu")
    first.run(until=2)
    second = tiny.train.Trainer(config, tmp_path / "parts", "cpu", resume=True)
    assert second.step == 2
    second.run()

    assert second.step == whole.step == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
        assert torch.equal(second.average[name], whole.average[name]), name
    assert torch.equal(second.noise.get_state(), whole.noise.get_state())
    assert torch.equal(second.choices.get_state(), whole.choices.get_state())
    parts = [entry for entry in log_of(tmp_path / "parts") if "loss" in entry]
    wanted = [entry for entry in log_of(tmp_path / "whole") if "loss" in entry]
    assert [entry["step"] for entry in parts] == [1, 2, 3, 4]
    assert [entry["loss"] for entry in parts] == [entry["loss"] for entry in wanted]


def test_a_run_to_continue_and_shares_of_one_are_needed(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        tiny.train.Trainer(tiny.train.SMALL, tmp_path, "cpu", resume=True)
    with pytest.raises(ValueError, match="shares"):
        replace(tiny.train.SMALL, shares=(0.5, 0.6))


def test_a_run_begins_with_the_weights_of_another(tiny: SimpleNamespace, tmp_path: Path) -> None:
    config = replace(tiny.train.SMALL, steps=1)
    tiny.train.Trainer(config, tmp_path / "one", "cpu").run()
    start = tmp_path / "one" / "tiny_wan.safetensors"
    other = tiny.train.Trainer(config, tmp_path / "other", "cpu", start=start)
    for name, value in tiny.model_files.load_model(start).state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name
        assert torch.equal(other.average[name], value), name


def test_a_pause_is_no_time_of_the_run(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = iter(range(0, 36_000, 3_600))
    trainer = tiny.train.Trainer(replace(tiny.train.SMALL, minutes=1.0), tmp_path, "cpu")
    now = [0.0]
    step = trainer.take_step

    def long_step() -> Any:
        now[0] += next(hours) or 30.5  # as long as half the run, and hours
        return step()

    monkeypatch.setattr(trainer, "take_step", long_step)
    monkeypatch.setattr(f"{type(trainer).__mro__[1].__module__}.PAUSE_S", 31.0)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    trainer.run(until=4)
    assert trainer.step == 4
    assert trainer.seconds == pytest.approx(30.5)


def test_pool_renews_clips_and_keeps_scenes_balanced(tiny: SimpleNamespace) -> None:
    size = (1, 8, 8)
    clips = tiny.clips.clips_of_every_scene(2, (5, 16, 16), torch.Generator(), "cpu")
    code = tiny.latents.LinearCode.fit(clips)
    source = tiny.clips.Painted(torch.device("cpu"))

    def pool(turn: int = 0) -> Any:
        return tiny.pool.ClipPool(source, code.encode, size, 12, 4, 0, turn)

    generator = torch.Generator().manual_seed(0)
    first = pool()
    before = first.clips.clone()
    assert before.shape == (32, 3, 16, 1, 1, 1)
    assert first.scenes.bincount().tolist() == [4] * 8
    for _ in range(3):
        latents, scenes = first.next_batch(generator)
        assert latents.shape == (12, 16, 1, 1, 1)
        for latent, scene in zip(latents, scenes, strict=True):
            drawn = before[first.scenes == scene].flatten(0, 1)
            later = first.clips[first.scenes == scene].flatten(0, 1)
            assert bool((torch.cat([drawn, later]) == latent).flatten(1).all(1).any())
    changed = (first.clips != before).flatten(1).any(1)
    assert changed.tolist() == [True] * 3 + [False] * 29
    assert torch.equal(pool(turn=3).clips, first.clips)
    with pytest.raises(ValueError, match="reuse is 33, allowed are 1 to 32"):
        tiny.pool.ClipPool(source, code.encode, size, 12, 33, 0)


def test_schedules_follow_the_clock_without_steps(tiny: SimpleNamespace, tmp_path: Path) -> None:
    config = replace(tiny.train.SMALL, minutes=1.0, revisit=0.0, warmup=1)
    trainer = tiny.train.Trainer(config, tmp_path, "cpu")
    assert trainer.choose_grid() == config.grids[0]
    assert trainer.learning_rate() == pytest.approx(config.learning_rate)
    trainer.seconds = 45.0
    assert trainer.progress == 0.75
    assert trainer.choose_grid() == config.grids[1]
    trainer.seconds = 60.0
    assert trainer.learning_rate() == pytest.approx(config.learning_rate / 20)


def test_command_trains_and_its_files_can_be_sampled(tiny: SimpleNamespace, tmp_path: Path) -> None:
    command = [sys.executable, "tools/train_tiny_wan.py", str(tmp_path), "--device", "cpu"]
    command += ["--small", "--steps", "2", "--preset", "small", "--grids", "5x32x32:1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "2 steps" in result.stdout
    assert "validation" in log_of(tmp_path)[-1]

    model = tiny.model_files.load_model(tmp_path / tiny.model_files.WEIGHTS)
    code = tiny.latents.LinearCode.load(tmp_path / tiny.model_files.CODE)
    prompts = tiny.model_files.Prompts.load(tmp_path / tiny.model_files.PROMPTS)
    sizes = {"size": (9, 32, 48), "steps": 3}
    # Weights like those of a trained model: with a fresh one, prompts hardly matter.
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    calls: list[tuple[int, float]] = []

    def on_step(step: int, level: float) -> None:
        calls.append((step, round(level, 3)))

    video = tiny.sample.sample(model, code, prompts, 1, **sizes, on_step=on_step)
    assert video.shape == (3, 9, 32, 48)
    assert calls == [(0, 1.0), (1, 0.857), (2, 0.6)]
    assert torch.equal(video, tiny.sample.sample(model, code, prompts, 1, **sizes))
    for change in ({"seed": 1}, {"cfg": 1.0}):
        other = tiny.sample.sample(model, code, prompts, 1, **sizes, **change)
        assert not torch.equal(video, other), change
    assert not torch.equal(video, tiny.sample.sample(model, code, prompts, 2, **sizes))
    with pytest.raises(ValueError, match="scene is 8"):
        tiny.sample.sample(model, code, prompts, 8, **sizes)
    tiny.sample.write_samples(tmp_path, tmp_path / "samples", [1], "cpu", **sizes)
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        "1_spinning_tile.gif", "sheet.png",
    }  # fmt: skip


def test_pictures(tiny: SimpleNamespace, tmp_path: Path) -> None:
    # Every frame differs: a GIF shows equal neighbours as one longer frame.
    video = torch.linspace(-1, 1, 9).view(1, 9, 1, 1).expand(3, 9, 32, 48)
    tiny.pictures.save_gif(video, tmp_path / "video.gif")
    tiny.pictures.contact_sheet([video], columns=3).save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "video.gif") as gif:
        assert (gif.size, gif.n_frames) == ((48, 32), 9)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 52 - 4, 32)
