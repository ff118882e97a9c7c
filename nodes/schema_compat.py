"""Schema keywords that older cores do not know yet.

An unknown keyword in one schema makes ComfyUI drop the whole pack, so those that came later are
left out where the signature lacks them. Any other keyword is passed on as it is: a misspelt one
still fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

LATER_KEYWORDS = frozenset(
    {
        "advanced",  # on inputs, 0.9.2
        "search_aliases",  # on Schema, 0.10.0
    }
)


def build(factory: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `factory` without the later keywords that its signature does not have."""
    known = inspect.signature(factory).parameters
    return factory(
        *args,
        **{
            name: value
            for name, value in kwargs.items()
            if name in known or name not in LATER_KEYWORDS
        },
    )
