"""What a user waits for at first use: kernels compiled and checked, in a fresh process.

    TRITON_CACHE_DIR=$(mktemp -d) python -m rectified_spaattn.benchmarks.first_use

Prints the seconds of the first call with each rectification, in this order and in one process, and
of a second call. With Triton's usual cache it prints what a later start of ComfyUI takes.
"""

from __future__ import annotations

import argparse
import os
import time

import torch

from ..rspa_core import SparseConfig, rectified_attention
from .attention_call import SHAPES
from .synthetic import synthetic_qkv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="wan-480p")
    parser.add_argument("--blocks", default="128x128", help="q_block x kv_block")
    parser.add_argument("--precision", choices=("16-bit", "int8", "auto"), default="16-bit")
    parser.add_argument("--rectification", nargs="+", default=["paper", "precise"])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU")
    shape = SHAPES[arguments.shape]
    device = torch.device("cuda")
    q, k, v = synthetic_qkv(
        "mixed", shape.grid, shape.heads, 128, shape.context, torch.bfloat16, device
    )
    q_block, kv_block = map(int, arguments.blocks.split("x"))
    cache = os.environ.get("TRITON_CACHE_DIR", "as usual")
    print(f"{torch.cuda.get_device_name()}, Triton cache: {cache}")
    for rectification in arguments.rectification:
        config = SparseConfig(
            0.75, q_block, kv_block, rectification=rectification, precision=arguments.precision
        )
        seconds = []
        for _ in range(2):
            torch.cuda.synchronize()
            start = time.perf_counter()
            rectified_attention(q, k, v, shape.layout, config, backend="triton")
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        print(
            f"{rectification} {arguments.blocks} {arguments.precision}: "
            f"first call {seconds[0]:.2f} s, second {seconds[1]:.4f} s"
        )


if __name__ == "__main__":
    main()
