"""Your own workflow with the node on and off, from one seed, clip by clip, on a running ComfyUI.

    python -m rectified_spaattn.benchmarks.paired --workflow FILE.json --out FOLDER
    python -m rectified_spaattn.benchmarks.paired --workflow FILE.json --out FOLDER \\
        --prompts prompts.txt --seeds 0 1 --server http://127.0.0.1:8188
    python -m rectified_spaattn.benchmarks.paired --add FOLDER/paired.json

FILE is a workflow in API form that holds our node: those of workflows/api, or your own after "File,
Export (API)". It is queued as it is, but for the prompt, the seed, and the node switched off or on;
what saves videos is left out, and the frames come back as PNG by way of ComfyUI's temporary folder,
so that no video codec is judged. A prompt is a line of a text file; lines that begin with # are
skipped. A clip that FOLDER has is not rendered again: after an interruption run the same line.

Writes `paired.json` and `paired.png`, both to be posted: they name card, versions, files, settings
as they were run, prompts and figures, no user and no folder. `--add` puts such a file into the
table of docs/benchmarks.md.

    PSNR, SSIM  of the sparse clip to the dense one; LPIPS where `pip install lpips` has been run
    sampling    seconds of the samplers, by ComfyUI's events; in summaries the median over clips,
                because the first clip of a kind loads the model or compiles the kernels
    memory      of the GPU, the most of what was in use at half-second polls
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from ...rspa_core.config import ConfigError
from ...rspa_core.run.profile import pack_version
from .. import rules
from ..my_card.table import DOCUMENT
from ..output import command_line, write_json
from . import graph as graphs
from . import record as records
from .compare import compare, lpips_distance
from .server import Server, ServerError

Kinds = dict[str, tuple[list[Path], dict[str, Any]]]
"""By "dense" and "sparse": the frames of a clip, and what `render.json` beside them holds."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--server", default="http://127.0.0.1:8188", metavar="URL", help="default: %(default)s")
    add("--workflow", type=Path, metavar="FILE", help="in API form")
    add("--prompts", type=Path, metavar="FILE", help="default: the workflow's own prompt")
    add("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    add("--out", type=Path, default=Path("demo_output/paired"), metavar="FOLDER")
    add("--frames-of", metavar="ID", help="node whose first output is the frames")
    add("--prompt-node", metavar="ID", help="node with the prompt, where there are several")
    add("--add", type=Path, metavar="FILE", help="put a finished file into the table")
    add("--document", type=Path, default=DOCUMENT, help="that holds the table")
    arguments = parser.parse_args(words)
    if (arguments.workflow is None) == (arguments.add is None):
        parser.error("either --workflow or --add is needed")
    return arguments


def read_prompts(path: Path) -> list[str]:
    """A prompt for each line.

    Raises:
        ConfigError: there is none.
        OSError: the file cannot be read.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ConfigError("prompts", path.name, "a file with a prompt in a line")
    return found


class Comparison:
    """All clips of one workflow on one server, and what of them a folder already has."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the workflow and ask the server; nothing is rendered yet.

        Raises:
            WorkflowError, ConfigError, ServerError, OSError: it cannot begin.
        """
        self.out = arguments.out
        self.graph = graphs.read_workflow(arguments.workflow)
        self.frames = graphs.frames_node(self.graph, arguments.frames_of)
        self.text: tuple[str, str] | None = None
        prompts: list[str | None] = [None]
        if arguments.prompts is not None:
            prompts = [*read_prompts(arguments.prompts)]
            self.text = graphs.prompt_input(self.graph, self.frames, arguments.prompt_node)
        self.clips = list(itertools.product(prompts, arguments.seeds))
        if len(self.clips) > records.MAX_CLIPS:
            allowed = f"up to {records.MAX_CLIPS} prompts and seeds in all"
            raise ConfigError("clips", len(self.clips), allowed)
        self.server = Server(arguments.server)
        self.distance = lpips_distance()
        diffusion, others = graphs.model_files(self._graph(*self.clips[0], True))
        name = graphs.plain_file(arguments.workflow.stem)
        self.record = {
            "format": records.FORMAT,
            "version": records.VERSION,
            "pack": pack_version(),
            **self.server.about(),
            "workflow": {"name": name, "diffusion": diffusion, "others": others},
            "settings": [],
            "clips": [],
        }
        for part in ("pack", "device", "software"):  # known before hours of rendering
            rules.check(self.record[part], records.SPEC[part], part)

    def run(self) -> tuple[records.Record, list[tuple[list[Path], list[Path]]]]:
        """Render and compare; returns the record and the frames of every clip.

        Raises:
            ServerError, ConfigError, ValueError, OSError: a clip fails; those before it are kept.
        """
        shown = []
        for number, (prompt, seed) in enumerate(self.clips):
            kinds: Kinds = {
                kind: self._rendered(number, prompt, seed, kind) for kind in ("dense", "sparse")
            }
            self._add(prompt, seed, kinds)
            shown.append((kinds["dense"][0], kinds["sparse"][0]))
            write_json(self.record, self.out / "paired.json")
        return self.record, shown

    def _graph(self, prompt: str | None, seed: int, enabled: bool) -> graphs.Graph:
        text = None if prompt is None or self.text is None else (*self.text, prompt)
        return graphs.render_graph(self.graph, self.frames, text, seed, enabled)

    def _rendered(
        self, number: int, prompt: str | None, seed: int, kind: str
    ) -> tuple[list[Path], dict[str, Any]]:
        """The frames of a clip and what was noted of it, from the folder or from the server."""
        graph = self._graph(prompt, seed, kind == "sparse")
        folder = self.out / "clips" / f"{number:02d}_seed{seed}_{kind}"
        note = folder / "render.json"
        if not note.exists():
            print(f"clip {number + 1} of {len(self.clips)}, {kind}", flush=True)
            render = self.server.render(graph)
            folder.mkdir(parents=True, exist_ok=True)
            for index, name in enumerate(render.frames):
                (folder / f"{index:04d}.png").write_bytes(self.server.frame(name))
            noted = {
                "graph": graphs.digest(graph), "frames": len(render.frames),
                "seconds": render.seconds, "sampling_s": render.sampling_s,
                "peak_gib": render.peak_gib, "reports": render.reports,
            }  # fmt: skip
            write_json(noted, note)  # last: it says that the clip is whole
        found = json.loads(note.read_text(encoding="utf-8"))
        if found["graph"] != graphs.digest(graph):
            allowed = "a new folder: this one has clips of another workflow, prompt or setting"
            raise ConfigError("out", str(self.out), allowed)
        if kind == "dense" and found["reports"]:
            raise ServerError("another Rectified SpaAttn node stays on when it is switched off")
        return [folder / f"{index:04d}.png" for index in range(found["frames"])], found

    def _add(self, prompt: str | None, seed: int, kinds: Kinds) -> None:
        """Compare a clip and put it into the record."""
        (dense, of_dense), (sparse, of_sparse) = kinds["dense"], kinds["sparse"]
        found = compare(dense, sparse, self.distance)
        times = ("seconds", "sampling_s", "peak_gib")
        self.record["clips"].append({
            "prompt": None if prompt is None else records.plain_prompt(prompt), "seed": seed,
            **found,
            "dense": {name: of_dense[name] for name in times},
            "sparse": {name: of_sparse[name] for name in times},
            "reports": [records.short_report(report) for report in of_sparse["reports"]],
        })  # fmt: skip
        self.record["settings"] = [report["settings"] for report in of_sparse["reports"]]
        with Image.open(dense[0]) as image:
            size = {"frames": len(dense), "height": image.height, "width": image.width}
        self.record["workflow"] |= size
        self.record["summary"] = records.summary_of(self.record["clips"])
        reasons = [text for report in of_sparse["reports"] for text in report["reasons"]]
        if not any(report["sparse"] for report in of_sparse["reports"]):
            print(f"  nothing was sparse: {'; '.join(reasons) or 'the node was never called'}")
        psnr = "equal" if found["psnr"] is None else f"PSNR {found['psnr']:.1f} dB"
        print(f"  seed {seed}: {psnr}, SSIM {found['ssim']:.3f}", flush=True)


def add_to_table(file: Path, document: Path) -> str:
    """Put a file from anybody into the table; returns its row.

    Raises:
        ConfigError, ValueError: the file is not a comparison on a card, or there is no table.
        OSError: a file cannot be read or written.
    """
    row = records.row_of(records.read(file))
    text = records.with_row(document.read_text(encoding="utf-8"), row)
    document.write_text(text, encoding="utf-8", newline="\n")
    return row


def main(words: list[str] | None = None) -> None:
    """Command line: render, compare, write; or add a file to the table."""
    arguments = parse(words)
    try:
        if arguments.add is not None:
            print(add_to_table(arguments.add, arguments.document))
            return
        record, clips = Comparison(arguments).run()
    except (ServerError, ConfigError, ValueError, OSError) as error:
        sys.exit(str(error))
    from .picture import draw_comparison

    path = arguments.out / "paired.json"
    draw_comparison(record, clips).save(path.with_suffix(".png"))
    for name, value in records.figures(record).items():
        print(f"{name:28} {value}")
    print(f"{path}\n{path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
