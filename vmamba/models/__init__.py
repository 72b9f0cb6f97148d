"""Model families; importing this package registers every model with timm."""
from . import efficientvmamba, spatial_mamba, vim, vmamba

__all__ = ["efficientvmamba", "spatial_mamba", "vim", "vmamba"]
