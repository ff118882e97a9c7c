"""Puts a probe on a patched model, and reads it after sampling."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..rspa_core.config import ConfigError, check_number
from ..rspa_core.probe import ProbeSettings, parse_probe_blocks, parse_probe_steps, parse_sparsities
from .fingerprint import fingerprint_of_patcher
from .patching import find_patch, install
from .probe_outcome import NothingMeasured, ProbeOutcome, make_outcome, why_nothing

MIN_ERROR, MAX_ERROR = 0.001, 1.0
PATCHED_MODEL = (
    "a model that comes from a Rectified SpaAttn node, switched on: place the probe after it"
)
PROBED_MODEL = "the model that comes out of a Rectified SpaAttn Probe node"


def attach_probe(model: Any, steps: str, blocks: str, sparsities: str, node_id: str | None) -> Any:
    """A clone of a patched ComfyUI model patcher that measures while it samples.

    Args:
        model: patched by the RectifiedSpaAttn node, whose settings are measured.
        steps, blocks, sparsities: as on the node.
        node_id: node that shows how far the probe is.

    Raises:
        ConfigError: a text cannot be read, or the model is not patched.
    """
    probe = ProbeSettings(
        parse_probe_steps(steps), parse_probe_blocks(blocks), parse_sparsities(sparsities)
    )
    patch = find_patch(model)
    if patch is None:
        raise ConfigError("model", type(model).__name__, PATCHED_MODEL)
    settings = dataclasses.replace(patch.settings, probe=probe, probe_node_id=node_id)
    return install(model, settings)


def read_probe(model: Any, wanted_error: float, name: str) -> ProbeOutcome:
    """What the probe on a ComfyUI model patcher has measured.

    Raises:
        ConfigError: there is no probe on the model, or a value is wrong.
        NothingMeasured: it measured nothing; the message says why.
    """
    check_number("wanted_error", wanted_error, MIN_ERROR, MAX_ERROR)
    patch = find_patch(model)
    recorder = None if patch is None else patch.recorder
    if patch is None or recorder is None:
        raise ConfigError("model", type(model).__name__, PROBED_MODEL)
    if recorder.is_empty or recorder.grid is None:
        cause = why_nothing(recorder, patch.last_run)
        raise NothingMeasured(f"the probe has measured nothing: {cause}")
    fingerprint = fingerprint_of_patcher(model)
    if fingerprint is None:
        kind = type(model.model.diffusion_model).__name__
        raise ConfigError("model", kind, "a Wan or HunyuanVideo model")
    return make_outcome(
        recorder.table(), fingerprint, patch.settings.config, recorder.grid, wanted_error, name
    )
