"""Parity fixtures: outputs of reference implementations, with weights rebuilt from their names by ``fill``."""
from pathlib import Path

GOLDENS = Path(__file__).parent
