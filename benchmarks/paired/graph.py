"""A workflow in API form: where its frames and its prompt are, and the graph of one render."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from ...nodes.inputs import MAIN, PROBE, REPORT

Graph = dict[str, dict[str, Any]]
DECODERS = ("VAEDecode", "VAEDecodeTiled")
SEEDS = ("seed", "noise_seed")
TEXTS = ("text", "prompt")
TEXT_BOXES = ("PrimitiveString", "PrimitiveStringMultiline")
DIFFUSION = ("unet_name", "ckpt_name")
WEIGHTS = (".safetensors", ".sft", ".gguf", ".pt", ".pth", ".ckpt", ".bin")
FRAMES = "paired_frames"
REPORTED = "paired_report_"
MAX_BYTES = 16 << 20


class WorkflowError(ValueError):
    """A workflow that cannot be compared. The message says why and what to do."""


def read_workflow(path: Path) -> Graph:
    """The graph in a file that ComfyUI's "Export (API)" has written.

    Raises:
        WorkflowError: it is something else, or holds no node of ours.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise WorkflowError(f"{path.name} has more than {MAX_BYTES >> 20} MiB")
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"{path.name} is no JSON: {type(error).__name__}") from error
    if isinstance(graph, dict) and "nodes" in graph:
        raise WorkflowError(
            f"{path.name} is a workflow as the canvas saves it. Export it with File, Export (API)"
        )
    if not isinstance(graph, dict) or not all(_is_node(node) for node in graph.values()):
        raise WorkflowError(f"{path.name} is no workflow in API form")
    if not _of_class(graph, MAIN.node_id):
        raise WorkflowError(f"{path.name} holds no node {MAIN.title!r}")
    return graph


def _is_node(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _of_class(graph: Graph, *classes: str) -> list[str]:
    return [node_id for node_id, node in graph.items() if node["class_type"] in classes]


def _links(graph: Graph, node_id: str) -> Iterator[tuple[str, str]]:
    """(input, node that feeds it)."""
    for name, value in graph[node_id]["inputs"].items():
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in graph:
            yield name, str(value[0])


def upstream(graph: Graph, node_id: str) -> set[str]:
    """The node and all that it needs."""
    found, open_ids = {node_id}, [node_id]
    while open_ids:
        fresh = {source for _, source in _links(graph, open_ids.pop())} - found
        found |= fresh
        open_ids += fresh
    return found


def frames_node(graph: Graph, wanted: str | None = None) -> str:
    """The node whose first output is the clip: the only decoder behind a node of ours.

    Args:
        graph: the workflow.
        wanted: id of a node to take in its place.

    Raises:
        WorkflowError: there is none, or more than one; or the workflow probes.
    """
    ours = set(_of_class(graph, MAIN.node_id))
    if wanted is not None and wanted not in graph:
        raise WorkflowError(f"there is no node {wanted}; the workflow has {', '.join(graph)}")
    every = [wanted] if wanted is not None else _of_class(graph, *DECODERS)
    found = [each for each in every if ours & upstream(graph, each)]
    if len(found) != 1:
        what = f"node {wanted}" if wanted is not None else " or ".join(DECODERS)
        said = f"{len(found)} of them, {', '.join(found)}," if found else f"no {what}"
        raise WorkflowError(
            f"the workflow has {said} behind the node {MAIN.title!r}. Name the node whose first "
            "output is the frames with --frames-of"
        )
    kept = {node: graph[node] for node in upstream(graph, found[0])}
    if _of_class(kept, PROBE.node_id):
        raise WorkflowError(f"the workflow holds a node {PROBE.title!r}, which measures: remove it")
    return found[0]


def prompt_input(graph: Graph, frames: str, wanted: str | None = None) -> tuple[str, str]:
    """(node, input) of the text that says what is to be seen.

    Args:
        graph: the workflow.
        frames: as `frames_node` says.
        wanted: id of the node, where there are several.

    Raises:
        WorkflowError: there is none, or more than one.
    """
    found: list[tuple[str, str]] = []
    seen, open_ids = set(), [frames]
    while open_ids:
        node_id = open_ids.pop()
        if node_id in seen:
            continue
        seen.add(node_id)
        inputs = graph[node_id]["inputs"]
        texts = [_written(graph, node_id, name) for name in TEXTS if name in inputs]
        links = dict(_links(graph, node_id))
        if texts:
            found += texts[:1]
        elif "positive" in links:  # of a sampler, or of a node between it and the text
            open_ids.append(links["positive"])
        else:
            open_ids += links.values()
    if wanted is not None:
        found = [each for each in found if each[0] == wanted]
    if len(found) != 1:
        said = f"found {', '.join(node for node, _ in found)}" if found else "found none"
        raise WorkflowError(f"one node with the prompt is needed, {said}: see --prompt-node")
    return found[0]


def _written(graph: Graph, node_id: str, name: str) -> tuple[str, str]:
    """Where the text of an input is written: there, or in the only text box behind its link."""
    source = dict(_links(graph, node_id)).get(name)
    if source is None:
        return node_id, name
    boxes = [each for each in _of_class(graph, *TEXT_BOXES) if each in upstream(graph, source)]
    return (boxes[0], "value") if len(boxes) == 1 else (node_id, name)


def render_graph(
    graph: Graph, frames: str, prompt: tuple[str, str, str] | None, seed: int, enabled: bool
) -> Graph:
    """What is queued for one clip: all that the frames need, a preview of them, reports.

    `PreviewImage` writes the frames as PNG, which loses nothing of 8 bits, to ComfyUI's folder of
    temporary files. What saves or shows videos is left out.

    Args:
        graph: the workflow.
        frames: node whose first output is the clip.
        prompt: (node, input, text), or None for the workflow's own.
        seed: of every sampler.
        enabled: whether our nodes are switched on.
    """
    nodes = {each: deepcopy(graph[each]) for each in upstream(graph, frames)}
    for node in nodes.values():
        node["inputs"] |= {name: seed for name in SEEDS if name in node["inputs"]}
    if prompt is not None:
        nodes[prompt[0]]["inputs"][prompt[1]] = prompt[2]
    for number, node_id in enumerate(_of_class(nodes, MAIN.node_id)):
        nodes[node_id]["inputs"]["enabled"] = enabled
        links = {"model": [node_id, 0], "after": [frames, 0]}
        report = f"{REPORTED}{number}"
        nodes[report] = {"class_type": REPORT.node_id, "inputs": links}
        shown = {"source": [report, 2]}  # the report as JSON
        nodes[f"{report}_json"] = {"class_type": "PreviewAny", "inputs": shown}
    nodes[FRAMES] = {"class_type": "PreviewImage", "inputs": {"images": [frames, 0]}}
    return nodes


def digest(graph: Graph) -> str:
    """The same for the same graph."""
    return hashlib.sha256(json.dumps(graph, sort_keys=True).encode()).hexdigest()[:16]


def model_files(graph: Graph) -> tuple[list[str], list[str]]:
    """Names of the diffusion models that a graph names, and of all other weights; no folders."""
    diffusion, others = set[str](), set[str]()
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value.endswith(WEIGHTS):
                file = plain_file(value.replace("\\", "/").split("/")[-1])
                (diffusion if name in DIFFUSION else others).add(file)
    return sorted(diffusion), sorted(others)


def plain_file(name: str) -> str:
    """A file's name without what Markdown reads."""
    return re.sub("[^A-Za-z0-9 ._()+-]", "_", name)[:120]
