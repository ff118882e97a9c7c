"""Seconds per forward of ComfyUI's own Wan, HunyuanVideo, H3 and LTX classes, dense and patched.

Model classes, patcher, guider and dense attention are those of a ComfyUI checkout; the weights are
random, so no checkpoint is needed. Every forward goes through `CFGGuider.sample`, hence through the
wrappers, overrides and clean-up callbacks of a real run. Speed depends on shapes and on the share
of kept blocks, which random weights do not change; the relative L2 difference to the dense output
does depend on them and is information only.

With ComfyUI's own Python (`python` here), after `python -m pip install --no-deps -e .` of the pack:

    python -P -m rectified_spaattn.benchmarks.forward --comfyui ~/ComfyUI --model all \\
        --dense default cudnn --density 0.25 0.15 --json forward.json

    python -P -m rectified_spaattn.benchmarks.forward --comfyui ~/ComfyUI --device cpu --small \\
        --layers 2                                    # about a thousand tokens: does it run at all?

On several GPUs it is diffusers' Wan, on one of them and on all (see several_gpus.py):

    python -m rectified_spaattn.benchmarks.forward --gpus 2 --density 0.25
    python -m rectified_spaattn.benchmarks.forward --gpus 2 --device cpu --small --layers 2

Method: one `CFGGuider.sample` per measurement. Its sampler first runs the model cut down to one
block of each kind (warm-up: allocator, libraries, tables), then times one whole forward. Variants
take turns, in reversed order every other round; medians are reported. In a variant's first run the
warm-up happens twice, and what the first took longer is its compilation, unless an earlier variant
compiled the same. A variant whose output is not finite, or whose sparse calls are not exactly one
per block, is refused: a reason stands in place of its time, and the exit status is 1.
"""

import argparse
import contextlib
import gc
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...rspa_core import relative_l2
from ...rspa_core.config import RECTIFICATIONS
from ..calls.comparison import first_line
from ..output import aligned, device_name, write_json
from ..timing import timed
from . import several_gpus
from .comfy_models import CASES, LATENTS, Case, build_patcher, import_comfyui


@dataclass
class Variant:
    """One way to run the model, and what was measured.

    Attributes:
        name: for the table.
        patcher: clone of the model's patcher that runs this way.
        report: counts of our node, None where it is not applied.
        prefer_cudnn: ask for cuDNN before FlashAttention in PyTorch's attention.
        seconds: per timed forward.
        warm_up_seconds: of the cut-down model, in the first run.
        peak_gib: most memory allocated during a timed forward, weights included.
        counts: sparse and dense calls, reasons and density of the last timed forward.
        relative_l2: difference to the output of the first variant.
        refused: why there is no time, or "".
    """

    name: str
    patcher: Any
    report: Any = None
    prefer_cudnn: bool = False
    seconds: list[float] = field(default_factory=list)
    warm_up_seconds: list[float] = field(default_factory=list)
    peak_gib: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)
    relative_l2: float | None = None
    refused: str = ""


def dense_variant(kind: str, patcher: Any) -> Variant:
    """`default`: as ComfyUI runs it; `cudnn`: cuDNN first."""
    if kind == "default":
        return Variant("dense, ComfyUI default", patcher.clone())
    import comfy.ops

    variant = Variant("dense, cuDNN first", patcher.clone(), prefer_cudnn=True)
    if not hasattr(comfy.ops, "SDPA_BACKEND_PRIORITY"):
        variant.refused = "this ComfyUI sets no order of attention back ends here"
    return variant


