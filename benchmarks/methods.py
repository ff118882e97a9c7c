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
"""Left-out blocks by their means alone, as ComfyUI's Sol-Attn has them; here in our token order,
with our neighbours, and ranked by parts of q-blocks."""

METHODS = (*RECTIFICATIONS, POOLED)


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
        return SparseConfig(
            sparsity=round(1.0 - kept, 6), q_block=q_block, kv_block=kv_block,
            rectification="precise" if self.kind == POOLED else self.kind,
            tail_keys=self.tail_keys, **more,
        )  # fmt: skip

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """While it is open, the reference and the kernels compute this method.

        Pooled means are "precise" with one key, without a term for the spread (its cap is 0) and
        without a weight of the tail (it is 1).
        """
        with ExitStack() as stack:
            if self.kind == POOLED:
                for name, value in PLAIN_MEANS.items():
                    for module in _modules_with(name):
                        stack.enter_context(mock.patch.object(module, name, value))
            yield


PLAIN_MEANS = {"TAIL_VARIANCE_CAP": 0.0, "SMALLEST": 1.0, "LARGEST": 1.0}


def _modules_with(constant: str) -> list[Any]:
    """Modules of the method and of the kernels that read a constant.

    All are imported first: one that came later would take over the changed value and keep it.
    """
    root = __package__.rpartition(".")[0]
    import_module(f"{root}.rspa_core")
    if find_spec("triton") is not None:
        import_module(f"{root}.kernels.launch")
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith((f"{root}.rspa_core", f"{root}.kernels")) and hasattr(module, constant)
    ]


def methods(kinds: Sequence[str], tail_keys: Sequence[int]) -> list[Method]:
    """Every kind once, "precise" once for each number of keys."""
    return [
        Method(kind, keys) for kind in kinds for keys in (tail_keys if kind == "precise" else [1])
    ]
