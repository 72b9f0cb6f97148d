"""Model families; importing this package registers every model with timm."""
from . import efficientvmamba, msvmamba, spatial_mamba, vim, vmamba

__all__ = ["efficientvmamba", "msvmamba", "spatial_mamba", "vim", "vmamba"]
