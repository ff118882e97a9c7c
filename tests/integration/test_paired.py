"""The paired comparison from end to end: the example workflow with the small trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from rectified_spaattn.benchmarks.paired import __main__ as program
from rectified_spaattn.benchmarks.paired import record
from rectified_spaattn.benchmarks.trained_model import CHECKPOINT, TOOLS, tiny_wan

from .comfy_server import PROJECT_ROOT
from .graphs import SCENES as SCENES_OF_MODELS
from .graphs import STEPS as STEPS_OF_MODELS
from .graphs import rectified, sampled

WORKFLOW = PROJECT_ROOT / "workflows" / "api" / "wan2.1_text_to_video.json"
SIZE = (17, 192, 192)
STEPS = 3
SCENES = (0, 3)


def small_workflow(size: tuple[int, int, int] = SIZE, steps: int = STEPS) -> dict:
    """The example workflow with the small model's files, sampling and stand-ins, for a CPU."""
    nodes = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    ids = {node["class_type"]: key for key, node in nodes.items()}
    frames, height, width = size
    prompts, vae = (str(CHECKPOINT / f"tiny_wan_{each}.safetensors") for each in ("prompts", "vae"))
    stand_ins = {
        "CLIPLoader": ("RSPATestClip", {"path": prompts}),
        "VAELoader": ("RSPATestVae", {"tools": str(TOOLS), "path": vae}),
    }
    for name, (class_type, inputs) in stand_ins.items():
        nodes[ids[name]] = {"class_type": class_type, "inputs": inputs}
    changes = {
        "UNETLoader": {"unet_name": "tiny_wan.safetensors"},
        "EmptyHunyuanLatentVideo": {"width": width, "height": height, "length": frames},
        "ModelSamplingSD3": {"shift": 3.0},
        "KSampler": {"steps": steps, "cfg": 2.0, "sampler_name": "euler"},
        "RectifiedSpaAttn": {"preset": "custom", "block_size": "64", "start_percent": 0.3},
        "RectifiedSpaAttnOptions": {"dense_blocks": "", "min_tokens": 0, "backend": "reference"},
    }
    for class_type, inputs in changes.items():
        nodes[ids[class_type]]["inputs"] |= inputs
    return nodes


def arguments(comfy, folder: Path, workflow: dict) -> list[str]:
    """The command line for two scenes of the small model."""
    model = comfy.server.base / "models" / "diffusion_models" / "tiny_wan.safetensors"
    if not model.exists():
        model.symlink_to(CHECKPOINT / model.name)
    names = tiny_wan("model_files").Prompts.load(CHECKPOINT / "tiny_wan_prompts.safetensors").names
    (folder / "workflow.json").write_text(json.dumps(workflow))
    (folder / "prompts.txt").write_text("\n".join(names[scene] for scene in SCENES))
    words = {
        "--server": comfy.server.url, "--workflow": folder / "workflow.json",
        "--prompts": folder / "prompts.txt", "--out": folder / "out",
    }  # fmt: skip
    return [str(each) for pair in words.items() for each in pair]


def test_two_prompts(comfy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(comfy, tmp_path, small_workflow())
    program.main(words)
    made = record.read(tmp_path / "out" / "paired.json")

    assert made["device"]["name"] == "CPU"
    assert made["workflow"]["diffusion"] == ["tiny_wan.safetensors"]
    assert [made["workflow"][name] for name in ("frames", "height", "width")] == list(SIZE)
    assert made["settings"][0]["block_size"] == 64
    first, second = made["clips"]
    assert first["prompt"] != second["prompt"]
    for clip in made["clips"]:
        assert 10 < clip["psnr"] < 60
        assert 0.3 < clip["ssim"] < 1
        (report,) = clip["reports"]
        assert (report["steps"], report["tokens"]) == (STEPS, 720)
        assert report["sparse"] > report["dense"] > 0
        for kind in ("dense", "sparse"):
            assert 0 < clip[kind]["sampling_s"] <= clip[kind]["seconds"] + 1
            assert clip[kind]["peak_gib"] is None
    assert first["psnr"] != second["psnr"]
    with Image.open(tmp_path / "out" / "paired.png") as picture:
        assert picture.width == 960
    text = (tmp_path / "out" / "paired.json").read_text()
    assert str(CHECKPOINT) not in text
    assert not list((comfy.server.base / "output").glob("video/*"))

    # Again: nothing is queued, and the record is the same.
    queued = len(comfy.server.get("/history"))
    assert queued
    capsys.readouterr()
    program.main(words)
    assert len(comfy.server.get("/history")) == queued
    assert "clip 1 of 2, dense" not in capsys.readouterr().out
    assert record.read(tmp_path / "out" / "paired.json") == made


def test_both_experts_with_the_workflows_own_prompt(comfy, tmp_path: Path) -> None:
    nodes = sampled(SCENES_OF_MODELS["wan22_t2v_a14b"], rectified())
    (saver,) = (key for key, node in nodes.items() if node["class_type"] == "RSPATestSaveLatent")
    latent = nodes.pop(saver)["inputs"]["latent"]
    vae = {"tools": str(TOOLS), "path": str(CHECKPOINT / "tiny_wan_vae.safetensors")}
    nodes["vae"] = {"class_type": "RSPATestVae", "inputs": vae}
    decode = {"samples": latent, "vae": ["vae", 0]}
    nodes["decode"] = {"class_type": "VAEDecode", "inputs": decode}
    file = tmp_path / "experts.json"
    file.write_text(json.dumps(nodes))
    out = tmp_path / "out"
    program.main(
        ["--server", comfy.server.url, "--workflow", str(file), "--seeds", "7", "--out", str(out)]
    )
    made = record.read(out / "paired.json")
    (clip,) = made["clips"]
    assert (clip["prompt"], clip["seed"]) == (None, 7)
    assert 10 < clip["psnr"] < 80
    assert len(made["settings"]) == len(clip["reports"]) == 2
    assert [report["steps"] for report in clip["reports"]] == [STEPS_OF_MODELS] * 2
    assert all(report["sparse"] for report in clip["reports"])
    assert len(made["workflow"]["diffusion"]) == 2


def test_missing_model_is_said_in_the_servers_words(comfy, tmp_path: Path) -> None:
    workflow = small_workflow()
    for node in workflow.values():
        if node["class_type"] == "UNETLoader":
            node["inputs"]["unet_name"] = "nowhere.safetensors"
    with pytest.raises(SystemExit, match=r"(?s)refuses the workflow:.*UNETLoader.*nowhere"):
        program.main(arguments(comfy, tmp_path, workflow))


def test_dense_node_gives_equal_clips(comfy, tmp_path: Path) -> None:
    """Both renders are the same to the last bit where the node leaves everything dense."""
    workflow = small_workflow(steps=1)
    for node in workflow.values():
        if node["class_type"] == "RectifiedSpaAttnOptions":
            node["inputs"]["min_tokens"] = 8192
    program.main(arguments(comfy, tmp_path, workflow))
    made = record.read(tmp_path / "out" / "paired.json")
    assert made["summary"]["equal"] == 2
    assert made["summary"]["density"] is None
