"""Fixtures of the integration tests: one lazily started ComfyUI server per version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ..shared_failure import SharedFailure, shared_folder, skip_if_reported
from . import graphs, tiny_models
from .comfy_server import (
    Checkout,
    ComfyServer,
    Run,
    all_checkouts,
    checkout_folder,
    find_checkout,
    install_pack,
)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with all tiny checkpoints, shared by both versions."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.write_checkpoints(folder)
    return folder


class Comfy:
    """A running server and the unpatched results it has produced so far."""

    def __init__(self, server: ComfyServer):
        self.server = server
        self.run = server.run
        self._dense: dict[str, Run] = {}

    def object_info(self, class_type: str) -> dict:
        """The server's description of a node, {} if it does not know it."""
        return self.server.get(f"/object_info/{class_type}").get(class_type, {})

    def require(self, scene: graphs.Scene) -> None:
        """Skip the test if this ComfyUI does not know the scene's model."""
        if scene.needs and not self.object_info(scene.needs):
            pytest.skip(f"this ComfyUI has no {scene.needs}")

    def dense(self, scene: graphs.Scene, **options) -> torch.Tensor:
        """Latents of the unpatched model for the same graph, sampled once per session."""
        return self.dense_run(scene, **options).samples

    def dense_run(self, scene: graphs.Scene, **options) -> Run:
        """The same with all that the model has sampled along."""
        nodes = graphs.sampled(scene, **options)
        key = repr(nodes)
        if key not in self._dense:
            self._dense[key] = self.run(nodes)
        return self._dense[key]


@pytest.fixture(scope="session", params=list(all_checkouts()))
def version(request: pytest.FixtureRequest) -> str:
    """Each ComfyUI version; tests are skipped for a version that is not installed."""
    where = all_checkouts()[request.param]
    if not checkout_folder(*where).exists():
        pytest.skip(str(find_checkout(*where)))
    return request.param


@pytest.fixture(scope="session")
def comfy(
    version: str, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    """The server of this version with our pack, the test nodes and the tiny checkpoints.

    Half of an installation, or one that does not start, fails the first test that asks for it.
    """
    what = f"ComfyUI ({version})"
    skip_if_reported(shared_folder(tmp_path_factory), what)
    found = find_checkout(*all_checkouts()[version])
    if isinstance(found, str):
        raise SharedFailure(what, found)
    base = tmp_path_factory.mktemp("comfy")
    install_pack(base / "custom_nodes")
    models = base / "models" / "diffusion_models"
    models.mkdir(parents=True)
    for path in tiny_folder.glob("*.safetensors"):
        (models / path.name).hardlink_to(path)
    server = ComfyServer(found, base)
    try:
        server.start()
    except RuntimeError as error:
        raise SharedFailure(what, str(error)) from error
    try:
        yield Comfy(server)
    finally:
        server.stop()


@pytest.fixture(scope="session")
def checkout(comfy: Comfy) -> Checkout:
    """The installation of a version that does start."""
    return comfy.server.checkout
