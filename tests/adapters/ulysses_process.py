"""The processes of test_ulysses.py: `python -m ... NUMBER FOLDER`.

Each runs every model of `MODELS` under context parallelism and writes what came out, and what was
counted, to FOLDER.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from diffusers import ContextParallelConfig
from torch import Tensor

from rectified_spaattn.adapters import sparse_attention
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule

from .models import FULL, GRID, SPARSE, counts, ltx2, ltx2_inputs, velocity, wan, wan_inputs

ODD = (3, 7, 9)
"""189 tokens: two processes cannot have as many."""


def per_token() -> dict[str, Any]:
    """As Wan 2.2 5B's image to video: the first frame is given."""
    inputs = wan_inputs()
    inputs["timestep"] = torch.full((2, 288), 500.0)
    inputs["timestep"][:, : GRID[1] * GRID[2]] = 0.0
    return inputs


MODELS: dict[str, tuple[Any, dict[str, Any], SparseConfig, dict[str, Any]]] = {
    "wan, nothing left out": (wan, wan_inputs(), FULL, {}),
    "wan": (wan, wan_inputs(), SPARSE, {}),
    "wan, a timestep a token": (wan, per_token(), SPARSE, {}),
    # gloo gathers equal shares of the tokens only.
    "wan, 3 heads": (
        lambda: wan(num_attention_heads=3),
        wan_inputs(),
        SPARSE,
        {"ulysses_anything": True},
    ),
    # The plan of diffusers 0.42 splits neither the rotary embedding of the attention between video
    # and audio nor its masks as that attention needs them.
    "ltx 2": (
        ltx2,
        ltx2_inputs() | {"isolate_modalities": True, "encoder_attention_mask": None},
        SPARSE,
        {},
    ),
}


def result(model: Any, inputs: dict[str, Any], config: SparseConfig, **options: Any) -> Any:
    """Output and counts of a sparse forward."""
    with sparse_attention(model, config, min_tokens=0, backend="reference", **options) as sparse:
        out = velocity(model, inputs)
    return out, counts(sparse), sparse.record.density


def parallel(make: Any, **options: Any) -> Any:
    model = make()
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, **options))
    return model


def failing_in_one(rank: int) -> Any:
    """One process runs out of memory, the other does not."""
    model = parallel(wan)
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        attend = sparse.run.attention

        def attention(*args: Any, **kwargs: Any) -> Any:
            if rank == 1:
                raise torch.OutOfMemoryError("out of memory")
            return attend(*args, **kwargs)

        sparse.run.attention = attention
        outs = [velocity(model, wan_inputs()) for _ in range(3)]
    return outs[-1], counts(sparse)


def not_finite_in_one(rank: int) -> Any:
    model = parallel(wan)
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        attend = sparse.run.attention

        def attention(*args: Any, **kwargs: Any) -> Any:
            out, stats = attend(*args, **kwargs)
            if rank == 1:
                out[..., 3, 5] = float("nan")
            return out, stats

        sparse.run.attention = attention
        velocity(model, wan_inputs())
        out = velocity(model, wan_inputs())
    return out, counts(sparse)


def of_the_page(folder: Path) -> Any:
    """The attention function that the page about hosts gives as an example.

    Args:
        folder: where its code may be written to.
    """
    page = Path(__file__).resolve().parents[2] / "docs" / "notes" / "hosts.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    program = folder / "page.py"
    program.write_text(code, encoding="utf-8")
    return runpy.run_path(str(program))["self_attention"]


def in_another_host(rank: int, folder: Path) -> Tensor:
    """Attention of 3 heads over 189 tokens, behind them two of padding; this process's tokens."""
    layout, generator = TokenLayout(ODD, 189), torch.Generator().manual_seed(3)
    mine = slice(0, 96) if rank == 0 else slice(96, 191)
    q, k, v = (x[:, mine] for x in torch.randn((3, 2, 191, 48), generator=generator))
    out: Tensor = of_the_page(folder)(q, k, v, 3, layout, SPARSE, padded=191)
    return out


def main(rank: int, number: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=number)
    torch.set_num_threads(1)
    # diffusers numbers the accelerators of a host, and a CPU is none.
    torch.accelerator.device_count = lambda: 1
    # transformers, which diffusers does without here, adds this method.
    logging.Logger.warning_once = logging.Logger.warning
    (folder / str(rank)).mkdir()
    results: dict[str, Any] = {
        name: result(parallel(make, **options), inputs, config)
        for name, (make, inputs, config, options) in MODELS.items()
    }
    schedule = SparsitySchedule(0.75, 0.75, steps=(None, 0.75))
    options = {"schedule": schedule, "dense_blocks": "0"}
    results["dense"] = result(parallel(wan), wan_inputs(), SPARSE, **options)
    results["failing"] = failing_in_one(rank)
    results["not finite"] = not_finite_in_one(rank)
    results["another host"] = in_another_host(rank, folder / str(rank))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    number, folder = int(sys.argv[1]), Path(sys.argv[2])
    # Forked, where a system can, they share what has been imported, which takes longest.
    way = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    torch.multiprocessing.start_processes(main, (number, folder), number, start_method=way)
