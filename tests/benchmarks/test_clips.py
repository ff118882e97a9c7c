"""The benchmark of clips end to end with an untrained model: numbers, table, files."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rectified_spaattn.benchmarks.clips import __main__ as clips
from rectified_spaattn.benchmarks.clips import model as clips_model
from rectified_spaattn.benchmarks.clips.report import Run
from rectified_spaattn.benchmarks.methods import Method
from rectified_spaattn.benchmarks.output import write_json
from rectified_spaattn.benchmarks.trained_model import tiny_wan

CPU = torch.device("cpu")
SIZE = (13, 192, 224)
"""4 x 12 x 14 tokens: eleven blocks of 64."""
SHORT = (9, 192, 224)
"""3 x 12 x 14 tokens: each frame costs a picture."""
SAMPLING = clips_model.Sampling(SIZE, steps=3, cfg=3.0, shift=3.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a model with random weights."""
    pytest.importorskip("diffusers", reason="diffusers is not installed (make venv installs it)")
    path = tmp_path_factory.mktemp("model")
    files, model = tiny_wan("model_files"), tiny_wan("model")
    torch.manual_seed(0)
    config = model.SMALL
    net = model.WanModel(config)
    torch.nn.init.normal_(net.head.head.weight, std=0.3)  # it starts at zero
    for block in net.blocks:
        torch.nn.init.normal_(block.self_attn.q.weight, std=0.4)  # attention that is not flat
    files.save_model(net.state_dict(), config, path / files.WEIGHTS)
    names = tuple(f"scene {number}" for number in range(8))
    files.Prompts.make(names, config.text_dim).save(path / files.PROMPTS)
    coder = tiny_wan("autoencoder")
    coder.Autoencoder(coder.SMALL).save(path / files.VAE)
    return path


def test_clips_are_decoded_by_the_autoencoder_in_the_folder(folder: Path) -> None:
    checkpoint = clips_model.load_checkpoint(folder, CPU, torch.float32)
    latents = torch.randn(2, 16, 2, 4, 6)
    network = tiny_wan("autoencoder").Autoencoder.load(folder / tiny_wan("model_files").VAE)
    expected = network.decode(latents).clamp(-1, 1)
    torch.testing.assert_close(clips_model.decode(checkpoint.autoencoder, latents), expected)
    # Latents that were kept on the CPU for the pictures, of an autoencoder that is elsewhere.
    elsewhere = checkpoint.autoencoder.to("meta")
    assert clips_model.decode(elsewhere, latents).device == torch.device("meta")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> clips_model.Checkpoint:
    return clips_model.load_checkpoint(folder, CPU, torch.float32)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_full_attention_samples_what_the_model_itself_samples(folder: Path, cfg: float) -> None:
    checkpoint = clips_model.load_checkpoint(folder, CPU, torch.float32)
    sampling = clips_model.Sampling(SIZE, 3, cfg, 3.0)
    got = clips_model.sample(checkpoint, 2, [5, 6], sampling, clips_model.DENSE)
    assert got.record is None
    assert len(got.step_seconds) == 3
    files = tiny_wan("model_files")
    model = files.load_model(folder / files.WEIGHTS)
    for row, seed in enumerate((5, 6)):
        expected = tiny_wan("sample").sample_latents(
            model, checkpoint.prompts, 2, sampling.latent_grid, 3, seed, cfg
        )
        torch.testing.assert_close(got.latents[row : row + 1], expected, rtol=1e-4, atol=1e-4)


def test_sparse_steps_follow_the_dense_ones(checkpoint: clips_model.Checkpoint) -> None:
    before = checkpoint.transformer.attn_processors
    variant = clips_model.Variant(Method("paper"), 64, kept=0.4, dense_steps=1)
    steps: list[int] = []
    got = clips_model.sample(
        checkpoint, 0, [0], SAMPLING, variant, "reference", lambda: steps.append(1)
    )
    assert steps == [1, 1, 1]
    assert got.record is not None
    # Two layers; the two branches of guidance are one batch.
    assert (got.record.sparse, got.record.dense) == (4, 2)
    assert got.record.density is not None
    assert 0.3 < got.record.density < 1.0
    after = checkpoint.transformer.attn_processors
    assert all(after[name] is each for name, each in before.items())
    dense = clips_model.sample(checkpoint, 0, [0], SAMPLING, clips_model.DENSE)
    difference = (got.latents - dense.latents).norm() / dense.latents.norm()
    assert 1e-4 < difference < 0.5