def sparse_variant(patcher: Any, density: float, block_size: str, options: Any) -> Variant:
    """The model as our node hands it on; the node's defaults but for what is asked for here."""
    from comfy.patcher_extension import WrappersMP

    from ...nodes.patching import KEY
    from ...nodes.sparse_attention import RectifiedSpaAttn, RectifiedSpaAttnOptions

    # On a CPU all would be dense otherwise.
    backend = "reference" if torch.device(options.device).type == "cpu" else "auto"
    own = RectifiedSpaAttnOptions.execute(
        rectification=options.rectification, min_tokens=0, backend=backend
    )[0]
    patched = RectifiedSpaAttn.execute(
        model=patcher, enabled=True, options=own, preset="custom",
        sparsity=round(1.0 - density, 6), block_size=block_size, start_percent=0.0,
    )[0]  # fmt: skip
    (patch,) = patched.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    name = f"rectified ({options.rectification}), blocks of {block_size}, density {density:g}"
    return Variant(name, patched, report=patch.run.report)


@contextlib.contextmanager
def one_block_of_each(diffusion_model: nn.Module, block_lists: tuple[str, ...]) -> Iterator[None]:
    """Cut the model down to the first block of each kind while the context lasts."""
    whole = {name: getattr(diffusion_model, name) for name in block_lists}
    try:
        for name, blocks in whole.items():
            setattr(diffusion_model, name, blocks[:1])
        yield
    finally:
        for name, blocks in whole.items():
            setattr(diffusion_model, name, blocks)


@contextlib.contextmanager
def cudnn_first() -> Iterator[None]:
    """Swap FlashAttention and cuDNN, the first two of ComfyUI's list of PyTorch back ends."""
    import comfy.ops

    order = comfy.ops.SDPA_BACKEND_PRIORITY
    order[:2] = reversed(order[:2])
    try:
        yield
    finally:
        order[:2] = reversed(order[:2])


class ForwardTimer:
    """A sampler function, in ComfyUI's sense, that times one forward instead of sampling."""

    def __init__(self, case: Case, variant: Variant, warm_ups: int) -> None:
        self.case, self.variant, self.warm_ups = case, variant, warm_ups
        self.output = torch.empty(0)

    def __call__(
        self, model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any
    ) -> Tensor:
        """Arguments of every k-diffusion sampler; the denoised latent, of any shape."""
        variant, is_cuda = self.variant, x.device.type == "cuda"
        sigma = sigmas[0].expand(x.shape[0])

        forward = partial(model, x, sigma, **extra_args)
        with one_block_of_each(variant.patcher.model.diffusion_model, self.case.block_lists):
            warm_ups = [timed(forward, x.device)[0] for _ in range(self.warm_ups)]
        variant.warm_up_seconds = variant.warm_up_seconds or warm_ups
        if variant.report is not None:
            variant.report.reset()
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(x.device)
        seconds, denoised = timed(forward, x.device)
        variant.seconds.append(seconds)
        if is_cuda:
            variant.peak_gib = torch.cuda.max_memory_allocated(x.device) / 2**30
        if variant.report is not None:
            variant.counts = variant.report.record().as_dict()
        # What the network returned: ComfyUI's CONST computes denoised = x - output * sigma.
        self.output = (x - denoised) / sigma.view(-1, *[1] * (x.ndim - 1))
        return denoised


def run_once(case: Case, variant: Variant) -> Tensor:
    """One timed forward at half of the noise range, at cfg 1; returns the network's output."""
    import comfy.samplers

    generator = torch.Generator().manual_seed(1)
    noise: Any = torch.randn((1, *case.latent), generator=generator)
    if case.audio:
        from comfy.nested_tensor import NestedTensor

        audio = torch.randn((1, *case.audio), generator=generator)
        noise = NestedTensor((noise, audio))
    text = torch.randn((1, case.text_tokens, case.text_width), generator=generator)
    pooled = torch.randn((1, 768), generator=generator)
    values: dict[str, Any] = {"pooled_output": pooled, "guidance": 6.0, "frame_rate": 25.0}
    for name, shape in case.conditions.items():
        values[name] = torch.randn(shape, generator=generator)
    conditioning = [[text, values]]
    guider = comfy.samplers.CFGGuider(variant.patcher)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    sampling = variant.patcher.get_model_object("model_sampling")
    sigmas = torch.tensor([sampling.percent_to_sigma(0.5), 0.0])
    timer = ForwardTimer(case, variant, warm_ups=1 if variant.seconds else 2)
    sampler = comfy.samplers.KSAMPLER(timer)
    with cudnn_first() if variant.prefer_cudnn else contextlib.nullcontext():
        guider.sample(noise, noise * 0.0, sampler, sigmas, disable_pbar=True, seed=0)
    return timer.output


