"""Where the small trained model and its code are: tools/tiny_wan, which is not in the package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).resolve().parents[1] / "tools"
CHECKPOINT = TOOLS / "tiny_wan" / "checkpoint"


def tiny_wan(name: str) -> ModuleType:
    """A module of `tools/tiny_wan`."""
    if str(TOOLS) not in sys.path:
        sys.path.insert(0, str(TOOLS))
    return importlib.import_module(f"tiny_wan.{name}")
