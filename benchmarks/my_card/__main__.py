"""What this machine's graphics card gains from sparse attention, in about two minutes.

    python -m rectified_spaattn.benchmarks.my_card
    python -m rectified_spaattn.benchmarks.my_card --out FOLDER --call wan-480p
    python -m rectified_spaattn.benchmarks.my_card --add FILE.json

Times one attention call with every dense back end that is installed, with ComfyUI's own sparse
attention and with each preset of ours, on the same synthetic heads, and compares each output with
full attention in fp32. Which call and how many of its heads is chosen by free memory and by the
time of one dense call. Writes a picture and a JSON file that can be posted: it names the card and
versions, no user and no folder. `--add` puts such a file into the table of docs/benchmarks.md.

    ms            median of three rounds in turn
    rel L2        relative L2 difference to full attention in fp32, of one head of each kind
    +MiB          peak memory of a call beside q, k, v and the output
    first call s  until the first output: imports, kernels compiled (unless cached) and checked
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ...rspa_core.config import ConfigError
from ..output import command_line, write_json
from .measure import AUTO, CALLS, Refused, measure
from .record import advice, call_words, file_stem, read, text_lines
from .table import DOCUMENT, row_of, with_row


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--call", choices=CALLS, default=AUTO, help="default: by memory and time")
    add("--out", type=Path, default=Path("demo_output"), metavar="FOLDER")
    add("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--add", type=Path, metavar="FILE", help="put a measured file into the table of cards")
    add("--document", type=Path, default=DOCUMENT, help="that holds the table")
    return parser.parse_args(words)


def add_to_table(file: Path, document: Path) -> str:
    """Put a file from anybody into the table; returns its row.

    Raises:
        ConfigError, ValueError: the file is not a record of a card, or there is no table.
        OSError: a file cannot be read or written.
    """
    row = row_of(read(file))
    text = with_row(document.read_text(encoding="utf-8"), row)
    document.write_text(text, encoding="utf-8", newline="\n")
    return row


def main(words: list[str] | None = None) -> None:
    """Command line: measure, print, write; or add a file to the table."""
    arguments = parse(words)
    try:
        if arguments.add is not None:
            print(add_to_table(arguments.add, arguments.document))
            return
        device = torch.device(arguments.device)
        record = measure(
            device, lambda text: print(f"  {text}", flush=True), lambda _: None, arguments.call
        )
    except (ConfigError, Refused, ValueError, OSError) as error:
        sys.exit(str(error))
    from .picture import draw_benchmark

    path = arguments.out / f"{file_stem(record)}.json"
    write_json(record, path)
    draw_benchmark(record, call_words(record), advice(record)).save(path.with_suffix(".png"))
    print("\n".join(["", *text_lines(record), "", str(path), str(path.with_suffix(".png"))]))


if __name__ == "__main__":
    main()
