"""Trains an image classifier; with no arguments: vmamba_nano on the bundled digits. See `--help`."""
import sys
from pathlib import Path

from vmamba.train.fit import main

RECIPES = Path(__file__).parent.parent / "configs" / "classification"

if __name__ == "__main__":
    sys.exit(main(recipes=RECIPES))