def test_ramp_keeps_the_mean_and_shares_are_those_of_the_steps(
    checkpoint: clips_model.Checkpoint,
) -> None:
    def kept(**options: Any) -> list[tuple[float, float]]:
        variant = clips_model.Variant(Method("precise"), 64, **options)
        got = clips_model.sample(checkpoint, 0, [0], SAMPLING, variant, "reference")
        assert got.record is not None
        return list(got.record.kept)

    even, ramp = kept(kept=0.5), kept(kept=0.5, ramp=1.0)
    assert [planned for planned, _ in even] == pytest.approx([0.5] * 3)
    assert sum(planned for planned, _ in ramp) == pytest.approx(1.5, abs=1e-3)
    assert ramp[0][0] > 0.55 > 0.5 > ramp[1][0]
    assert ramp[0][1] > even[0][1] >= ramp[1][1]
    shares = kept(shares=(1.0, 0.75, 0.5))
    assert [planned for planned, _ in shares] == pytest.approx([0.75, 0.5])
    assert clips_model.Variant(Method("none"), 64, ramp=0.5).label == "none, 64, ramp 0.5"
    assert clips_model.Variant(Method("none"), shares=(1, 0.5)).label == "none, 64, shares 1/0.5"


def test_batches_do_not_change_clips(checkpoint: clips_model.Checkpoint) -> None:
    variant = clips_model.Variant(Method("precise"), 64, kept=0.4)
    both = clips_model.sample(checkpoint, 0, [3, 4], SAMPLING, variant, "reference")
    one = clips_model.sample(checkpoint, 0, [4], SAMPLING, variant, "reference")
    torch.testing.assert_close(both.latents[1:], one.latents, rtol=1e-4, atol=1e-4)


def test_variants_are_all_that_was_asked_for() -> None:
    words = ["--kept", ".4", ".2", "--ramp", "0", "1", "--dense-steps", "0", "--no-neighbours"]
    options = clips.parse([*words, "--shares", "1,.5", "--rectification", "none", "--steps", "2"])
    found = clips.variants_of(options)
    asked = [(each.kept, each.ramp, each.shares) for each in found]
    assert asked == [(0.4, 0, ()), (0.4, 1, ()), (0.2, 0, ()), (0.2, 1, ()), (1.0, 0, (1.0, 0.5))]
    assert not any(each.neighbours for each in found)
    assert all(each.neighbours for each in clips.variants_of(clips.parse([])))


def test_worst_scene_is_that_of_the_lowest_mean() -> None:
    variant = clips_model.Variant(Method("none"))
    runs = [Run(variant, scene, 0, 1, 1.0, None, psnr=db) for scene, db in enumerate((40, 30, 50))]
    (row,) = clips.table_of([*runs, Run(variant, 1, 1, 1, 1.0, None, psnr=34)])
    assert row["psnr_worst_scene"] == 32
    assert clips.table_of(runs[:1])[0]["psnr_worst_scene"] is None


def test_seeds_are_dealt_out_evenly() -> None:
    assert clips_model.batches(range(2, 7), 4) == [[2, 3, 4], [5, 6]]
    assert clips_model.batches([1], 4) == [[1]]


def test_layers_that_diffusers_keeps_in_fp32_stay_so(folder: Path) -> None:
    checkpoint = clips_model.load_checkpoint(folder, CPU, torch.bfloat16)
    block = checkpoint.transformer.blocks[0]
    assert block.attn1.to_q.weight.dtype == torch.bfloat16
    assert block.scale_shift_table.dtype == block.norm2.weight.dtype == torch.float32
    variant = clips_model.Variant(Method("paper"), 64, kept=0.4)
    got = clips_model.sample(checkpoint, 0, [0], SAMPLING, variant, "reference")
    assert got.latents.dtype == torch.float32
    assert got.latents.isfinite().all()
    assert got.record is not None
    assert got.record.dense == 0


