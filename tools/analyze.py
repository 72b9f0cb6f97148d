"""Looks into a model: receptive fields, implicit attention, class activation, decay, state correlation; `--help`."""
import sys

from vmamba.analysis.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
