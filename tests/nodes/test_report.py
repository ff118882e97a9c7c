"""The report node's words, its JSON, and what it does with models that have no run to show."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rectified_spaattn.nodes import patching
from rectified_spaattn.nodes.host import WHOLE
from rectified_spaattn.nodes.pictures import CompactCanvas
from rectified_spaattn.nodes.report import RectifiedSpaAttnReport
from rectified_spaattn.rspa_core.run import report_text as words
from rectified_spaattn.rspa_core.run.calls import RunSettings

from .run_records import run_record


def node_output(*values: Any, ui: Any = None) -> SimpleNamespace:
    return SimpleNamespace(values=values, ui=ui)


def patched_model(last_run: Any) -> SimpleNamespace:
    """A model patcher with our patch after the given run."""
    patch = patching.SparseAttentionPatch(RunSettings())
    patch.run.report.last_run = last_run
    return SimpleNamespace(wrappers={"apply_model": {patching.KEY: [patch]}}, model_options={})


def assert_shows(shown: dict[str, Any], image: torch.Tensor) -> None:
    """A compact picture on the node; the page gets the whole one beside it."""
    assert shown[WHOLE] == [image]
    (picture,) = shown["images"]
    assert picture.shape[2] == CompactCanvas.WIDTH < image.shape[2]


def test_report_of_a_run() -> None:
    record = run_record()
    result = RectifiedSpaAttnReport.execute(patched_model(record), after=None)
    image, summary, text = result.values
    assert image.ndim == 4
    assert image.shape[-1] == 3
    assert image.dtype == torch.float32
    assert_shows(result.ui, image)
    assert summary == words.summary_text(record)
    assert json.loads(text)["sparse"] == record.sparse


def test_no_run_yet_is_a_picture_and_not_an_error() -> None:
    result = RectifiedSpaAttnReport.execute(patched_model(None), after=None)
    image, summary, text = result.values
    assert_shows(result.ui, image)
    assert summary.startswith("No sampling run yet")
    assert "after input" in summary
    assert "cache" in summary
    assert json.loads(text) is None


def test_a_model_without_our_patch() -> None:
    """As when the node is switched off to compare: the render goes on, the picture says so."""
    result = RectifiedSpaAttnReport.execute(
        SimpleNamespace(wrappers={}, model_options={}), after=None
    )
    image, summary, text = result.values
    assert_shows(result.ui, image)
    assert summary.startswith("Full attention: no Rectified SpaAttn on this model")
    assert "enabled" in summary
    assert json.loads(text) is None


def test_caching_is_left_to_comfyui() -> None:
    """Its key holds the sampler and all before it; an own fingerprint would break two samplers."""
    assert not hasattr(RectifiedSpaAttnReport, "fingerprint_inputs")


def test_summary() -> None:
    record = run_record(
        20, 40, dense_steps=2, forwards=2, warnings=("first warning", "second warning")
    )
    assert words.summary_text(record).splitlines() == [
        "Rectified SpaAttn: 1,440 sparse and 160 dense calls · density 0.25 · "
        "2.0 x faster per step",
        "Model: WAN21, 32,760 tokens, grid 21 x 30 x 52",
        "Settings: sparsity 0.75 · block_size 128 · min_tokens 8192 · steps off, 0.6 · verbose off",
        "Attention calls: 1,440 sparse, 160 dense (90% sparse)",
        "Density: 0.250 of the block pairs computed in sparse calls, on average "
        "(1 = full attention)",
        "Time in the model: 88.0 s, 40 model calls in 20 steps",
        "Median time of a model call: 2.00 s sparse, 4.00 s dense",
        "Speed: 2.0 x faster per step",
        "Time: 88.0 s, with full attention about 160.0 s",
        "Why calls were dense:",
        "  160  schedule: dense step",
        "Warnings:",
        "  first warning",
        "  second warning",
    ]


def test_summary_of_a_dense_run() -> None:
    text = words.summary_text(run_record(dense_steps=4))
    assert "Density" not in text
    assert "Speed: nothing to compare, every step was dense" in text


def test_summary_says_what_a_speed_up_takes() -> None:
    text = words.summary_text(run_record(steps=2))
    assert "Speed: not known, it takes a dense and 2 sparse model calls to compare (1 spar" in text


def test_summary_of_a_run_that_never_saw_a_call() -> None:
    empty = run_record(1, 0, dense_steps=0, model="", tokens=None, grid=None, settings={})
    assert words.summary_text(empty).splitlines()[:3] == [
        "Rectified SpaAttn: 0 sparse and 0 dense calls",
        "Model: unknown",
        "Attention calls: no attention call over the video reached the node",
    ]


@pytest.mark.parametrize(
    ("dense", "expected"),
    [
        (4.0, "2.0 x faster per step"),
        (2.04, "as fast as dense steps"),
        (1.0, "2.0 x slower per step"),
        (math.nan, ""),
        (0.0, ""),
    ],
)
def test_speed(dense: float, expected: str) -> None:
    record = run_record(sparse_forward_seconds=(2.0, 2.0), dense_forward_seconds=(dense, dense))
    assert words.speed_words(record) == expected
    assert words.is_slower(record) == ("slower" in expected)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0214, "0.021 s"),
        (1.843, "1.84 s"),
        (12.34, "12.3 s"),
        (625.0, "10 min 25 s"),
        (3720.0, "1 h 02 min"),
    ],
)
def test_seconds(seconds: float, expected: str) -> None:
    assert words.seconds_words(seconds) == expected


def test_settings_inside_settings() -> None:
    settings = {"schedule": {"curve": "linear", "ends": (0.1, 1.0)}, "top_p": 0.0, "none": None}
    assert words.settings_words(settings) == (
        "schedule.curve linear · schedule.ends 0.1, 1 · top_p 0"
    )


def test_json_is_json() -> None:
    """NaN and infinity, which Python would write, are not."""
    record = run_record(density=math.nan, settings={"a": [math.inf, 1.0], 2: "b"})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(words.json_text(record), parse_constant=refuse)
    assert data["density"] is None
    assert data["settings"] == {"a": [None, 1.0], "2": "b"}
    assert data["steps"][1]["sparse"] == record.steps[1].sparse
