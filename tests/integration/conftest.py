"""Fixtures of the integration tests: one lazily started ComfyUI server per version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from . import graphs, tiny_models
from .comfy_server import Checkout, ComfyServer, find_checkout, install_pack

CHECKOUTS = {
    "current": ("COMFYUI_DIR", "~/comfy/ComfyUI"),
    "oldest": ("COMFYUI_DIR_OLD", "~/comfy/ComfyUI-0.8.0"),
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with all tiny checkpoints, shared by both versions."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.write_checkpoints(folder)
    return folder


@pytest.fixture(scope="session", params=list(CHECKOUTS))
def checkout(request: pytest.FixtureRequest) -> Checkout:
    """Each ComfyUI version; tests are skipped for a version that is not installed."""
    found = find_checkout(*CHECKOUTS[request.param])
    if isinstance(found, str):
        pytest.skip(found)
    return found


class Comfy:
    """A running server and the unpatched results it has produced so far."""

    def __init__(self, server: ComfyServer):
        self.server = server
        self.run = server.run
        self._dense: dict[str, torch.Tensor] = {}

    def object_info(self, class_type: str) -> dict:
        """The server's description of a node, {} if it does not know it."""
        return self.server.get(f"/object_info/{class_type}").get(class_type, {})

    def dense(self, scene: graphs.Scene, **options) -> torch.Tensor:
        """Latents of the unpatched model for the same graph, sampled once per session."""
        nodes = graphs.sampled(scene, **options)
        key = repr(nodes)
        if key not in self._dense:
            self._dense[key] = self.run(nodes).samples
        return self._dense[key]


@pytest.fixture(scope="session")
def comfy(
    checkout: Checkout, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    """The server of this version with our pack, the test nodes and the tiny checkpoints."""
    base = tmp_path_factory.mktemp("comfy")
    install_pack(base / "custom_nodes")
    models = base / "models" / "diffusion_models"
    models.mkdir(parents=True)
    for path in tiny_folder.glob("*.safetensors"):
        (models / path.name).hardlink_to(path)
    server = ComfyServer(checkout, base)
    server.start()
    try:
        yield Comfy(server)
    finally:
        server.stop()
