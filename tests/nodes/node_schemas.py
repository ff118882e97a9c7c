"""The schemas of the nodes, read from the source: building them needs ComfyUI."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "rectified_spaattn"
FOLDER = Path(__file__).resolve().parents[2] / "nodes"


@dataclass(frozen=True)
class Socket:
    """An input or output as its schema has it.

    Attributes:
        name: id of an input, what is written beside an output.
        keywords: given in the source.
        tooltip: its fixed parts, "" without one.
        default: None without one.
    """

    name: str
    keywords: frozenset[str]
    tooltip: str
    default: Any


@dataclass(frozen=True)
class Node:
    """A node as its class describes it; `execute` is that method's tree."""

    class_name: str
    display_name: str
    inputs: tuple[Socket, ...]
    outputs: tuple[Socket, ...]
    execute: ast.FunctionDef


def nodes() -> dict[str, Node]:
    """All nodes of the pack by their ids."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for cls in (each for each in tree.body if isinstance(each, ast.ClassDef)):
            if any(ast.unparse(base) == "io.ComfyNode" for base in cls.bases):
                node_id, node = _node(tree, cls)
                found[node_id] = node
    return found


def listed_classes() -> list[str]:
    """Names of the classes that the extension gives to ComfyUI, in its order."""
    tree = ast.parse((FOLDER / "extension.py").read_text(encoding="utf-8"))
    (returned,) = (each.value for each in ast.walk(tree) if isinstance(each, ast.Return))
    assert isinstance(returned, ast.List)
    return [ast.unparse(name) for name in returned.elts]


def _node(tree: ast.Module, cls: ast.ClassDef) -> tuple[str, Node]:
    functions = {each.name: each for each in cls.body if isinstance(each, ast.FunctionDef)}
    schema = functions["define_schema"]
    (call,) = (
        each
        for each in ast.walk(schema)
        if isinstance(each, ast.Call) and any(word.arg == "node_id" for word in each.keywords)
    )
    given = {word.arg: word.value for word in call.keywords}
    inputs = given["inputs"]
    if isinstance(inputs, ast.Call):  # a function of the same file that lists them
        name = ast.unparse(inputs.func)
        (inputs,) = (each for each in tree.body if getattr(each, "name", None) == name)
    return ast.literal_eval(given["node_id"]), Node(
        cls.name,
        ast.literal_eval(given["display_name"]),
        _sockets(tree, inputs, "Input"),
        _sockets(tree, given["outputs"], "Output"),
        functions["execute"],
    )


def _sockets(tree: ast.Module, part: ast.AST, kind: str) -> tuple[Socket, ...]:
    """Each `Input` or `Output` in a part of a file, in the order of the source."""
    found = []
    for call in ast.walk(part):
        if not isinstance(call, ast.Call):
            continue
        target, args = call.func, call.args
        if isinstance(target, ast.Name) and target.id == "build":
            target, args = args[0], args[1:]
        if isinstance(target, ast.Attribute) and target.attr == kind:
            given = {str(word.arg): word.value for word in call.keywords}
            label = given.get("display_name") if kind == "Output" else None
            name = label or args[0]
            default = given.get("default")
            socket = Socket(
                ast.literal_eval(name),
                frozenset(given),
                _fixed_text(given["tooltip"]) if "tooltip" in given else "",
                None if default is None else _value(tree, default),
            )
            found.append((call.lineno, socket))
    return tuple(socket for _, socket in sorted(found, key=lambda each: each[0]))


def _fixed_text(text: ast.expr) -> str:
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return "".join(part.value for part in parts if isinstance(part, ast.Constant))


def _value(tree: ast.Module, value: ast.expr) -> Any:
    """A literal, or a name that is imported from a file which needs no ComfyUI."""
    if not isinstance(value, ast.Name):
        return ast.literal_eval(value)
    for each in tree.body:
        if isinstance(each, ast.ImportFrom) and value.id in {name.name for name in each.names}:
            parent = PACKAGE if each.level == 2 else f"{PACKAGE}.nodes"
            return getattr(importlib.import_module(f"{parent}.{each.module}"), value.id)
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == value.id:
            return ast.literal_eval(each.value)
    raise AssertionError(f"default {value.id} is defined nowhere")
