"""Runs inside ComfyUI's Python: which attention rows does a voxel of the latent reach?

    python voxel_probe.py COMFYUI_FOLDER PACK_FOLDER MODELS_FOLDER < cases.json > results.json

Attention does not care about the order of tokens, so a token region that is off by some rows still
passes every comparison with dense attention. Here single voxels of the noise are changed instead,
and the queries of the first transformer block tell which rows moved. Changing the text and the
references must move exactly the rows outside the video.

Each case is {"model", "latent": [T, H, W], "channels", "audio": frames of an audio latent,
"text_tokens", "width", "extras", "pokes": [[t, h, w], ...], "arguments", "guide"}. "model" is a
file in MODELS_FOLDER or, if there is none of that name, a class in comfy.ldm.wan.model, which is
then built small with "arguments". "guide" is the size [T, H, W] of a guide for LTX, [] for none;
with half of the video's height and width it is one of lower resolution. Each result is {"layout":
{"grid", "length", "video_start"} or {"reason"}, "rows": rows of the query, "pokes": [changed rows,
...], "context": rows changed by the context}.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = ["main.py", "--cpu", "--use-pytorch-cross-attention"]
sys.path.insert(0, COMFYUI)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.wan.model  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.patcher_extension  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402

POKE = 5.0
# Conditions that enter the channels of the video tokens and stay as they are.
VIDEO_CHANNELS = (
    "concat_latent_image",
    "concat_mask",
    "vace_frames",
    "vace_mask",
    "ref_mask_28ch",  # of the references, then of the video
)


def load_package(name: str, path: Path) -> ModuleType:
    """Import a package folder or a single file under a name of our own."""
    folder = [str(path)] if path.is_dir() else None
    file = path / "__init__.py" if path.is_dir() else path
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Recorder:
    """Attention override and APPLY_MODEL wrapper that note what the first block sees."""

    def __init__(self, regions: ModuleType) -> None:
        self._regions = regions
        self.layout, self.reason = None, "the model was never called"
        self.query: torch.Tensor | None = None  # [tokens, features]

    def wrapper(self, executor, x, t, c_concat, c_crossattn, control, options, **conds):
        model = executor.class_obj.diffusion_model
        found = self._regions.token_layout(model, x, c_crossattn, conds)
        if hasattr(found, "grid"):
            self.layout = found
        else:
            self.reason = found.text
        options = self._regions.label_blocks(model, options)
        return executor(x, t, c_concat, c_crossattn, control, options, **conds)

    def override(self, func, q, k, v, *args, **kwargs):
        options = kwargs.get("transformer_options", {})
        is_first = self.query is None and options.get("block_index") == 0
        if is_first and q.shape == k.shape:
            rows = q[0].transpose(0, 1) if q.ndim == 4 else q[0]
            self.query = rows.reshape(rows.shape[0], -1).clone()
        return func(q, k, v, *args, **kwargs)


class Probe:
    """One case: a model, a latent size and its conditions."""

    def __init__(self, case: dict, model, conditioning, regions: ModuleType) -> None:
        self.case = case
        self.model = model
        self._conditioning = conditioning
        self._regions = regions
        generator = torch.Generator().manual_seed(1)
        self.video = torch.randn(1, case["channels"], *case["latent"], generator=generator)
        self.positive = self._make_conditioning(seed=10)

    def _make_conditioning(self, seed: int) -> list:
        case = self.case
        return self._conditioning(case["text_tokens"], case["width"], seed, case["extras"])

    def changed_context(self) -> list:
        """Conditioning with other text and references, but the same video channels."""
        ((text, values),) = self._make_conditioning(seed=999)
        kept = {key: self.positive[0][1][key] for key in VIDEO_CHANNELS if key in values}
        pooled = self.positive[0][1]["pooled_output"]  # modulates every row of HunyuanVideo
        return [[text, {**values, **kept, "pooled_output": pooled}]]

    def record(self, video: torch.Tensor, positive: list, audio_seed: int = 2) -> Recorder:
        """Sample one step from this noise and return what the first block saw."""
        recorder = Recorder(self._regions)
        noise, latent, mask = video, video * 0.0, None
        if self.case["guide"]:
            # Another guide goes with the other text.
            seed = 20 if positive is self.positive else 30
            positive, latent, mask = with_guide(positive, latent, self.case["guide"], seed)
            unused = torch.zeros_like(latent[:, :, video.shape[2] :])
            noise = torch.cat([video, unused], dim=2)
        if frames := self.case["audio"]:
            from comfy.nested_tensor import NestedTensor

            generator = torch.Generator().manual_seed(audio_seed)
            shape = (1, 8, frames, 16) if video.shape[1] == 128 else (1, 32, 2, frames)
            audio = torch.randn(shape, generator=generator)
            noise, latent = NestedTensor((noise, audio)), NestedTensor((latent, audio * 0.0))
        model = self.model.clone()
        wrappers = comfy.patcher_extension.WrappersMP
        model.add_wrapper_with_key(wrappers.APPLY_MODEL, "probe", recorder.wrapper)
        options = dict(model.model_options.get("transformer_options", {}))
        model.model_options["transformer_options"] = options
        options["optimized_attention_override"] = recorder.override
        comfy.sample.sample(
            model, noise, 1, 1.0, "euler", "simple", positive, positive,
            latent, noise_mask=mask, disable_pbar=True, seed=0,
        )  # fmt: skip
        return recorder

    def run(self) -> dict:
        base = self.record(self.video, self.positive)
        if base.layout is None:
            return {"layout": {"reason": base.reason}}
        pokes = []
        for t, h, w in self.case["pokes"]:
            video = self.video.clone()
            video[:, :, t, h, w] += POKE
            pokes.append(changed_rows(base.query, self.record(video, self.positive).query))
        context = self.record(self.video, self.changed_context(), audio_seed=3)
        layout = base.layout
        return {
            "layout": {
                "grid": layout.grid,
                "length": layout.length,
                "video_start": layout.video_start,
            },
            "rows": base.query.shape[0],
            "pokes": pokes,
            "context": changed_rows(base.query, context.query),
        }


def with_guide(positive: list, latent: torch.Tensor, size: list[int], seed: int) -> tuple:
    """Conditioning, latent and noise mask with a random guide, as ComfyUI's node appends it."""
    from comfy_extras.nodes_lt import LTXVAddGuide

    frames, height, width = size
    generator = torch.Generator().manual_seed(seed)
    guide = torch.randn(1, latent.shape[1], frames, height, width, generator=generator)
    more = {}
    if height != latent.shape[3]:
        scale = latent.shape[3] // height
        guide, more["guide_mask"] = LTXVAddGuide.dilate_latent(guide, scale)
        more["latent_downscale_factor"] = scale
    mask = torch.ones(1, 1, *latent.shape[2:])
    positive, _, latent, mask = LTXVAddGuide.append_keyframe(
        positive, positive, 0, latent, mask, guide, 1.0, (8, 32, 32), **more
    )
    return positive, latent, mask


