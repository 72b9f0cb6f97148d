"""Evaluates a checkpoint, or published weights, on a dataset. See `--help`."""
import sys

from vmamba.train.validate import main

if __name__ == "__main__":
    sys.exit(main())
