"""Trains and evaluates classifiers of clips on folders of video files. See `--help`."""
import sys

from vmamba.tasks.video import main

if __name__ == "__main__":
    sys.exit(main())
