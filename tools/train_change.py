"""Trains change detection on folders of image pairs. See `--help`."""
import sys

from vmamba.tasks.change_detection.train import main

if __name__ == "__main__":
    sys.exit(main())
