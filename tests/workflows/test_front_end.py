"""The example workflows in a real ComfyUI and its real front end, in headless Chromium.

Needs a ComfyUI folder (`COMFYUI_DIR`) with a virtual environment that has its requirements and
playwright, and Chromium; skipped with the reason where one is missing. `browser/check.py` does the
work in that environment and writes a report; the tests judge the report. What takes no server is
in `test_page.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rectified_spaattn.nodes.host import schema_of
from rectified_spaattn.nodes.inputs import NO_PROFILE, NODES
from rectified_spaattn.tests.nodes import comfy_api_stub

from .browser import descriptions
from .browser_run import report_of

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows"
STEMS = sorted(path.stem for path in FOLDER.glob("*.json"))
PACK = "rectified-spaattn"
LOADERS = {"UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader", "CLIPVisionLoader"}
MODEL_NODES = LOADERS | {
    "CheckpointLoaderSimple",
    "LoraLoaderModelOnly",
    "LatentUpscaleModelLoader",
}
SPARE = {
    "bernini_r_video_editing": {"100", "104"},
}
"""Ids of the nodes that ComfyUI's own template, too, holds ready without a way to an output."""
CHECK_SECONDS = 600

pytestmark = pytest.mark.timeout(CHECK_SECONDS + 60)
each_stem = pytest.mark.parametrize("stem", STEMS)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """What `browser/check.py` found, plus the folder of its files under "folder"."""
    return report_of("check.py", tmp_path_factory, CHECK_SECONDS)


def test_page_without_a_server_gets_our_nodes_as_comfyui_describes_them(report: Json) -> None:
    comfy_api_stub.install()
    info = json.loads((Path(report["folder"]) / "object_info.json").read_text(encoding="utf-8"))
    for kind, node in NODES.items():
        info[kind]["input"].pop("hidden", None)
        info[kind]["input_order"].pop("hidden", None)
        expected = descriptions.described(schema_of(node, {"profile_name": [NO_PROFILE]}))
        assert {name: info[kind][name] for name in expected} == expected


def test_page_without_a_server_gets_the_other_nodes_as_recorded(report: Json) -> None:
    record = json.loads(descriptions.RECORD.read_text(encoding="utf-8"))
    if report["comfyui"] != record["comfyui"]:
        pytest.skip(f"recorded with ComfyUI {record['comfyui']}, this is {report['comfyui']}")
    assert report["core_nodes"] == record["nodes"]
    assert report["titles"] == record["titles"]


def test_template_browser_lists_the_workflows_and_nothing_else(report: Json) -> None:
    assert sorted(report["templates"][PACK]) == STEMS


def test_template_browser_gets_workflows_and_thumbnails(report: Json) -> None:
    types = {".json": "application/json", ".jpg": "image/jpeg"}
    for stem in STEMS:
        for suffix, expected in types.items():
            status, content_type, size = report["files"][stem + suffix]
            assert (status, content_type) == (200, expected)
            assert size == (FOLDER / f"{stem}{suffix}").stat().st_size


def test_template_browser_shows_every_thumbnail(report: Json) -> None:
    shown = {card["title"].splitlines()[-1]: card["width"] for card in report["cards"]}
    assert shown == dict.fromkeys(STEMS, 640)


def test_node_library_offers_the_blueprint(report: Json) -> None:
    ours = [
        each for each in report["global_subgraphs"].values() if PACK in each["info"]["node_pack"]
    ]
    assert [each["name"] for each in ours] == list(report["blueprints"])
    assert {each["source"] for each in ours} == {"custom_node"}


def test_blueprint_opens_without_a_word(report: Json) -> None:
    for entry in report["blueprints"].values():
        assert entry["ours"]
        for name in ("messages", "unknown", "marked", "overlaps"):
            assert entry[name] == []


@each_stem
def test_front_end_knows_every_node(report: Json, stem: str) -> None:
    assert report["workflows"][stem]["unknown"] == []


@each_stem
def test_front_end_has_nothing_to_complain_about(report: Json, stem: str) -> None:
    """Model files are in place by name here, so any message would be about the workflow."""
    entry = report["workflows"][stem]
    assert entry["messages"] == []
    assert entry["marked"] == []


@each_stem
def test_no_node_covers_another(report: Json, stem: str) -> None:
    assert report["workflows"][stem]["overlaps"] == []


@each_stem
def test_front_end_shows_the_values_of_the_file(report: Json, stem: str) -> None:
    workflow = json.loads((FOLDER / f"{stem}.json").read_text(encoding="utf-8"))
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    stored = {str(node["id"]): node for graph in graphs for node in graph["nodes"]}
    ours = report["workflows"][stem]["ours"]
    assert ours
    for node in ours:
        order = report["widget_order"][node["type"]]
        expected = dict(zip(order, stored[node["id"]]["widgets_values"], strict=True))
        # The status line is a widget too; it is not an input.
        shown = {name: value for name, value in node["widgets"].items() if name in expected}
        assert shown == expected


@each_stem
def test_api_file_is_what_run_would_send(report: Json, stem: str) -> None:
    stored = json.loads((FOLDER / "api" / f"{stem}.json").read_text(encoding="utf-8"))
    assert report["workflows"][stem]["prompt"] == stored


@each_stem
def test_server_misses_nothing_but_model_files(report: Json, stem: str) -> None:
    errors = report["workflows"][stem]["errors_without_models"]
    assert errors
    for node, kind, _, value in errors:
        assert node in MODEL_NODES
        assert kind == "value_not_in_list"
        assert value.endswith(".safetensors")


@each_stem
def test_server_accepts_the_prompt_once_models_are_there(report: Json, stem: str) -> None:
    assert report["workflows"][stem]["errors_with_models"] == []


@each_stem
def test_schedules_draw_their_preview(report: Json, stem: str) -> None:
    for width in report["workflows"][stem]["previews"]:
        assert width > 0


@each_stem
def test_comfy_cli_finds_the_api_file_valid(report: Json, stem: str) -> None:
    program = Path(sys.executable).with_name("comfy")
    if not program.exists():
        pytest.skip("comfy-cli is not installed")
    info = Path(report["folder"]) / "object_info.json"
    command = [program, "--skip-prompt", "--no-enable-telemetry", "workflow", "validate"]
    command += ["--workflow", FOLDER / "api" / f"{stem}.json", "--input", info]
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    data = json.loads(result.stdout)["data"]
    assert (data["valid"], data["error_count"]) == (True, 0)
    spare = {("node_not_reachable_from_output", node) for node in SPARE.get(stem, ())}
    assert {(each["code"], each["node_id"]) for each in data["warnings"]} == spare
