"""The paired comparison against a server that answers as ComfyUI does."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rectified_spaattn.benchmarks.paired import __main__ as program
from rectified_spaattn.benchmarks.paired import graph as graphs
from rectified_spaattn.benchmarks.paired import record, server
from rectified_spaattn.benchmarks.paired.compare import compare, lpips_distance
from rectified_spaattn.rspa_core import ConfigError

from .fake_comfy import FRAMES, HEIGHT, REPORT, WIDTH, FakeComfy, answer

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "api" / "wan2.1_text_to_video.json"
OURS = "RectifiedSpaAttn"


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeComfy]:
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setattr(server, "POLL_S", 0.01)
    with FakeComfy() as fake:
        yield fake


def words(fake: FakeComfy, folder: Path, *more: str, workflow: Path = WORKFLOW) -> list[str]:
    folder.mkdir(exist_ok=True)
    lines = ["a fox", "", "# not this", "  a paper boat \N{ZERO WIDTH JOINER} "]
    (folder / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    files = ["--workflow", str(workflow), "--prompts", str(folder / "prompts.txt")]
    return ["--server", fake.url, *files, "--out", str(folder / "out"), *more]


def made_record(comfy: FakeComfy, folder: Path) -> dict[str, Any]:
    program.main(words(comfy, folder))
    return record.read(folder / "out" / "paired.json")


def test_every_prompt_and_seed_is_rendered_twice_and_compared(
    comfy: FakeComfy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program.main(words(comfy, tmp_path, "--seeds", "5", "6"))
    made = record.read(tmp_path / "out" / "paired.json")

    assert [(clip["prompt"], clip["seed"]) for clip in made["clips"]] == [
        ("a fox", 5), ("a fox", 6), ("a paper boat", 5), ("a paper boat", 6),
    ]  # fmt: skip
    queued = [
        (graph["54:6"]["inputs"]["text"], graph["55:3"]["inputs"]["seed"], graph[OURS_ID]["inputs"])
        for graph in comfy.graphs
    ]
    assert [each[:2] for each in queued[::2]] == [each[:2] for each in queued[1::2]]
    assert [each[2]["enabled"] for each in queued] == [False, True] * 4
    for graph in comfy.graphs:
        classes = [node["class_type"] for node in graph.values()]
        assert classes.count("PreviewImage") == 1
        assert not {"SaveVideo", "CreateVideo"} & set(classes)
    for clip in made["clips"]:
        # Normal noise of standard deviation 4, rounded: its variance is that of both.
        assert clip["psnr"] == pytest.approx(20 * math.log10(255 / math.hypot(4, 0.41)), abs=0.3)
        assert 0.5 < clip["ssim"] < 1
        assert clip["lpips"] is None
        assert clip["dense"]["seconds"] == 3.5
        assert clip["sparse"]["sampling_s"] >= 0
        assert clip["sparse"]["peak_gib"] == 20.0
        assert clip["reports"][0]["steps"] == 2
    assert made["device"] == {
        "name": "NVIDIA GeForce RTX 4090", "type": "cuda", "memory_gib": 24.0,
    }  # fmt: skip
    assert made["settings"] == [REPORT["settings"]]
    size = [made["workflow"][name] for name in ("frames", "height", "width")]
    assert size == [FRAMES, HEIGHT, WIDTH]
    assert made["workflow"]["diffusion"] == ["wan2.1_t2v_1.3B_fp16.safetensors"]
    assert made["summary"]["psnr"]["worst"] == min(
        float(f"{clip['psnr']:.5g}") for clip in made["clips"]
    )
    text = (tmp_path / "out" / "paired.json").read_text()
    assert "somebody" not in text
    assert str(tmp_path) not in text
    with Image.open(tmp_path / "out" / "paired.png") as picture:
        assert picture.width == 960
    assert "PSNR" in capsys.readouterr().out


OURS_ID = next(
    key for key, node in json.loads(WORKFLOW.read_text()).items() if node["class_type"] == OURS
)


def test_what_a_folder_has_is_not_rendered_again(
    comfy: FakeComfy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = server.Server.render

    def ended(self: server.Server, graph: graphs.Graph) -> server.Render:
        if len(comfy.graphs) == 3:
            raise server.ServerError("the ComfyUI has ended")
        return render(self, graph)

    monkeypatch.setattr(server.Server, "render", ended)
    with pytest.raises(SystemExit, match="has ended"):
        program.main(words(comfy, tmp_path))
    part = record.read(tmp_path / "out" / "paired.json")
    assert [clip["prompt"] for clip in part["clips"]] == ["a fox"]

    monkeypatch.setattr(server.Server, "render", render)
    program.main(words(comfy, tmp_path))
    assert len(comfy.graphs) == 4
    whole = record.read(tmp_path / "out" / "paired.json")
    assert whole["clips"][0] == part["clips"][0]
    assert len(whole["clips"]) == 2
    own_prompt = [*words(comfy, tmp_path)[:4], "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="clips of another workflow, prompt or setting"):
        program.main(own_prompt)


def test_lpips_where_it_is_installed(
    comfy: FakeComfy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x.shape == y.shape == (1, 3, HEIGHT, WIDTH)
        assert x.min() >= -1
        assert x.max() <= 1
        return (x - y).abs().mean()

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=lambda net, verbose: distance))
    made = made_record(comfy, tmp_path)
    # The mean of a normal variable's absolute value, in [-1, 1].
    expected = 4 * math.sqrt(2 / math.pi) / 127.5
    assert made["clips"][0]["lpips"] == pytest.approx(expected, rel=0.1)
    assert made["summary"]["lpips"]["worst"] >= made["summary"]["lpips"]["mean"]


def test_no_server(tmp_path: Path) -> None:
    fake = FakeComfy()
    fake.url = "http://127.0.0.1:1"
    with pytest.raises(SystemExit, match=r"no ComfyUI answers at http://127.0.0.1:1 .*--server"):
        program.main(words(fake, tmp_path))


def test_another_server(comfy: FakeComfy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (b"<html>", {"hello": 1}):
        monkeypatch.setattr(
            FakeComfy, "_get", lambda self, request, said=body: answer(request, said)
        )
        with pytest.raises(SystemExit, match="is no ComfyUI"):
            program.main(words(comfy, tmp_path))


def test_lpips_without_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(net: str, verbose: bool) -> None:
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=offline))
    assert lpips_distance() is None
    assert "left out, its weights cannot be loaded: no network" in capsys.readouterr().out


def test_a_server_without_the_pack(comfy: FakeComfy, tmp_path: Path) -> None:
    comfy.knows_node = False
    with pytest.raises(SystemExit, match="install the pack there"):
        program.main(words(comfy, tmp_path))


def test_refusals_and_failures_are_the_servers_own(comfy: FakeComfy, tmp_path: Path) -> None:
    errors = [{"message": "Value not in list", "details": "unet_name: 'wan.safetensors' not in []"}]
    comfy.refusal = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {"37": {"class_type": "UNETLoader", "errors": errors}},
    }
    with pytest.raises(SystemExit, match=r"(?s)failed validation.*UNETLoader.*wan.safetensors"):
        program.main(words(comfy, tmp_path))
    comfy.refusal = "<html>no</html>"
    with pytest.raises(SystemExit, match="<html>no</html>"):
        program.main(words(comfy, tmp_path))
    comfy.refusal = None
    said = {"node_id": "3", "node_type": "KSampler", "exception_message": "out of memory\n"}
    comfy.failure = ["execution_error", said]
    with pytest.raises(SystemExit, match="node 3, KSampler: out of memory"):
        program.main(words(comfy, tmp_path))
    comfy.failure = ["execution_interrupted", {}]
    with pytest.raises(SystemExit, match="interrupted"):
        program.main(words(comfy, tmp_path))


def changed(folder: Path, change: Any) -> Path:
    graph = json.loads(WORKFLOW.read_text())
    path = folder / "workflow.json"
    path.write_text(json.dumps(change(graph)))
    return path


def without(class_type: str) -> Any:
    return lambda graph: {
        key: node for key, node in graph.items() if node["class_type"] != class_type
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(OURS), "holds no node 'Rectified SpaAttn"),
        (without("VAEDecode"), "no VAEDecode or VAEDecodeTiled.*--frames-of"),
        (lambda graph: {"nodes": [], "links": []}, r"Export \(API\)"),
        (lambda graph: [1], "no workflow in API form"),
        (lambda graph: {"1": {"class_type": 3, "inputs": {}}}, "no workflow in API form"),
        (without("CLIPTextEncode"), "--prompt-node"),
    ],
)
def test_workflows_that_cannot_be_compared(
    comfy: FakeComfy, tmp_path: Path, change: Any, said: str
) -> None:
    with pytest.raises(SystemExit, match=said):
        program.main(words(comfy, tmp_path, workflow=changed(tmp_path, change)))
    assert not comfy.graphs


def test_bad_files_and_options(comfy: FakeComfy, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(SystemExit, match=r"bad\.json is no JSON"):
        program.main(words(comfy, tmp_path, workflow=bad))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(SystemExit, match="a prompt in a line"):
        program.main([*words(comfy, tmp_path), "--prompts", str(tmp_path / "empty.txt")])
    with pytest.raises(SystemExit, match="up to 64 prompts and seeds"):
        program.main(words(comfy, tmp_path, "--seeds", *map(str, range(33))))
    with pytest.raises(SystemExit, match="no node 99"):
        program.main(words(comfy, tmp_path, "--frames-of", "99"))
    with pytest.raises(SystemExit):
        program.main([])


WRITES_A_PROMPT = ("CLIPTextEncode", "MiniMaxH3ImageToVideo", "PrimitiveStringMultiline")


@pytest.mark.parametrize("path", sorted(WORKFLOW.parent.glob("*.json")), ids=lambda path: path.stem)
def test_example_workflows(path: Path) -> None:
    graph = graphs.read_workflow(path)
    if path.stem == "tune_with_the_probe":
        with pytest.raises(graphs.WorkflowError, match="2 of them"):
            graphs.frames_node(graph)
        with pytest.raises(graphs.WorkflowError, match="which measures"):
            graphs.frames_node(graph, "66:8")
        return
    if path.stem == "scail2_character_replacement":  # two segments, the second behind the first
        with pytest.raises(graphs.WorkflowError, match="2 of them"):
            graphs.frames_node(graph)
        frames = graphs.frames_node(graph, "213:6")
    else:
        frames = graphs.frames_node(graph)
    node, name = graphs.prompt_input(graph, frames)
    assert graph[node]["class_type"] in WRITES_A_PROMPT
    assert isinstance(graph[node]["inputs"][name], str)
    assert len(graph[node]["inputs"][name]) > 20
    text = (node, name, "a fox")
    dense, sparse = (graphs.render_graph(graph, frames, text, 7, on) for on in (False, True))
    assert graphs.digest(dense) != graphs.digest(sparse)
    ours = [key for key, each in sparse.items() if each["class_type"] == OURS]
    has_two = "14B" in path.stem or path.stem == "bernini_r_video_editing"
    assert len(ours) == (2 if has_two else 1)
    for key, each in dense.items():
        for name, value in each["inputs"].items():
            if name in graphs.SEEDS:
                assert value == 7
            if isinstance(value, list):
                assert value[0] in dense
            if key not in ours:
                assert sparse[key]["inputs"][name] == value
    assert graphs.model_files(sparse)[0]
    assert graphs.read_workflow(path) == graph, "it was not changed"


def test_comparison_of_clips(tmp_path: Path) -> None:
    files = []
    for index, value in enumerate((100, 110)):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.full((16, 16, 3), value, dtype=np.uint8)).save(path)
        files.append(path)
    same = compare(files, files, None)
    assert same["psnr"] is None
    assert same["ssim"] == pytest.approx(1)
    found = compare([files[0]] * 2, files, None)
    # Half of the frames differ by ten.
    assert found["psnr"] == pytest.approx(10 * math.log10(2 * (255 / 10) ** 2), abs=1e-3)
    with pytest.raises(ValueError, match="2 and 1 frames"):
        compare(files, files[:1], None)


def test_table(comfy: FakeComfy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_record(comfy, tmp_path)
    file = tmp_path / "out" / "paired.json"
    document = tmp_path / "benchmarks.md"
    table = f"{record.HEADER}\n|{'---|' * len(record.HEADS)}\n"
    document.write_text(f"before\n\n{record.MISSING}\n\n{table}\nafter\n")
    words = ["--add", str(file), "--document", str(document)]
    program.main(words)
    program.main(words)  # in place of the first
    text = document.read_text()
    assert text.count("RTX 4090") == 1
    assert record.MISSING not in text
    assert (
        "| NVIDIA GeForce RTX 4090 | `wan2.1_t2v_1.3B_fp16` | 32x24x3 | balanced, 2 steps" in text
    )
    assert text.startswith("before")
    assert text.endswith("\nafter\n")
    assert "RTX 4090" in capsys.readouterr().out


def test_document_has_the_table() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert record.HEADER in text
    assert record.with_row(text, f"| {' | '.join('abcdefghijkl')} |").count("| a | b | c |") == 1


def test_a_strangers_file_is_held_to_its_fields(comfy: FakeComfy, tmp_path: Path) -> None:
    made = made_record(comfy, tmp_path)
    changes: list[tuple[str, Any]] = [
        ("device.name", "RTX | 4090"), ("workflow.diffusion", ["`x`"]), ("workflow.name", "../x"),
        ("pack", "new"), ("clips", []), ("settings", ["x"]), ("summary.psnr", {"mean": 99.0}),
        ("summary.times", 9.0), ("software.system", "<b>"),
    ]  # fmt: skip
    for field, value in changes:
        bad = json.loads(json.dumps(made))
        *outer, name = field.split(".")
        place = bad[outer[0]] if outer else bad
        place[name] = value
        with pytest.raises(ConfigError):
            record.check(bad)
    odd = json.loads(json.dumps(made)) | {"settings": [{"preset": "a | b `c`"}]}
    assert record.row_of(record.check(odd)).count("|") == len(record.HEADS) + 1
    made["device"]["type"] = "cpu"
    with pytest.raises(ValueError, match="on a CPU"):
        record.row_of(made)


def test_a_run_without_sparse_calls_says_why_and_stays_out_of_the_table(
    comfy: FakeComfy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(REPORT, "sparse", 0)
    monkeypatch.setitem(REPORT, "density", None)
    made = made_record(comfy, tmp_path)
    assert "nothing was sparse: first 20 %" in capsys.readouterr().out
    with pytest.raises(ValueError, match="without a sparse call"):
        record.row_of(made)


def test_a_node_that_stays_on_is_an_error(
    comfy: FakeComfy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FakeComfy, "_history", lambda self, number, old=FakeComfy._history: _always_on(old, self)
    )
    with pytest.raises(SystemExit, match="stays on"):
        program.main(words(comfy, tmp_path))


def _always_on(history: Any, fake: FakeComfy) -> dict[str, Any]:
    found = history(fake, 0)
    found["outputs"]["paired_report_0_json"]["text"] = [json.dumps(REPORT)]
    return found
