"""Model families; importing this package registers every model with timm."""
from . import efficientvmamba, plainmamba, spatial_mamba, vim, vmamba

__all__ = ["efficientvmamba", "plainmamba", "spatial_mamba", "vim", "vmamba"]
