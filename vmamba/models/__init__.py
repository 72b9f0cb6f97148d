"""Model families; importing this package registers every model with timm."""
from . import efficientvmamba, vim, vmamba

__all__ = ["efficientvmamba", "vim", "vmamba"]
