"""What the scripts share for talking to their user: one-line errors, and model names."""

import difflib
import sys
from typing import NoReturn

import timm


def fail(message: str) -> NoReturn:
    """Print one line on stderr and leave with exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_model_name(name: str) -> None:
    """Fail with near names if timm does not know `name` (an architecture or architecture.tag)."""
    arch = name.partition(".")[0]
    if timm.is_model(arch):
        return
    near = difflib.get_close_matches(arch, timm.list_models(), n=4, cutoff=0.5)
    fail(f"unknown model '{name}'" + (f"; near names: {', '.join(near)}" if near else ""))
