"""How close every variant is to exact attention in fp32, next to its milliseconds.

    python -m rectified_spaattn.benchmarks.fidelity --json fidelity.json
    python -m rectified_spaattn.benchmarks.fidelity --captured captured.safetensors
    python -m rectified_spaattn.benchmarks.fidelity --only precise Sol --shares .1 .2 .3
    python -m rectified_spaattn.benchmarks.fidelity --draw fidelity.json

Variants: ours with every rectification, block size, precision, number of tail keys and token order;
pooled means in its place (`methods.POOLED`); ComfyUI's Sol-Attn where it can run, and its formula.
Inputs: the synthetic heads of `synthetic`, and q, k, v of a trained model that `capture` recorded.

The oracle is full attention in fp32 of `--rows` random query rows, the same for all variants. On a
GPU variants run as kernels in bf16, which is part of their error; on a CPU ours runs as the fp32
reference, whose seconds say nothing about the kernels. Milliseconds are those of the synthetic
heads (else of the first captured ones): kernels take turns at `--timed-shares`, each repeated until
the chip's clock has settled, and the time at another density is read off the line between these.

Columns: density is the counted share of block pairs attended exactly; errors are geometric means,
over all heads and over the heads of each kind (captured: of each layer); then the mean of the gain
<o,d>/<d,d>.

The JSON file has one record per variant, share and set of heads, with a number per head; it is
written after every variant. `--draw` prints the summary of such a file and draws it again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from ...rspa_core.config import ORDERS, PRECISIONS, TAIL_KEYS
from ..calls.comparison import refusal
from ..calls.problem import sdpa
from ..methods import METHODS
from ..output import command_line, device_name, write_json
from ..timing import measure_interleaved
from .inputs import Inputs, Oracle, captured_inputs, head_metrics, synthetic_inputs
from .report import (
    KERNEL,
    METRICS,
    Record,
    attach_times,
    ratio_lines,
    ratios,
    record_line,
    save_figure,
    table_lines,
)
from .variants import RUNNERS, Variant, our_variants, rival_variants, run_ours

Calls = dict[tuple[str, float | None], tuple[Record, Callable[[], object]]]
"""What can be timed, and its record, by label and kept share."""

BLOCKS = ("128x128", "128x64", "64x64")
DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {
        "grid": [21, 45, 80], "heads": 40, "rows": 4096,
        "shares": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4],
    },
    "cpu": {"grid": [9, 24, 40], "heads": 5, "rows": 512, "shares": [0.1, 0.2, 0.3]},
}  # fmt: skip
SHARED = ("kind", "name", "blocks", "order", "precision", "timing_key")
"""Of a variant, for its records."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; values not given are those for the device."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--device", choices=DEFAULTS, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--captured", type=Path, nargs="+", default=[], help="files of benchmarks.capture")
    add("--no-synthetic", action="store_true", help="captured heads only")
    add("--grid", type=int, nargs=3, metavar=("T", "H", "W"), help="of the synthetic heads")
    add("--heads", type=int, help="synthetic heads, of all kinds in turn")
    add("--rows", type=int, help="query rows that are judged, 0 for all")
    add("--seed", type=int, default=0, help="of the synthetic heads and of the rows")
    add("--shares", type=float, nargs="+", help="kept shares")
    add("--rectification", nargs="+", choices=METHODS, default=list(METHODS))
    add("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    add("--orders", nargs="+", choices=ORDERS, default=["gilbert"],
        help="the first one gets every variant")  # fmt: skip
    add("--precision", nargs="+", choices=PRECISIONS, default=["16-bit", "int8"])
    add("--tail-keys", type=int, nargs="+", choices=TAIL_KEYS, default=[1, 2, 4, 8])
    add("--only", nargs="+", default=[], help="variants whose name contains one of these")
    add("--timed-shares", type=float, nargs="+", default=[0.05, 0.15, 0.3])
    add("--rounds", type=int, default=3, help="timed calls of each; 0: no times")
    add("--settle", type=float, default=0.1, help="seconds of the same call before each of them")
    add("--json", type=Path, default=Path("demo_output/fidelity.json"))
    add("--figure", type=Path, help="default: beside the JSON file")
    add("--draw", type=Path, metavar="JSON", help="only summarise and draw this file")
    parser.set_defaults(**DEFAULTS[parser.parse_args(words).device])
    arguments = parser.parse_args(words)
    if arguments.no_synthetic and not arguments.captured:
        parser.error("--no-synthetic leaves nothing without --captured")
    return arguments


def main(words: list[str] | None = None) -> None:
    """Command line: measure, write, summarise."""
    arguments = parse(words)
    if arguments.draw:
        document = json.loads(arguments.draw.read_text())
        finish(document, arguments.figure or arguments.draw.with_suffix(".png"))
        return
    document = Benchmark(arguments).run()
    finish(document, arguments.figure or arguments.json.with_suffix(".png"))
    write_json(document, arguments.json, indent=None)


def finish(document: dict[str, Any], figure: Path) -> None:
    """Print the summary of what there is, draw it, and put the ratios into the document."""
    attach_times(document["records"])
    found = ratios(document)
    document["ratios"] = [asdict(ratio) for ratio in found]
    print("\n".join([*table_lines(document), *ratio_lines(found)]))
    for name, milliseconds in document["dense_ms"].items():
        print(f"dense {name}: {milliseconds:.1f} ms")
    try:
        print(f"picture: {save_figure(document, figure)}")
    except ImportError as error:
        print(f"no picture here ({error}); draw it elsewhere with --draw")


