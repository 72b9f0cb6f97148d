"""Writes maps of what changed between two images of one place. See `--help`."""
import sys

from vmamba.tasks.change_detection.predict import main

if __name__ == "__main__":
    sys.exit(main())
