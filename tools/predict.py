"""Names the most probable classes of image files and folders. See `--help`."""
import sys

from vmamba.train.predict import main

if __name__ == "__main__":
    sys.exit(main())
