"""Model families; importing this package registers every model with timm."""
from . import efficientvmamba, vmamba

__all__ = ["efficientvmamba", "vmamba"]
