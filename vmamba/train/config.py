"""YAML configurations: the same keys as the command line flags, checked as strictly."""
import argparse
from pathlib import Path
from typing import Any

import timm.utils

from ..errors import UserError, near_names, require

__all__ = ["dump_config", "load_config"]

# flags that say how to start a run, not what it is
_NOT_OPTIONS = ("help", "config", "resume", "auto_resume", "overwrite", "print_config")


def load_config(path: str | Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Reads a YAML file of options for `parser`.

    Args:
        path: YAML file: a mapping from flag names (`batch_size` or `batch-size`) to values; the key `base` names a
            file, beside it, that this one changes.
        parser: says which keys there are and what values they take.

    Returns:
        Values by destination name, converted as the command line would.

    Raises:
        UserError: the file is missing or no YAML mapping, a key is unknown, or a value does not fit its flag.
    """
    return _load(Path(path), {action.dest: action for action in parser._actions if action.dest not in _NOT_OPTIONS}, ())


def _load(path: Path, actions: dict[str, argparse.Action], above: tuple[Path, ...]) -> dict[str, Any]:
    """Reads a file over the one that its `base` names; `above` are those that lead here."""
    yaml = require("yaml")
    if path.resolve() in above:
        raise UserError(f"config {path} is its own base")
    try:
        with open(path, encoding="utf-8") as file:
            raw = yaml.safe_load(file)
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"config {path} must be a mapping from option names to values")
    values = {}
    if "base" in raw:
        values = _load(path.parent / str(raw.pop("base")), actions, (*above, path.resolve()))
    for key, value in raw.items():
        dest = str(key).replace("-", "_")
        if dest not in actions:
            raise UserError(f"config {path}: unknown key {key!r}{near_names(dest, actions)}")
        try:
            values[dest] = _convert(actions[dest], value)
        except (TypeError, ValueError) as error:
            raise UserError(f"config {path}: {key}: {error}") from None
    return values


def _convert(action: argparse.Action, value: Any) -> Any:
    """Converts one YAML value as the command line would convert it; raises ValueError or TypeError."""
    if value is None:
        return None
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise ValueError(f"needs true or false, not {value!r}")
        return value
    if isinstance(action, timm.utils.ParseKwargs):
        if not isinstance(value, dict):
            raise ValueError(f"needs a mapping, not {value!r}")
        return value
    if action.dest == "aug_config" and isinstance(value, list):     # the list itself, so that a config is all there is
        return value
    if action.nargs in (None, "?"):
        return _convert_one(action, value)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if isinstance(action.nargs, int) and len(items) != action.nargs:
        raise ValueError(f"needs {action.nargs} values, not {len(items)}")
    return [_convert_one(action, item) for item in items]


def _convert_one(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, (list, dict, bool)):
        raise ValueError(f"needs a single {getattr(action.type, '__name__', 'text')}, not {value!r}")
    convert = action.type if callable(action.type) else str
    if convert is int and isinstance(value, float) and value != int(value):
        raise ValueError(f"needs a whole number, not {value!r}")
    try:
        value = convert(value)
    except ValueError:
        raise ValueError(f"needs a value of type {getattr(convert, '__name__', 'text')}, not {value!r}") from None
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"must be one of {', '.join(map(str, action.choices))}, not {value!r}")
    return value


def dump_config(args: dict[str, Any]) -> str:
    """Returns the options as YAML text that `load_config` reads back to the same values."""
    plain = {key: value for key, value in args.items() if key not in _NOT_OPTIONS}
    return require("yaml").safe_dump(plain, sort_keys=True, default_flow_style=None, allow_unicode=True)
