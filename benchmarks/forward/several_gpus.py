"""Seconds per forward of diffusers' Wan on one GPU and on several, by Ulysses.

One process a GPU. The first measures the model by itself while the others wait; then diffusers'
context parallelism is switched on and all of them measure it together. The weights are random and
the same in every process, so the two outputs have to be the same up to rounding: a pair of which
they are not, or whose sparse calls are not exactly one per block in every process, is refused.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from ...adapters import sparse_attention
from ...rspa_core import SparseConfig, relative_l2
from ..output import aligned, device_name, write_json
from .comfy_models import TEXT_WIDTH, Case, materialise, wan_case

SAME = 0.05
"""Largest relative L2 difference between the outputs of one GPU and of several: in bf16, matrix
products of other sizes round otherwise, and what rounds otherwise may select otherwise."""
BACKENDS = {"default": "native", "cudnn": "_native_cudnn"}


@dataclass(frozen=True)
class Variant:
    """One way to run the model.

    Attributes:
        name: for the table.
        config: of the sparse calls; None for a dense model.
        backend: of diffusers, for the dense calls.
    """

    name: str
    config: SparseConfig | None
    backend: str = BACKENDS["default"]


@dataclass(frozen=True)
class Timed:
    """What was measured of a variant in one process.

    Attributes:
        seconds: per timed forward.
        output: of the last one.
        tokens: that its attention got, in this process.
        density: of its sparse calls, 1 if the model is dense.
        refused: what speaks against the times, or "".
    """

    seconds: list[float]
    output: Tensor
    tokens: int
    density: float = 1.0
    refused: str = ""


def build(case: Case, device: torch.device, dtype: torch.dtype) -> Any:
    """The WanTransformer3DModel of a case, with random weights on a device."""
    from diffusers import WanTransformer3DModel

    config = case.unet_config
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: Any = WanTransformer3DModel(
                num_attention_heads=config["num_heads"],
                attention_head_dim=config["dim"] // config["num_heads"],
                num_layers=config["num_layers"],
                ffn_dim=config["ffn_dim"],
                text_dim=config["text_dim"],
            )
    finally:
        torch.set_default_dtype(before)
    materialise(model, device)
    return model.eval()


def enable_ulysses(model: Any, number: int) -> None:
    """Share the sequence and the heads of a model among as many processes."""
    from diffusers import ContextParallelConfig

    if model.device.type == "cpu":  # diffusers numbers a host's accelerators: a CPU is none
        torch.accelerator.device_count = lambda: 1
    # Without the part for one timestep a token: it warns of every other timestep.
    plan = {name: part for name, part in model._cp_plan.items() if name}
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=number), cp_plan=plan)


def inputs_of(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same in every process."""
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn((1, *case.latent), generator=generator)
    text = torch.randn((1, case.text_tokens, TEXT_WIDTH), generator=generator)
    given = {"hidden_states": latent, "encoder_hidden_states": text}
    on_device = {name: x.to(device, dtype) for name, x in given.items()}
    return on_device | {"timestep": torch.tensor([500], device=device)}


@contextmanager
def running_as(model: Any, variant: Variant) -> Iterator[Any]:
    """The model as a variant has it; yields what counts its calls, None for a dense model."""
    if variant.config is None:
        model.set_attention_backend(variant.backend)
        yield None
        return
    backend = "reference" if model.device.type == "cpu" else "auto"
    with sparse_attention(model, variant.config, min_tokens=0, backend=backend) as sparse:
        yield sparse


def timed(
    model: Any, case: Case, inputs: dict[str, Tensor], variant: Variant, repeats: int
) -> Timed:
    """Some forwards after one that is not timed."""
    device = inputs["hidden_states"].device

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds, refused, density = [], "", 1.0
    tokens: list[int] = []
    attention = model.blocks[0].attn1
    counter = attention.register_forward_pre_hook(lambda _, given: tokens.append(given[0].shape[1]))
    with running_as(model, variant) as sparse:
        for _ in range(repeats + 1):
            if sparse is not None:
                sparse.reset()
            wait()
            start = time.perf_counter()
            output = model(**inputs, return_dict=False)[0]
            wait()
            seconds.append(time.perf_counter() - start)
        if sparse is not None:
            record = sparse.record
            density = record.density
            if (record.sparse, record.dense) != (case.blocks, 0):
                reasons = {each.text: count for each, count in record.reasons.items()}
                refused = f"{record.sparse} sparse, {record.dense} dense calls: {reasons}"
    counter.remove()
    if not bool(output.isfinite().all()):
        refused = "the output is not finite"
    return Timed(seconds[1:], output, tokens[-1], density, refused)


