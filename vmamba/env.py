"""What a bug report needs to know about this installation: `python -m vmamba.env`.

Where a package is missing or cannot be imported, the report says so and goes on.
"""
import argparse
import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vmamba
from vmamba.ops import selective_scan

__all__ = ["main", "processor_name", "report"]

PACKAGES = ("vmamba", "torch", "torchvision", "triton", "timm", "numpy", "safetensors", "huggingface_hub")
# what changes how things run; nothing else of the environment is told
VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
             "OMP_NUM_THREADS", "TRITON_INTERPRET", "TORCH_LOGS", "HF_HUB_OFFLINE")
MISSING = "not installed"


def report() -> dict[str, Any]:
    """Versions, machine and abilities of this installation, as strings, lists and dictionaries of them.

    Returns:
        Keys ``python``, ``platform``, ``location`` of the package, ``packages`` (name to version), ``torch_cuda``
        (that PyTorch was built for), ``gpus`` (name, compute capability, memory), ``cpu``, ``threads``, ``extras``
        (name to what of it is missing), ``backends`` (device to backend to "runs", or why it does not) and
        ``variables`` of the environment.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "location": str(Path(vmamba.__file__).parent),
        "packages": {name: _version(name) for name in PACKAGES},
        "torch_cuda": torch.version.cuda or "none",
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cpu": f"{processor_name()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "extras": _extras(),
        "backends": {device: {name: _try_scan(device, name) for name in ("reference", "torch", "triton")}
                     for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(distribution: str) -> str:
    known = {"vmamba": vmamba.__version__, "torch": torch.__version__}  # with the build; a checkout is not installed
    if distribution in known:
        return known[distribution]
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return MISSING


def _gpu(index: int) -> str:
    about = torch.cuda.get_device_properties(index)
    return f"{about.name}, compute capability {about.major}.{about.minor}, {about.total_memory / 2**30:.0f} GiB"


def processor_name() -> str:
    """Marketing name of the processor where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _extras() -> dict[str, list[str]]:
    """The package's extras, and the distributions of each that are not installed; none where vmamba itself is not."""
    try:
        required = metadata.requires("vmamba") or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for line in required:
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if match:
            missing = extras.setdefault(match[2], [])
            if _version(match[1]) == MISSING:
                missing.append(match[1])
    return extras


def _try_scan(device: str, backend: str) -> str:
    """"runs", or why a small scan on this device does not, in one line."""
    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, device=device)

    try:
        y: Any = selective_scan(
            ones(1, 2, 3), ones(1, 2, 3), -ones(2, 1), ones(1, 1, 3), ones(1, 1, 3), backend=backend)
        return "runs" if bool(y.isfinite().all()) else "gives values that are not finite"
    except Exception as error:  # whatever is wrong with the installation is what a bug report is about
        return " ".join(f"{type(error).__name__}: {error}".split())


def _text(found: dict[str, Any]) -> str:
    lines = [f"{name}: {version}" for name, version in found["packages"].items()]
    lines += [f"{name.replace('_', ' ')}: {found[name]}" for name in (
        "python", "platform", "location", "torch_cuda", "cpu", "threads")]
    lines += [f"gpu: {gpu}" for gpu in found["gpus"]] or ["gpu: none that PyTorch can use"]
    lines += [f"extra {name}: {'missing ' + ', '.join(missing) if missing else 'installed'}"
              for name, missing in found["extras"].items()] or ["extras: unknown, vmamba is not installed"]
    lines += [f"backend {name} on {device}: {result}"
              for device, backends in found["backends"].items() for name, result in backends.items()]
    return "\n".join([*lines, *(f"{name}={value}" for name, value in found["variables"].items())])


def main(argv: list[str] | None = None) -> int:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="python -m vmamba.env", description="Print what a bug report needs to know.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args(argv)
    found = report()
    print(json.dumps(found, indent=2) if args.json else _text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
