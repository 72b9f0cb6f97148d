"""What the scripts around mmdetection and mmsegmentation share: reading configs, and errors of one line."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vmamba.errors import UserError, require

# what mmengine and the toolboxes raise for wrong settings, names and files
_CONFIG_ERRORS = (AssertionError, AttributeError, ImportError, LookupError, OSError, SyntaxError, TypeError, ValueError)
TOOLBOXES = {"mmdet": "detection", "mmseg": "segmentation"}

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")     # mmdet imports albumentations, which would ask the network


def load_config(path: str | Path, options: dict[str, Any] | None = None) -> Any:
    """Reads a config, and makes the registries of its toolbox the default.

    Args:
        path: Python, JSON or YAML config of mmengine.
        options: Values to set in it, by dotted names.

    Returns:
        The `mmengine.Config`.

    Raises:
        UserError: a toolbox is not installed, or the config cannot be read, or is for another toolbox.
    """
    mmengine = require("mmengine", "openmmlab")
    if not Path(path).is_file():
        raise UserError(f"config {path} does not exist")
    with config_errors(f"cannot read config {path}"):
        config = mmengine.Config.fromfile(path)
        config.merge_from_dict(options or {})
    scope = config.get("default_scope")
    if scope not in TOOLBOXES:
        raise UserError(f"config {path} is for {scope or 'no toolbox'}: set default_scope to {' or '.join(TOOLBOXES)}")
    require("mmcv", "openmmlab")
    require(f"{scope}.utils", "openmmlab").register_all_modules(init_default_scope=True)
    return config


def without_sync_batchnorm(config: Any) -> None:
    """Replaces SyncBN, which has no CPU version, by BatchNorm throughout a config or a part of one."""
    if isinstance(config, dict):
        if config.get("type") == "SyncBN":
            config["type"] = "BN"
        for value in config.values():
            without_sync_batchnorm(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            without_sync_batchnorm(value)


@contextmanager
def config_errors(what: str) -> Iterator[None]:
    """Turns what mmengine raises for a bad config or a missing file into a `UserError` that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except _CONFIG_ERRORS as error:
        cause: BaseException = error
        while isinstance(cause.__cause__ or cause.__context__, Exception):     # the registries wrap what classes raise
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"{what}: {error}") from error


def existing_checkpoint(path: str) -> str:
    """Returns the path of a checkpoint; addresses are passed on.

    Raises:
        UserError: there is no such file.
    """
    if "://" not in path and not Path(path).is_file():
        raise UserError(f"checkpoint {path} does not exist")
    return path
