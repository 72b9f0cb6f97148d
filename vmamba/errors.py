"""Errors that are the user's to fix: the command line tools print them as one line and exit with code 2."""
import difflib
import importlib
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from types import ModuleType

__all__ = ["UserError", "near_names", "require", "tool"]


class UserError(Exception):
    """A bad option, file or folder. The message is one line, names the thing and says what would be right."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def near_names(name: str, known: Iterable[str], count: int = 3) -> str:
    """Returns `"; near names: a, b"` for the known names most like `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; near names: {', '.join(near)}" if near else ""


def require(module: str, extra: str = "train") -> ModuleType:
    """Imports an optional dependency by its full module name.

    Raises:
        UserError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; install it with: pip install 'vmamba[{extra}]'") from error


def tool(main: Callable[..., int]) -> Callable[..., int]:
    """Turns a `main(argv) -> exit code` into one that reports a `UserError` on stderr and returns 2."""

    @wraps(main)
    def run(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return run
