"""Pre-trains a backbone without labels, by masked image modelling. See `--help`."""
import sys
from pathlib import Path

from vmamba.tasks.pretraining.train import main

RECIPES = Path(__file__).parent.parent / "configs" / "pretraining"

if __name__ == "__main__":
    sys.exit(main(recipes=RECIPES))
