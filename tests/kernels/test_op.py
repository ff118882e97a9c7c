"""The custom op: its declared shapes, and how it sits in a compiled graph."""

from __future__ import annotations

import pytest
import torch

from rectified_spaattn.rspa_core import SparseConfig, rectified_attention

from .cases import Case

pytest.importorskip("triton", reason="Triton is not installed")

CASE = Case((2, 5, 9), SparseConfig(0.5, 64, 64, rectification="none"), (3, 0), heads=2)


@pytest.mark.parametrize(("keep_mask", "keep_lse"), [(False, False), (True, True)])
def test_declared_shapes_are_the_real_ones(
    keep_mask: bool, keep_lse: bool, device: torch.device
) -> None:
    import rectified_spaattn.kernels.op  # noqa: F401  (registers the op)

    arguments = (
        *CASE.inputs(torch.float32, device, 0), CASE.grid, CASE.layout.video_start,
        CASE.config.to_text(), keep_mask, keep_lse,
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.rspa.rectified_attention.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiled_graph_calls_the_op_unopened(device: torch.device) -> None:
    q, k, v = CASE.inputs(torch.float32, device, 1)
    from rectified_spaattn.kernels.op import rectified_attention_op

    def twice(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return 2 * rectified_attention_op(q, k, v, CASE.layout, CASE.config, False)[0]

    expected = 2 * rectified_attention(q, k, v, CASE.layout, CASE.config, backend="triton")
    compiled = torch.compile(twice, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), expected)


def test_index_tables_are_released(device: torch.device) -> None:
    from rectified_spaattn.kernels.plan import index_tables
    from rectified_spaattn.rspa_core import release_tables

    q, k, v = CASE.inputs(torch.float32, device, 2)
    rectified_attention(q, k, v, CASE.layout, CASE.config, backend="triton")
    assert index_tables.cache_info().currsize > 0
    release_tables()
    assert index_tables.cache_info().currsize == 0
