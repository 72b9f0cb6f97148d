"""The only place that touches timm names which timm does not export."""
from timm.models._builder import build_model_with_cfg, load_pretrained
from timm.models._features import feature_take_indices
from timm.models._hub import download_cached_file, generate_readme, save_for_hf
from timm.models._input import update_model_input_size
from timm.models._manipulate import checkpoint, checkpoint_seq
from timm.models._registry import generate_default_cfgs, register_model, register_model_deprecations

__all__ = [
    "build_model_with_cfg", "checkpoint", "checkpoint_seq", "download_cached_file", "feature_take_indices",
    "generate_default_cfgs", "generate_readme", "load_pretrained", "register_model", "register_model_deprecations",
    "save_for_hf", "update_model_input_size",
]
