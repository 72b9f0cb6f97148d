"""Model families; importing this package registers every model with timm."""
from . import efficientvmamba, localvmamba, msvmamba, plainmamba, spatial_mamba, vim, vmamba

__all__ = ["efficientvmamba", "localvmamba", "msvmamba", "plainmamba", "spatial_mamba", "vim", "vmamba"]
