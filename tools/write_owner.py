"""Write the repository's address, which pyproject.toml has, into all files that link to it.

python tools/write_owner.py

One line decides: `Repository` under `[project.urls]` in pyproject.toml.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = {".json", ".md", ".py", ".toml", ".yml"}
ADDRESS = re.compile(
    r"((?:github|githubusercontent)\.com/|github\.repository == ')"
    r"([\w.-]+/[\w.-]*rectified-spaattn)(?![\w-])"
)
"""A link to the repository or a comparison with its name: what stands before it, owner/name."""


def repository() -> str:
    """ "owner/name" """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["project"]["urls"]["Repository"].removeprefix("https://github.com/")


def text_files() -> list[Path]:
    """Files that may link to the repository: those that git tracks or would track, else all."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name]
    if listed.returncode:
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        names = [
            str(path) for path in found if path.parts[0][0] != "." or path.parts[0] == ".github"
        ]
    paths = (ROOT / name for name in names)
    return sorted(path for path in paths if path.suffix in TEXT and path.is_file())


def main() -> None:
    """Command line: rewrite all files."""
    name = repository()
    for path in text_files():
        text = path.read_text(encoding="utf-8")
        written = ADDRESS.sub(lambda match: match[1] + name, text)
        if written != text:
            path.write_text(written, encoding="utf-8", newline="\n")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
