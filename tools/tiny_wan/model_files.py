"""Files of a trained model: its weights, and the text embeddings that stand for prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .model import EPS, FREQ_DIM, LATENT_CHANNELS, PATCH_SIZE, WanConfig, WanModel

WEIGHTS = "tiny_wan.safetensors"
PROMPTS = "tiny_wan_prompts.safetensors"
VAE = "tiny_wan_vae.safetensors"
PROMPT_TOKENS = 8
EMPTY = "empty"
MAX_BYTES = 25_000_000
"""Of all files together: they are in the repository."""


def write_atomically(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file; whoever reads `path` meanwhile gets the old or the new one."""
    part = path.with_suffix(".part")
    save_file(tensors, str(part), metadata=metadata)
    os.replace(part, path)


def stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `WanModel` in the dtypes of its file.

    Matrices but the last are E4M3, which loaders take as they take bf16, the dtype of the rest.
    """
    dtypes = {
        name: torch.float8_e4m3fn
        for name, value in state.items()
        if value.dim() == 2 and not name.startswith("head.")
    }
    return {
        name: value.detach().to(dtypes.get(name, torch.bfloat16)) for name, value in state.items()
    }


def save_model(
    state: Mapping[str, Tensor],
    config: WanConfig,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights under Wan's native names, in the dtypes of `stored`.

    Args:
        state: the state dict of a `WanModel`.
        config: its widths. What key names do not tell goes into the metadata entry "config", which
            recent versions of ComfyUI read when they detect models.
        path: file to write.
        metadata: further entries.
    """
    tensors = {name: value.cpu().contiguous() for name, value in stored(state).items()}
    transformer = {"num_heads": config.heads, "text_dim": config.text_dim}
    entries = {"format": "pt", "config": json.dumps({"transformer": transformer})}
    write_atomically(tensors, Path(path), entries | dict(metadata or {}))


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> WanModel:
    """A model from a file that `save_model` wrote, in evaluation mode.

    Raises:
        KeyError, RuntimeError: keys or shapes that are not Wan's.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sizes = json.loads(metadata.get("config", "{}")).get("transformer", {})
    dim = state["head.modulation"].shape[-1]
    numbers = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    config = WanConfig(
        dim=dim,
        layers=len(numbers),
        heads=sizes.get("num_heads", max(1, dim // 128)),
        ffn_dim=state["blocks.0.ffn.0.weight"].shape[0],
        text_dim=state["text_embedding.0.weight"].shape[1],
    )
    model = WanModel(config)
    model.load_state_dict(state)
    return model.to(device, dtype).eval()


@dataclass(frozen=True, eq=False)
class Prompts:
    """Text embeddings, one per scene, and the empty one for guidance, which is zero.

    Zero is what ComfyUI's ConditioningZeroOut makes of any conditioning.

    Attributes:
        names: of the scenes; scene i has embedding i.
        embeddings: `[scenes + 1, L, text_dim]` float32; the last one is the empty prompt.
    """

    names: tuple[str, ...]
    embeddings: Tensor

    @classmethod
    def make(cls, names: tuple[str, ...], text_dim: int) -> Prompts:
        """Embeddings with entries +1 and -1, every token orthogonal to every other.

        Tokens are rows of a Hadamard matrix: nothing random, and exact in every dtype.

        Args:
            names: of the scenes.
            text_dim: a power of two above the number of scenes. Below 8 tokens per scene, scenes
                get as many tokens as there are rows for.

        Raises:
            ValueError: another `text_dim`.
        """
        tokens = min(PROMPT_TOKENS, (text_dim - 1) // len(names))
        if text_dim & (text_dim - 1) or tokens < 1:
            raise ValueError(
                f"text_dim is {text_dim}, allowed are powers of two above {len(names)}"
            )
        matrix = torch.ones(1, 1)
        while len(matrix) < text_dim:
            top = torch.cat([matrix, matrix], dim=1)
            matrix = torch.cat([top, torch.cat([matrix, -matrix], dim=1)])
        rows = matrix[1 : 1 + len(names) * tokens].view(len(names), tokens, text_dim)
        return cls(names, torch.cat([rows, torch.zeros_like(rows[:1])]))

    @property
    def empty(self) -> int:
        """Number of the empty prompt."""
        return len(self.names)

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on another device."""
        return Prompts(self.names, self.embeddings.to(device))

    def save(self, path: str | Path) -> None:
        """Write bf16 tensors `[1, L, text_dim]`, the shape of a ComfyUI conditioning.

        Keys are `prompt.0`, `prompt.1`, ... and `empty`; the metadata entry "names" lists the
        scenes as JSON.
        """
        keys = [*(f"prompt.{number}" for number in range(len(self.names))), EMPTY]
        stored = self.embeddings.to("cpu", torch.bfloat16)
        tensors = {key: stored[i : i + 1].clone() for i, key in enumerate(keys)}
        metadata = {"format": "pt", "names": json.dumps(self.names)}
        write_atomically(tensors, Path(path), metadata)

    @classmethod
    def load(cls, path: str | Path) -> Prompts:
        """Read a file that `save` wrote, to the CPU as float32."""
        with safe_open(str(path), framework="pt") as file:
            names = tuple(json.loads((file.metadata() or {})["names"]))
            keys = [*(f"prompt.{number}" for number in range(len(names))), EMPTY]
            embeddings = torch.cat([file.get_tensor(key) for key in keys]).float()
        return cls(names, embeddings)


# From the native names to those of diffusers, applied in this order to every key. The two norms
# swap numbers, because diffusers counts norms in the order of use.
_DIFFUSERS_NAMES = (
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
    ("modulation", "scale_shift_table"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("norm3", "norm2"),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    (".q.", ".to_q."),
    (".k.", ".to_k."),
    (".v.", ".to_v."),
    (".o.", ".to_out.0."),
)


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of diffusers' `WanTransformer3DModel`."""
    renamed = {}
    for key, value in state.items():
        for native, other in _DIFFUSERS_NAMES:
            key = key.replace(native, other)
        renamed[key] = value
    return renamed


def diffusers_config(config: WanConfig) -> dict[str, object]:
    """Arguments of diffusers' `WanTransformer3DModel` for a model of these widths."""
    return {
        "patch_size": PATCH_SIZE,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "text_dim": config.text_dim,
        "freq_dim": FREQ_DIM,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": EPS,
    }
