"""Build the example workflows and their thumbnails from ComfyUI's official templates.

    pip install comfyui-workflow-templates-json pillow
    python tools/build_workflows.py

reads the templates from the installed package, puts this pack's nodes in place, and writes
`workflows/<stem>.json` and `workflows/<stem>.jpg`. The files for headless use in `workflows/api/`
come from a running front end: `python tests/workflows/browser/export_api.py` afterwards.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import tomllib
from workflow_builder import thumbnails
from workflow_builder.assemble import assemble
from workflow_builder.specs import SPECS

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
        target.write_text(
            json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        thumbnails.draw(spec.picture).save(target.with_suffix(".jpg"), quality=88, optimize=True)
        print(f"{spec.stem}: from {spec.template}")


if __name__ == "__main__":
    main()