def reason_to_refuse(case: Case, variant: Variant, output: Tensor) -> str:
    """Why this variant's time would mislead, or ""."""
    if not bool(output.isfinite().all()):
        return "the output is not finite"
    if variant.patcher.model.model_lowvram:
        return "the weights did not fit and were offloaded"
    if variant.report is None:
        return ""
    sparse, dense = variant.counts["sparse"], variant.counts["dense"]
    expected = case.blocks, case.dense_calls
    if (sparse, dense) != expected:
        reasons = f": {variant.counts['reasons']}" if dense else ""
        wanted = "{} and {}".format(*expected)
        return f"{sparse} sparse and {dense} dense calls instead of {wanted}{reasons}"
    return "" if variant.relative_l2 else "the output is that of the dense model"


def measure(case: Case, variants: list[Variant], repeats: int) -> None:
    """Time the variants in turn, `repeats` times; fills them in."""
    reference: Tensor | None = None
    for index in range(repeats):
        for variant in variants if index % 2 == 0 else variants[::-1]:
            if variant.refused:
                continue
            try:
                output = run_once(case, variant)
                reference = output if reference is None else reference
                variant.relative_l2 = relative_l2(output, reference)
                variant.refused = reason_to_refuse(case, variant, output)
            except Exception as error:  # a variant that fails must not take the others along
                variant.refused = first_line(error)
            shown = f"refused: {variant.refused}"
            if variant.refused:
                variant.seconds.clear()
            else:
                shown = f"{variant.seconds[-1]:.3f} s"
            print(f"{case.title}, round {index + 1}, {variant.name}: {shown}", flush=True)


def table(variants: list[Variant]) -> list[str]:
    """Medians, speed-ups over the first dense variant and the fastest one, counts."""
    timed = [v for v in variants if not v.refused]
    medians = {v.name: statistics.median(v.seconds) for v in timed}
    dense = [medians[v.name] for v in timed if v.report is None]
    first = medians.get(variants[0].name)
    headings = ["variant", "s / forward", "vs default", "vs fastest dense", "compile s"]
    rows = [[*headings, "peak GiB", "density", "sparse / dense calls", "rel. L2"]]
    for v in timed:
        seconds = medians[v.name]
        cells = [v.name, f"{seconds:.3f} (of {len(v.seconds)})"]
        cells += [f"{first / seconds:.2f}x" if first else "-"]
        cells += [f"{min(dense) / seconds:.2f}x" if dense else "-"]
        cells += [f"{max(0.0, v.warm_up_seconds[0] - v.warm_up_seconds[1]):.1f}"]
        cells += [f"{v.peak_gib:.1f}", f"{v.counts['density']:.3f}" if v.counts else "1"]
        cells += [f"{v.counts['sparse']} / {v.counts['dense']}" if v.counts else "-"]
        rows.append([*cells, f"{v.relative_l2:.4f}"])
    return [*aligned(rows), *(f"{v.name}: refused: {v.refused}" for v in variants if v.refused)]


