"""What attention calls and whole models cost on graphics cards: computed, without a GPU.

    python -m rectified_spaattn.benchmarks.cards
    python -m rectified_spaattn.benchmarks.cards --arch 89 --method balanced --json cards.json

No figure is measured on a card. Kernels are compiled with the tiles that the cards of an
architecture get, and their loops counted (machine_code.py). The share of its bound that
SageAttention's Triton kernel reaches on the card, which needs the same tensor cycles, turns cycles
into time (hardware.py); estimate.py has the rest.

First table: cycles of each pipe and instructions (`issue`) of a loop, for 16 x 64 scores of a warp
on a quarter of a multiprocessor, and instructions of one pass that spill registers.

Second table, a card: the share of the bound that is reached, 10^12 operations per second of the
slowest main loop and of ComfyUI's sparse attention Sol-Attn, and how many times ours is that.

Then, of a card and a model:

    kept      milliseconds of one call in the blocks attended exactly
    tail      in the pooled keys that stand for the others
    stages    in all that comes before
    call      the sum; of dense attention by its published rate, which leaves its quantisation out
    reads     10^9 bytes of keys and values that the programs of the kernel read
    x call    how many times faster than the fastest dense kernel;  x forward, x render  likewise
    forward   seconds of one call of the whole model
    x render  all steps, the first ones dense as the preset has it: of 4 steps or of 20
"""

from __future__ import annotations

import argparse
import importlib.metadata
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from ..output import command_line, table_lines, write_json
from .estimate import METHODS, MODELS, dense_calls, dense_share, forward_time, sparse_call
from .hardware import CARDS, SOL_ATTN, Card, efficiency, published_rates
from .machine_code import PIPES, LoopCost, loops_of

HEADING = "Computed from machine code, not measured."
ARCHITECTURES = sorted({card.arch for card in CARDS})
Kernel = tuple[int, int, str]
"""Architecture, block length and rectification."""
Loops = dict[Kernel, list[LoopCost]]
Record = dict[str, Any]
CARD_FORMS = {
    "efficiency": "{:.2f}", "TOPS": "{:.0f}", "Sol-Attn": "{:.0f}", "x Sol-Attn": "{:.2f}",
}  # fmt: skip
CALL_FORMS = {
    "kept": "{:.1f}", "tail": "{:.1f}", "stages": "{:.1f}", "call": "{:.1f}", "reads": "{:.0f}",
    "x call": "{:.2f}", "forward": "{:.1f}", "x forward": "{:.2f}", "x render": "{:.2f}",
}  # fmt: skip


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    add("--model", nargs="+", choices=MODELS, default=list(MODELS))
    add("--method", nargs="+", choices=METHODS, default=list(METHODS))
    add("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(words)


def kernel_of(arch: int, method: str) -> Kernel:
    """The kernel that a method takes on cards of an architecture."""
    return arch, METHODS[method].block_size, METHODS[method].rectification


def compile_loops(kernel: Kernel) -> list[LoopCost]:
    """Compile with the first tile of the table: the main loop and, of "precise", the tail's."""
    from .compiled import compile_entry, tiles

    arch, block, rectification = kernel
    blocks = (block, block)
    compiled = compile_entry(arch, tiles(arch, blocks)[0], blocks, rectification)
    loops = loops_of(compiled.asm["cubin"])
    chosen = [loops[0], loops[-1]] if rectification == "precise" else loops[:1]
    return [LoopCost.of(loop) for loop in chosen]


def loop_records(loops: Loops) -> list[Record]:
    """One row a loop."""
    return [
        {"loop": f"sm_{arch} {rectification} {block} {part}", "part": part}
        | cost.cycles
        | {"spills": cost.spills}
        for (arch, block, rectification), costs in loops.items()
        for part, cost in zip(("main", "tail"), costs, strict=False)
    ]


def card_record(card: Card, loops: Loops) -> Record:
    """How fast the main loops are on a card."""
    slowest = max(costs[0].bound for kernel, costs in loops.items() if kernel[0] == card.arch)
    record: Record = {"card": card.name, "efficiency": efficiency(card)}
    record["TOPS"] = card.attention_rate(slowest) * efficiency(card) / 1e12
    if SOL_ATTN in published_rates(card):
        record["Sol-Attn"] = published_rates(card)[SOL_ATTN] / 1e12
        record["x Sol-Attn"] = record["TOPS"] / record["Sol-Attn"]
    return record


def call_records(card: Card, model_name: str, methods: list[str], loops: Loops) -> list[Record]:
    """One row a dense kernel and a method."""
    model = MODELS[model_name]
    dense = dense_calls(card, model.shape)
    rows: list[Record] = [{"attention": f"dense {name}", "call": dense[name]} for name in dense]
    for name in methods:
        kernel = kernel_of(card.arch, name)
        call = sparse_call(card, model.shape, METHODS[name], loops[kernel])
        rows.append({"attention": name, **asdict(call), "call": call.total})
    best = min(dense.values())
    dense_forward = forward_time(card, model, best)
    for row in rows:
        forward = forward_time(card, model, row["call"])
        row |= {"card": card.name, "model": model_name, "forward": forward / 1e3}
        row |= {"x call": best / row["call"], "x forward": dense_forward / forward}
        if row["attention"] in METHODS:
            share = dense_share(row["attention"])
            row["x render"] = 1 / (share + (1 - share) / row["x forward"])
    return rows


def print_table(rows: list[Record], first: str, forms: dict[str, str]) -> None:
    """Records as a table; what one of them lacks is left empty."""
    columns = {name: (name, form) for name, form in forms.items()}
    rows = [dict.fromkeys(forms) | row for row in rows]
    print("\n".join(table_lines(rows, first, columns)), flush=True)


def main(words: list[str] | None = None) -> None:
    """Command line: compile, count, print, write."""
    arguments = parse(words)
    found: Record = {"what": HEADING, "triton": importlib.metadata.version("triton")}
    print(f"{HEADING} Triton {found['triton']}\n", flush=True)
    kernels = dict.fromkeys(kernel_of(*each) for each in product(arguments.arch, arguments.method))
    loops = {kernel: compile_loops(kernel) for kernel in kernels}
    found["loops"] = loop_records(loops)
    print_table(found["loops"], "loop", dict.fromkeys((*PIPES, "spills"), "{:.0f}"))
    cards = [card for card in CARDS if card.arch in arguments.arch]
    found["cards"] = [card_record(card, loops) for card in cards]
    print()
    print_table(found["cards"], "card", CARD_FORMS)
    found["calls"] = []
    for card, model in product(cards, arguments.model):
        rows = call_records(card, model, arguments.method, loops)
        print(f"\n{card.name}, {model}. {HEADING}")
        print_table(rows, "attention", CALL_FORMS)
        found["calls"] += rows
    if arguments.json:
        write_json(found, arguments.json)


if __name__ == "__main__":
    main()