class Benchmark:
    """One run: inputs, oracles, variants and the document that grows."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Choose the variants; nothing is computed yet."""
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.start = time.monotonic()
        every = [*our_variants(arguments), *rival_variants()]
        only = arguments.only or [""]
        self.variants = [each for each in every if any(text in each.label for text in only)]
        self.document: dict[str, Any] = {
            "device": device_name(self.device),
            "torch": torch.__version__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rows": arguments.rows,
            "seed": arguments.seed,
            "shares": sorted(arguments.shares),
            "orders": arguments.orders,
            "inputs": {},
            "dense_ms": {},
            "records": [],
        }

    def run(self) -> dict[str, Any]:
        """Measure everything; returns the document."""
        arguments, cuda = self.arguments, self.device.type == "cuda"
        print(f"{self.document['device']}, torch {torch.__version__}", flush=True)
        torch.set_float32_matmul_precision("highest")
        rows, seed = arguments.rows, arguments.seed
        prepared = [(inputs, Oracle(inputs, rows, seed)) for inputs in self._inputs()]
        self.say(f"oracles of {len(prepared[0][1].rows):,} rows")
        calls = self._errors(prepared)
        if cuda and arguments.rounds:
            self._times(prepared[0][0], calls)
        self.say("measured")
        return self.document

    def say(self, what: str) -> None:
        """A line with the seconds since the start."""
        print(f"[{time.monotonic() - self.start:5.0f} s] {what}", flush=True)

    def _inputs(self) -> list[Inputs]:
        arguments = self.arguments
        found = []
        if not arguments.no_synthetic:
            own = arguments.heads, self.dtype, self.device, arguments.seed
            found.append(synthetic_inputs(tuple(arguments.grid), *own))
        found += captured_inputs(arguments.captured, self.dtype, self.device)
        for each in found:
            self.document["inputs"][each.name] = {
                "grid": each.layout.grid, "tokens": each.layout.length,
                "heads": len(each.kinds), "kinds": each.kinds, "names": each.heads,
            }  # fmt: skip
            self.say(f"{each.name}: {len(each.kinds)} heads of {each.layout.length:,} tokens")
        return found

    def _errors(self, prepared: Sequence[tuple[Inputs, Oracle]]) -> Calls:
        """Measure errors; returns what can be timed on the first inputs."""
        calls: Calls = {}
        for variant in self.variants:
            for share in self.arguments.shares if variant.tau is None else [None]:
                for index, (inputs, oracle) in enumerate(prepared):
                    record, call = measure(variant, inputs, oracle, share)
                    self.document["records"].append(record)
                    print(record_line(record), flush=True)
                    if call is not None and index == 0:
                        calls[variant.label, share] = record, call
            write_json(self.document, self.arguments.json, indent=None)
        return calls

    def _times(self, inputs: Inputs, calls: Calls) -> None:
        """Time the kernels side by side, one kept share after the other."""
        arguments = self.arguments
        dense = sdpa(SDPBackend.CUDNN_ATTENTION)
        # Thresholds have no share: they go with the last group.
        for share in arguments.timed_shares:
            wanted = (share, None) if share == arguments.timed_shares[-1] else (share,)
            group = {label: timed for (label, own), timed in calls.items() if own in wanted}
            if not group:
                continue
            timings = measure_interleaved(
                {"cuDNN": lambda: dense(*inputs.qkv)} | {name: group[name][1] for name in group},
                self.device, rounds=arguments.rounds, settle=arguments.settle,
            )  # fmt: skip
            self.document["dense_ms"]["cuDNN"] = timings.pop("cuDNN") * 1e3
            for label, seconds in timings.items():
                group[label][0].update(ms=seconds * 1e3, ms_source=KERNEL)
            write_json(self.document, arguments.json, indent=None)
            self.say(f"{len(timings)} kernels timed at {share:g}")
        attach_times(self.document["records"])


def measure(
    variant: Variant, inputs: Inputs, oracle: Oracle, share: float | None
) -> tuple[Record, Callable[[], object] | None]:
    """Record of one variant at one kept share, and its call where that can be timed.

    A variant that cannot run keeps its record, with the reason in `refused`.
    """
    record: Record = {
        "input": inputs.name,
        "variant": variant.label,
        **{name: getattr(variant, name) for name in SHARED},
        "share": share,
        "density": [],
        **{name: [] for name in METRICS},
        "ms": None,
        "ms_source": "",
        "refused": "",
    }
    try:
        run = RUNNERS.get(variant.kind, run_ours)
        outcome = run(variant, inputs, oracle, share or 0.0)
    except Exception as error:  # whatever a kernel or another library raises belongs into its row
        record["refused"] = refusal(error)
        return record, None
    if not outcome.out.isfinite().all():
        record["refused"] = "WRONG: output is not finite"
        return record, None
    found = head_metrics(outcome.out, oracle.out)
    found["density"] = outcome.density
    record |= {name: [float(f"{x:.6g}") for x in values] for name, values in found.items()}
    if outcome.seconds is not None:
        record |= {"ms": outcome.seconds * 1e3, "ms_source": "fp32 reference on the CPU"}
    return record, outcome.call


if __name__ == "__main__":
    main()
