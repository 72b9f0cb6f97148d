"""vmamba: vision state-space (Mamba) backbones. Importing this package registers every model with timm."""
from . import models

__version__ = "0.1.0"
__all__ = ["__version__", "models"]