def variants_of(options: argparse.Namespace) -> list[Variant]:
    """Dense ones, then sparse ones as the options ask for."""
    kinds = options.dense or (["default"] if options.device == "cpu" else [*BACKENDS])
    variants = [Variant(f"dense, {kind}", None, BACKENDS[kind]) for kind in kinds]
    for size in map(int, options.block_size):
        for density in options.density:
            name = f"{options.rectification}, blocks of {size}, density {density:g}"
            sparsity = round(1.0 - density, 6)
            config = SparseConfig(sparsity, size, size, rectification=options.rectification)
            variants.append(Variant(name, config))
    return variants


def work(rank: int, options: argparse.Namespace, folder: str) -> None:
    """One process; the first writes the results to the folder."""
    is_gpu = options.device != "cpu"
    device = torch.device("cuda", rank) if is_gpu else torch.device("cpu")
    if is_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("nccl" if is_gpu else "gloo", store, rank=rank, world_size=options.gpus)
    dtype = getattr(torch, options.dtype or ("bfloat16" if is_gpu else "float32"))
    case = wan_case(options.layers, "small" if options.small else options.tokens)
    with torch.inference_mode():
        model, inputs = build(case, device, dtype), inputs_of(case, device, dtype)
        variants = variants_of(options)
        alone = []
        if rank == 0:
            for variant in variants:
                alone.append(timed(model, case, inputs, variant, options.repeats))
                print(f"1 GPU, {variant.name}: {alone[-1].seconds}", flush=True)
        dist.barrier()
        enable_ulysses(model, options.gpus)
        rows = []
        for index, variant in enumerate(variants):
            shared = timed(model, case, inputs, variant, options.repeats)
            said: list[str] = [""] * options.gpus
            dist.all_gather_object(said, shared.refused)
            if rank == 0:
                rows.append(row(variant.name, alone[index], shared, said, options.gpus))
                print(f"{options.gpus} GPUs, {variant.name}: {shared.seconds}", flush=True)
    if rank == 0:
        results: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__}
        results |= {"gpus": options.gpus, "tokens": case.tokens, "blocks": case.blocks}
        results["rows"] = rows
        write_json(results, Path(folder) / "results.json")
    dist.destroy_process_group()
    # Threads of gloo that outlive the group now and then abort a process that tidies up.
    os._exit(0)


def row(name: str, alone: Timed, shared: Timed, said: list[str], gpus: int) -> dict[str, Any]:
    """What is reported of a variant; `said`: what each process has against it."""
    difference = relative_l2(shared.output, alone.output)
    against = [f"process {rank}: {reason}" for rank, reason in enumerate(said) if reason]
    if alone.refused:
        against.append(f"one GPU: {alone.refused}")
    if shared.tokens != -(-alone.tokens // gpus):
        against.append(f"{shared.tokens} of {alone.tokens} tokens in each process: not shared")
    if difference > SAME:
        against.append(f"the outputs differ by {difference:.3g} of their norm")
    return {
        "name": name,
        "one": statistics.median(alone.seconds),
        "several": statistics.median(shared.seconds),
        "density": shared.density,
        "difference": difference,
        "refused": "; ".join(against),
    }


def table(rows: list[dict[str, Any]], gpus: int) -> list[str]:
    """Medians, how many times faster, and how far the outputs are apart."""
    cells = [["variant", "1 GPU s", f"{gpus} GPUs s", "faster", "density", "rel. L2"]]
    for each in rows:
        if not each["refused"]:
            one, several = each["one"], each["several"]
            line = [each["name"], f"{one:.3f}", f"{several:.3f}", f"{one / several:.2f}x"]
            cells.append([*line, f"{each['density']:.3f}", f"{each['difference']:.2g}"])
    return [
        *aligned(cells),
        *(f"{x['name']}: refused: {x['refused']}" for x in rows if x["refused"]),
    ]


def main(options: argparse.Namespace) -> int:
    """Measure on one GPU and on `options.gpus`; the exit status is 1 if anything was refused."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (options, folder), nprocs=options.gpus)
        results = json.loads((Path(folder) / "results.json").read_text())
    heading = f"{results['gpus']} x {results['device']}: {results['tokens']} tokens, "
    heading += f"{results['blocks']} blocks, torch {results['torch']}"
    print(f"\n{heading}", *table(results["rows"], options.gpus), sep="\n", flush=True)
    if options.json:
        write_json(results, options.json)
    return int(any(each["refused"] for each in results["rows"]))