def changed_rows(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """Indexes of the rows that differ by more than rounding."""
    difference = (before - after).abs().amax(dim=1)
    return (difference > 1e-4).nonzero().flatten().tolist()


def load_model(name: str, arguments: dict, random_parameters):
    """A model patcher from ComfyUI's own loader, random weights included."""
    path = Path(MODELS) / f"{name}.safetensors"
    if path.exists():
        return comfy.sd.load_diffusion_model(str(path))
    empty = getattr(comfy.ldm.wan.model, name)(
        **arguments,
        operations=comfy.ops.disable_weight_init,
        device="meta",
        dtype=torch.float32,
    )
    shapes = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
    return comfy.sd.load_diffusion_model_state_dict(random_parameters(shapes, seed=1))


def main() -> None:
    pack = load_package("probed_pack", Path(PACK))
    regions = importlib.import_module(f"{pack.__name__}.nodes.models")
    here = Path(__file__).parent
    test_nodes = load_package("probe_test_nodes", here / "test_nodes")
    tiny_models = load_package("probe_tiny_models", here / "tiny_models.py")
    models: dict = {}
    results = []
    for case in json.load(sys.stdin):
        name = case["model"]
        if name not in models:
            models[name] = load_model(name, case["arguments"], tiny_models.random_parameters)
        probe = Probe(case, models[name], test_nodes.conditioning, regions)
        with torch.no_grad():
            results.append(probe.run())
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
