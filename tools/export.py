"""Writes a classifier as ONNX, torch.export archive, TorchScript or AOTInductor package. See `--help`."""
import sys

from vmamba.train.export import main

if __name__ == "__main__":
    sys.exit(main())
