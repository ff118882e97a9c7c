"""Build the example workflows, their thumbnails and the subgraph blueprint.

    pip install comfyui-workflow-templates-json pillow
    python tools/build_workflows.py

reads ComfyUI's official templates from the installed package, puts this pack's nodes in place with
the values of their presets, and writes `workflows/<stem>.json`, `workflows/<stem>.jpg` and the
blueprint in `subgraphs/`. What the thumbnails show comes from `tools/render_thumbnails.py`. The
files for headless use in `workflows/api/` come from a running front end: `python
tests/workflows/browser/export_api.py` afterwards.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from workflow_builder import thumbnails
from workflow_builder.assemble import assemble
from workflow_builder.blueprint import NAME, build_blueprint
from workflow_builder.catalogue import SPECS, Spec

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_PACKAGE = "comfyui_workflow_templates_json"


def templates_folder(package: str) -> Path:
    """The `templates` folder of an importable package; exits with a hint when there is none."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"{package} is not installed here: pip install {package.replace('_', '-')}")
    return Path(next(iter(found.submodule_search_locations))) / "templates"


def pack_version() -> str:
    """The version that `pyproject.toml` gives this pack."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]["version"]


def main() -> None:
    """Command line: write every workflow, or those whose stem contains one of the words given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="build only stems that contain one of these words")
    parser.add_argument(
        "--templates",
        default=DEFAULT_PACKAGE,
        metavar="PACKAGE",
        help="importable package that holds the templates (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "workflows",
        help="folder to write to (default: workflows)",
    )
    parser.add_argument(
        "--subgraphs",
        type=Path,
        default=ROOT / "subgraphs",
        help="folder for the blueprint (default: subgraphs)",
    )
    options = parser.parse_args()
    source = templates_folder(options.templates)
    origin = f"{options.templates} {importlib.metadata.version(options.templates)}"
    options.out.mkdir(parents=True, exist_ok=True)
    for spec in SPECS:
        if options.only and not any(word in spec.stem for word in options.only):
            continue
        template = json.loads((source / f"{spec.template}.json").read_text(encoding="utf-8"))
        workflow = assemble(template, spec, pack_version(), origin)
        target = options.out / f"{spec.stem}.json"
        write_json(target, workflow)
        write_thumbnail(target.with_suffix(".jpg"), spec)
        print(f"{spec.stem}: from {spec.template}")
    options.subgraphs.mkdir(parents=True, exist_ok=True)
    write_json(options.subgraphs / f"{NAME}.json", build_blueprint(pack_version()))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` readably."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_thumbnail(path: Path, spec: Spec) -> None:
    """Draw the thumbnail from what `tools/render_thumbnails.py` has left for this workflow."""
    record = thumbnails.load_records().get(spec.stem)
    if record is None:
        print(f"{spec.stem}: no thumbnail, run tools/render_thumbnails.py {spec.stem} first")
        return
    frames = thumbnails.load_pair(spec.stem)
    layers = record["sparsity_of_layers"]
    picture = thumbnails.draw(spec.picture, spec.sparsity_of_steps(), frames, layers)
    picture.save(path, quality=78, optimize=True)


if __name__ == "__main__":
    main()
