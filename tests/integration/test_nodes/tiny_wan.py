"""Text encoder and VAE of the small trained model, as far as ComfyUI's own nodes call them."""

from __future__ import annotations

import importlib
import json
import sys

import torch
from comfy.latent_formats import Wan21
from safetensors import safe_open


class _Prompts:
    """What CLIPTextEncode calls: the name of a scene becomes its embedding, other texts none."""

    def __init__(self, path):
        self.path = path

    def tokenize(self, text):
        with safe_open(self.path, "pt") as file:
            names = json.loads(file.metadata()["names"])
            key = f"prompt.{names.index(text)}" if text in names else "empty"
            return file.get_tensor(key)

    def encode_from_tokens_scheduled(self, tokens):
        return [[tokens.float(), {}]]


class _Autoencoder:
    """What VAEDecode calls."""

    def __init__(self, tools, path):
        if tools not in sys.path:
            sys.path.insert(0, tools)
        self.network = importlib.import_module("tiny_wan.autoencoder").Autoencoder.load(path)

    def decode(self, latent):
        """RGB in [0, 1], `[B, F, H, W, 3]`, of latents in the VAE's scale."""
        video = self.network.decode(Wan21().process_in(latent.float()))
        return torch.clamp((video + 1.0) / 2.0, 0.0, 1.0).permute(0, 2, 3, 4, 1)


class RSPATestClip:
    """Text encoder of the small trained model."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"path": ("STRING", {})}}

    def load(self, path):
        return (_Prompts(path),)


class RSPATestVae:
    """Decoder of the small trained model; `tools` is the folder that holds its code."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "load"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"tools": ("STRING", {}), "path": ("STRING", {})}}

    def load(self, tools, path):
        return (_Autoencoder(tools, path),)
