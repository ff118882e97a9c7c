"""A profile outlives the server: measured on one, applied block by block by the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectified_spaattn.rspa_core import SparseConfig
from rectified_spaattn.rspa_core.run.profile import SparsityProfile, load_profile

from .comfy_server import Checkout, ComfyServer, install_pack
from .expectations import expected_density
from .graphs import SCENES, STEPS, sampled
from .test_probe_nodes import add_results, probe, with_profile

WAN = SCENES["wan21_t2v"]


def profile_that_tells_blocks_apart(server: ComfyServer) -> SparsityProfile:
    """Measured once; a closer or faster one needs no sampling. Saved as kept0.safetensors."""
    path = server.base / "models" / "rectified_spaattn" / "kept0.safetensors"
    for place in range(11):
        nodes = sampled(WAN, probe())
        add_results(nodes, place=place / 10, filename="kept")
        server.run(nodes)
        profile = load_profile(path)
        if len(set(profile.double)) > 1:
            return profile
        path.unlink()
    raise AssertionError("no place of the slider gave two blocks different sparsities")


def test_measured_before_a_restart_and_applied_after_it(
    checkout: Checkout, tiny_folder: Path, tmp_path: Path
) -> None:
    install_pack(tmp_path / "custom_nodes")
    models = tmp_path / "models" / "diffusion_models"
    models.mkdir(parents=True)
    for path in tiny_folder.glob("*.safetensors"):
        (models / path.name).hardlink_to(path)

    first = ComfyServer(checkout, tmp_path)
    first.start()
    try:
        profile = profile_that_tells_blocks_apart(first)
    finally:
        first.stop()

    second = ComfyServer(checkout, tmp_path)
    second.start()
    try:
        run = second.run(sampled(WAN, with_profile("kept0.safetensors")))
    finally:
        second.stop()

    report = run.report
    assert {row[0] for row in report["calls"]} == set(range(STEPS))
    for row, density in zip(report["calls"], report["densities"], strict=True):
        _, kind, index, sparse, dense = row
        sparsity = profile.sparsity_of(kind, index)
        if sparsity == 0.0:
            assert (sparse, dense, density) == (0, 1, None)
            continue
        assert (sparse, dense) == (1, 0)
        config = SparseConfig(sparsity, profile.block_size, profile.block_size)
        assert density == pytest.approx(expected_density(WAN.grid, config), abs=1e-5)
