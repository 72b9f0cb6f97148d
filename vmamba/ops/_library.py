"""The dispatcher library that holds every operator of the suite, ``torch.ops.vmamba.*``."""
from __future__ import annotations

import torch

LIBRARY = torch.library.Library("vmamba", "DEF")
