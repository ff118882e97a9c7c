"""Node RectifiedSpaAttnBenchmark: what sparse attention gains on this machine's graphics card."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .host import (
    compute_device,
    free_memory,
    output_folder,
    schema_of,
    send_status,
    share_bar,
)
from .inputs import BENCHMARK
from .pictures import as_tensor


class RectifiedSpaAttnBenchmark(io.ComfyNode):
    """Runs `benchmarks/my_card`, which is imported only then."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(BENCHMARK)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        from ..benchmarks.my_card.measure import LEAST_BYTES, Refused, measure
        from ..benchmarks.my_card.picture import draw_benchmark
        from ..benchmarks.my_card.record import advice, call_words, file_stem, text_lines
        from ..benchmarks.output import json_text, write_json
        from .pictures.report import draw_no_run

        call = BENCHMARK.checked(values)["call"]
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        device = compute_device()
        try:
            record = measure(
                device,
                lambda text: send_status(text, node_id),
                share_bar(node_id),
                call,
                free_memory(device, LEAST_BYTES),
            )
        except Refused as reason:
            send_status(str(reason), node_id)
            image = as_tensor(draw_no_run("Nothing was measured", [str(reason)]))
            return io.NodeOutput(image, str(reason), "null", ui=ui.PreviewImage(image, cls=cls))
        path = output_folder() / "rectified_spaattn" / f"{file_stem(record)}.json"
        write_json(record, path)
        words = advice(record)
        send_status(f"{words[0]} Saved as output/rectified_spaattn/{path.name}.", node_id)
        image = as_tensor(draw_benchmark(record, call_words(record), words))
        return io.NodeOutput(
            image,
            "\n".join(text_lines(record)),
            json_text(record),
            ui=ui.PreviewImage(image, cls=cls),
        )
