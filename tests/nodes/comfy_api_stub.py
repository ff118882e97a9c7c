"""As much of `comfy_api.latest` as the node classes need, so that they load without ComfyUI."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any


@dataclass
class Socket:
    """An input or an output: its name, the type of its socket, and the keywords it was given."""

    name: str
    io_type: str
    keywords: dict[str, Any] = field(default_factory=dict)


class Type:
    """A type of socket."""

    def __init__(self, io_type: str) -> None:
        self.io_type = io_type

    def Input(self, name: str, **keywords: Any) -> Socket:
        return Socket(name, self.io_type, keywords)

    def Output(self, name: str | None = None, **keywords: Any) -> Socket:
        return Socket(name or keywords["display_name"], self.io_type, keywords)


@dataclass
class Schema:
    """A node's schema."""

    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Socket]
    outputs: list[Socket]
    hidden: list[Any]
    is_output_node: bool
    not_idempotent: bool
    search_aliases: list[str]


class ComfyNode:
    """Base of nodes."""

    hidden: Any = None


class NodeOutput:
    """What a node returns."""

    def __init__(self, *values: Any, ui: Any = None) -> None:
        self.values = values
        self.ui = ui


@dataclass
class PreviewImage:
    """Shows a picture on a node."""

    image: Any
    cls: Any = None

    def as_dict(self) -> dict[str, Any]:
        return {"images": [self.image]}


class ComfyExtension:
    """Base of extensions."""


def install() -> None:
    """Stand in for `comfy_api`, unless the real one is there."""
    if "comfy_api" in sys.modules:
        return
    types = {
        "Model": "MODEL",
        "Image": "IMAGE",
        "String": "STRING",
        "AnyType": "*",
        "Combo": "COMBO",
        "Boolean": "BOOLEAN",
        "Int": "INT",
        "Float": "FLOAT",
    }
    io = SimpleNamespace(**{name: Type(kind) for name, kind in types.items()})
    io.Custom = Type
    io.Schema, io.ComfyNode, io.NodeOutput = Schema, ComfyNode, NodeOutput
    io.Hidden = SimpleNamespace(unique_id="UNIQUE_ID")
    latest = ModuleType("comfy_api.latest")
    latest.io, latest.ComfyExtension = io, ComfyExtension
    latest.ui = SimpleNamespace(PreviewImage=PreviewImage, PreviewText=lambda text: text)
    sys.modules["comfy_api"] = ModuleType("comfy_api")
    sys.modules["comfy_api.latest"] = latest
