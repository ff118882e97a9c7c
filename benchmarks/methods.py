"""The methods that are compared: ours with every rectification, and the pooled means of others."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest import mock

from ..rspa_core import SparseConfig
from ..rspa_core.config import RECTIFICATIONS

POOLED = "pooled"
"""Left-out blocks by their means alone, selected by these: what ComfyUI's Sol-Attn computes, here
in our token order and with our neighbours."""

METHODS = (*RECTIFICATIONS, POOLED)


def default_config(**changes: Any) -> SparseConfig:
    """What the node computes by default, but for `changes`: fields of `SparseConfig`."""
    fields: dict[str, Any] = {"rectification": "precise", "tail_keys": 4}
    return SparseConfig(**(fields | changes))


@dataclass(frozen=True)
class Method:
    """What stands for left-out blocks.

    Attributes:
        kind: one of `METHODS`.
        tail_keys: keys that stand for a block, with "precise".
    """

    kind: str
    tail_keys: int = 1

    @property
    def name(self) -> str:
        """Such as "paper" or "precise 4 keys"."""
        if self.kind != "precise":
            return self.kind
        return f"precise {self.tail_keys} key{'s' if self.tail_keys > 1 else ''}"

    def config(self, kept: float, q_block: int, kv_block: int, **more: Any) -> SparseConfig:
        """Configuration that keeps this share of the kv-blocks; `more` as for `SparseConfig`."""
        return default_config(
            sparsity=round(1.0 - kept, 6), q_block=q_block, kv_block=kv_block,
            rectification="precise" if self.kind == POOLED else self.kind,
            tail_keys=self.tail_keys, **more,
        )  # fmt: skip

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """While it is open, the reference and the kernels compute this method.

        Pooled means are "precise" with one key and no variance term, that is with a cap of 0.
        """
        with ExitStack() as stack:
            if self.kind == POOLED:
                for module in _modules_with_the_cap():
                    stack.enter_context(mock.patch.object(module, CAP, 0.0))
            yield


CAP = "TAIL_VARIANCE_CAP"


def _modules_with_the_cap() -> list[Any]:
    """Modules of the method and of the kernels that read the cap of the variance term.

    All are imported first: one that came later would take over the changed value and keep it.
    """
    root = __package__.rpartition(".")[0]
    import_module(f"{root}.rspa_core")
    if find_spec("triton") is not None:
        import_module(f"{root}.kernels.launch")
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith((f"{root}.rspa_core", f"{root}.kernels")) and hasattr(module, CAP)
    ]


def methods(kinds: Sequence[str], tail_keys: Sequence[int]) -> list[Method]:
    """Every kind once, "precise" once for each number of keys."""
    return [
        Method(kind, keys) for kind in kinds for keys in (tail_keys if kind == "precise" else [1])
    ]