def test_missing_files_and_scenes_are_named(
    folder: Path, tmp_path: Path, checkpoint: clips_model.Checkpoint
) -> None:
    with pytest.raises(FileNotFoundError, match=r"tiny_wan\.safetensors is missing"):
        clips_model.load_checkpoint(tmp_path, CPU, torch.float32)
    with pytest.raises(ValueError, match="scene is 8, allowed are 0 to 7"):
        clips_model.sample(checkpoint, 8, [0], SAMPLING, clips_model.DENSE)


@pytest.fixture(scope="module")
def output(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Printed text and output folder of one run."""
    out = tmp_path_factory.mktemp("out") / "new"
    words = [str(folder), "--device", "cpu", "--out", str(out), "--steps", "3", "--seeds", "2"]
    words += ["--size", *map(str, SHORT), "--kept", "0.4", "--dense-steps", "1"]
    words += ["--rectification", "none", "precise", "--tail-keys", "1", "2"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert clips.main(words) == 0
    return text.getvalue(), out


LABELS = ["dense", *["none, 64", "precise 1 key, 64", "precise 2 keys, 64"]]


def test_table_has_a_row_for_every_variant(output: tuple[str, Path]) -> None:
    lines = output[0].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("---")) + 1
    rows = lines[start : start + len(LABELS)]
    assert [row.split("  ")[0] for row in rows] == LABELS
    cells = [row.removeprefix(label).split() for row, label in zip(rows, LABELS, strict=True)]
    # One scene: none of them is the worst.
    assert [len(each) for each in cells] == [4, *[12] * 3]
    assert "504 tokens" in output[0]


def test_results_hold_a_record_for_every_clip(output: tuple[str, Path]) -> None:
    data = json.loads((output[1] / "results.json").read_text())
    assert [row["variant"] for row in data["table"]] == LABELS
    assert data["tokens"] == 504
    assert data["options"]["seeds"] == 2
    runs = data["runs"]
    assert len(runs) == 2 * len(LABELS)
    for run in runs:
        assert run["seconds"] > 0
        if run["variant"] == "dense":
            assert run["psnr"] is None
            continue
        assert (run["sparse_calls"], run["dense_calls"]) == (4, 2)
        assert run["reasons"] == {"schedule: dense step": 2}
        assert 0 < run["density"] < 1
        assert run["mean_kept"] == pytest.approx((2 * run["density"] + 1) / 3)
        assert run["psnr"] > 10
        assert 0 < run["ssim"] <= 1
    for row in data["table"][1:]:
        mine = [run["psnr"] for run in runs if is_of(run, row)]
        assert len(mine) == row["clips"] == 2
        assert row["psnr"] == pytest.approx(sum(mine) / 2)
        assert row["psnr_spread"] == pytest.approx(abs(mine[0] - mine[1]) / math.sqrt(2))


def is_of(run: dict[str, Any], row: dict[str, Any]) -> bool:
    return all(run[name] == row[name] for name in ("variant", "kept", "dense_steps"))


def test_pictures(output: tuple[str, Path]) -> None:
    text, out = output
    stem = out / "kept0.4_dense1_block64"
    assert f"{stem}.gif" in text
    with Image.open(f"{stem}.gif") as gif:
        assert gif.n_frames == 9
        assert gif.width > 4 * SHORT[2]
    with Image.open(f"{stem}.png") as png:
        assert png.width > 1000


def test_equal_clips_are_saved_as_null(tmp_path: Path) -> None:
    run = Run(clips_model.Variant(Method("none")), 0, 0, 1, 1.0, None, psnr=math.inf, ssim=1.0)
    rows = clips.table_of([run])
    assert rows[0]["psnr"] == math.inf
    write_json({"table": rows, "runs": [run.as_dict()]}, tmp_path / "results.json")
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["runs"][0]["psnr"] is data["table"][0]["psnr"] is None
    assert data["table"][0]["ssim"] == 1.0
    assert data["runs"][0]["method"] == "none"


@pytest.mark.parametrize(
    "words, text",
    [
        (["--kept", "0.01"], "--kept: 0.01 is not allowed"),
        (["--dense-steps", "-1"], "--dense-steps: -1 is not allowed"),
        (["--blocks", "32"], "invalid choice"),
        (["--ramp", "0.5", "2"], "--ramp: 2.0 is not allowed"),
        (["--shares", "1,1.5"], "1,1.5: numbers from 0.02 to 1 are allowed"),
    ],
)
def test_options_are_checked(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        clips.main(["model", *words])
    assert text in capsys.readouterr().err
