"""The benchmark node in a real ComfyUI, on its CPU: picture, text, file, and how it is ended."""

from __future__ import annotations

import io
import json
import urllib.parse
import urllib.request

from PIL import Image

from rectified_spaattn.benchmarks.my_card.record import check, file_stem

NODE = {"class_type": "RectifiedSpaAttnBenchmark", "inputs": {"call": "auto"}}


def test_small_run_on_a_cpu(comfy):
    nodes = {"bench": NODE}
    for index, name in enumerate(("summary", "json"), start=1):
        nodes[name] = {"class_type": "PreviewAny", "inputs": {"source": ["bench", index]}}
    comfy.run(nodes)
    (entry,) = comfy.server.get("/history?max_items=1").values()
    outputs = entry["outputs"]

    record = check(json.loads("".join(outputs["json"]["text"])))
    assert record["device"]["name"] == "CPU"
    assert all(row["ms"] > 0 for row in record["rows"])
    file = comfy.server.base / "output" / "rectified_spaattn" / f"{file_stem(record)}.json"
    assert json.loads(file.read_text()) == record
    assert "nothing about graphics cards" in "".join(outputs["summary"]["text"])
    (image,) = outputs["bench"]["images"]
    url = f"{comfy.server.url}/view?{urllib.parse.urlencode(image)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        picture = Image.open(io.BytesIO(answer.read()))
    assert picture.width == 960


def test_can_be_interrupted(comfy):
    # A node of its own id: the one above is in the cache.
    assert comfy.server.interrupt_often({"other": NODE}) != "success"