def describe_machine(device: torch.device) -> dict[str, str]:
    """Card, versions and allocator: what a time is worth nothing without."""
    import comfyui_version

    packages = {each.metadata["Name"]: each.version for each in distributions()}
    named = ("torch", "triton", "comfy-kitchen")
    return {
        "device": device_name(device),
        "allocator": torch.cuda.get_allocator_backend() if device.type == "cuda" else "none",
        "comfyui": comfyui_version.__version__,
        **{name: packages.get(name, "not installed") for name in named},
    }


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--comfyui", type=Path, metavar="DIR", help="a ComfyUI checkout")
    add("--gpus", type=int, default=0, help="2 or more: diffusers' Wan on one GPU and on so many")
    add("--model", choices=[*CASES, "all"], default="all")
    add("--tokens", choices=["1080p", "720p", "480p"], default="720p", help="size of the video")
    add("--small", action="store_true", help="a few hundred tokens, narrow model, for checking")
    add("--layers", type=int, help="fewer blocks (HunyuanVideo: N double, 2 N single)")
    add("--dense", nargs="+", choices=["default", "cudnn"], help="default: both, on a GPU")
    add("--density", nargs="*", type=float, default=[0.25, 0.15, 0.10], help="none: dense only")
    add("--block-size", nargs="+", choices=["128", "64"], default=["128"])
    add("--rectification", choices=RECTIFICATIONS, default="precise")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=["bfloat16", "float16", "float32"], help="default: bfloat16 on a GPU")
    add("--repeats", type=int, default=2, help="rounds; every round times each variant once")
    add("--json", type=Path, metavar="FILE", help="write all numbers here")
    options = parser.parse_args(words)
    if options.gpus and options.gpus < 2:
        parser.error("--gpus: 2 or more")
    if options.gpus and options.model not in ("all", "wan14b"):
        parser.error(f"--gpus: of Wan only, not of --model {options.model}")
    if not options.gpus and options.comfyui is None:
        parser.error("--comfyui DIR is needed, or --gpus")
    return options


def run_case(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure one model and print its table; the same as data."""
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    size = "small" if options.small else options.tokens
    case = CASES[name](options.layers, size)
    patcher = build_patcher(case, device, dtype)
    kinds = options.dense or (["default"] if device.type == "cpu" else ["default", "cudnn"])
    variants = [dense_variant(kind, patcher) for kind in kinds]
    variants += [
        sparse_variant(patcher, density, block_size, options)
        for block_size in options.block_size
        for density in options.density
    ]
    measure(case, variants, options.repeats)
    blocks = f"{case.blocks} blocks"
    if case.blocks != case.released_blocks:
        blocks = f"ONLY {case.blocks} of {case.released_blocks} blocks"
    heading = f"{case.title} {size}: {case.tokens} tokens, {blocks}, {dtype}"
    print(f"\n{heading}", *table(variants), "", sep="\n", flush=True)
    rows = [{k: v for k, v in vars(x).items() if k not in ("patcher", "report")} for x in variants]
    return {"heading": heading, "latent": case.latent, "tokens": case.tokens, "variants": rows}


def main(words: list[str] | None = None) -> int:
    """Measure the models asked for; the exit status is 1 if any variant was refused."""
    options = parse(words)
    device = torch.device(options.device)
    names = list(CASES) if options.model == "all" else [options.model]
    without = [name for name in names if options.tokens not in LATENTS[name]]
    if without:
        raise SystemExit(f"--tokens {options.tokens}: not for {', '.join(without)}")
    if device.type == "cpu" and not options.small:
        raise SystemExit("--device cpu: the full models need a GPU, add --small")
    if options.gpus:
        return several_gpus.main(options)
    if device.type == "cuda" and device.index is None:  # ComfyUI compares devices with an index
        device = torch.device("cuda", torch.cuda.current_device())
    import_comfyui(options.comfyui, device)
    import comfy.model_management

    results: dict[str, Any] = {"machine": describe_machine(device), "options": vars(options)}
    results["cases"] = []
    print(json.dumps(results["machine"]), flush=True)
    for name in names:
        with torch.inference_mode():
            results["cases"].append(run_case(name, options, device))
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()
        if options.json:
            write_json(results, options.json)
    return int(any(row["refused"] for case in results["cases"] for row in case["variants"]))


if __name__ == "__main__":
    sys.exit(main())
