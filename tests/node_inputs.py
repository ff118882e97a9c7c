"""The inputs of every node, in order."""

# Saved workflows store widget values by position: new inputs may only be appended.
INPUTS = {
    "RectifiedSpaAttn": [
        "model",
        "enabled",
        "sparsity",
        "block_size",
        "start_percent",
        "end_percent",
        "schedule",
        "rectification",
        "token_order",
        "top_p",
        "dense_blocks",
        "min_tokens",
        "verbose",
        "precision",
        "preset",
        "tail_keys",
        "profile",
    ],
    "RectifiedSpaAttnSchedule": [
        "start_sparsity",
        "end_sparsity",
        "curve",
        "start_percent",
        "end_percent",
        "steps",
        "dense_steps",
        "preview_steps",
    ],
    "RectifiedSpaAttnReport": ["model", "after"],
    "RectifiedSpaAttnProbe": ["model", "steps", "blocks", "sparsities"],
    "RectifiedSpaAttnProbeResult": ["model", "after", "wanted_error", "name"],
    "RectifiedSpaAttnSaveProfile": ["profile", "filename"],
    "RectifiedSpaAttnLoadProfile": ["profile_name"],
}
