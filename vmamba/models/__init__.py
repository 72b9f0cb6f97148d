"""Model families; importing this package registers every model with timm."""
from . import vmamba

__all__ = ["vmamba"]
