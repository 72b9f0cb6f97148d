"""Parameter names of the official VMamba, which other families took over, and of its older and rewritten versions."""
import re

__all__ = ["vmamba_native_name"]

_RENAMES = (
    # first release
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    # one-file rewrite
    (r"\.op\.x_proj\.weight$", ".op.x_proj_weight"),
    (r"\.op\.dt_projs\.(weight|bias)$", r".op.dt_projs_\1"),
    # ours
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
    (r"^(layers\.\d+)\.blocks\.(\d+)\.norm\.", r"\1.blocks.\2.norm1."),
    (r"\.op\.x_proj_weight$", ".op.x_proj.weight"),
    (r"\.op\.dt_projs_(weight|bias)$", r".op.dt_\1"),
    (r"\.op\.A_logs$", ".op.A_log"),
    (r"\.op\.Ds$", ".op.D"),
    (r"\.op\.conv2d\.", ".op.conv."),
    (r"\.op\.", ".mixer."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
)


def vmamba_native_name(key: str, patch_stem: bool) -> str:
    """Our name of an official parameter, whichever release it comes from.

    Args:
        key: Official name.
        patch_stem: Whether the model has the stem of the first release, one convolution of 4x4 patches.
    """
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    stem = {"0": "conv", "2": "norm"} if patch_stem else {"0": "conv1", "2": "norm1", "5": "conv2", "7": "norm2"}
    key = re.sub(r"^patch_embed\.(\d+)", lambda m: f"stem.{stem.get(m[1], m[1])}", key)
    # official downsampling ends a stage, ours begins the next
    match = re.match(r"^layers\.(\d+)\.downsample\.(\w+)\.", key)
    if match:
        part = {"1": "conv", "3": "norm"}.get(match[2], match[2])
        key = f"stages.{int(match[1]) + 1}.downsample.{part}.{key[match.end():]}"
    return key
