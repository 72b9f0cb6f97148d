#!/usr/bin/env python3
"""Convert a .pth checkpoint to safetensors without running any code that the file names.

Released .pth files are pickles of a dictionary that holds, beside the weights, the optimizer and a configuration object
of another library. The file is read with `torch.load(weights_only=True)`. The few foreign names that such files are
known to contain are replaced by stand-ins that do nothing, and are listed; a file with any other name is refused.

Examples:
    python tools/convert_checkpoint.py vssm1_tiny_0230s_ckpt_epoch_264.pth
    python tools/convert_checkpoint.py vssm1_tiny_0230s_ckpt_epoch_264.pth --model vmamba_tiny_s1l8

With --model the weights are brought to that model's own names and must fit it exactly; without, the file's names stay,
and `timm.create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file=...))` takes either.
"""

import argparse
import contextlib
import hashlib
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from vmamba.errors import UserError, tool
from vmamba.train.model import build_classifier


class _Mapping:
    """Stands for a dict subclass: unpickles to a plain OrderedDict, which torch fills with the pickled items."""

    def __new__(cls, *args: object) -> OrderedDict:
        return OrderedDict()


class _Ignored:
    """Stands for anything else: takes whatever it is built from and keeps none of it."""

    def __new__(cls, *args: object) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# the global a checkpoint may name -> what it unpickles to
STAND_INS: dict[str, type] = {
    "yacs.config.CfgNode": _Mapping,
    "argparse.Namespace": _Ignored,
    "pathlib.PosixPath": _Ignored,
    "pathlib.WindowsPath": _Ignored,
    "numpy.dtype": _Ignored,
    "numpy.ndarray": _Ignored,
    "numpy.core.multiarray.scalar": _Ignored,
    "numpy._core.multiarray.scalar": _Ignored,
    "numpy.core.multiarray._reconstruct": _Ignored,
    "numpy._core.multiarray._reconstruct": _Ignored,
}
# where the weights are, in this order: published files keep the weights of their published score under `model`
WEIGHT_KEYS = ("model", "model_ema", "state_dict")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="PTH", help="file written by torch.save")
    parser.add_argument("--output", type=Path, help="file to write (default: PTH with the suffix .safetensors)")
    parser.add_argument("--key", choices=("auto", *WEIGHT_KEYS), default="auto",
                        help="which weights to take (default auto: the first of model, model_ema, state_dict that is "
                             "there, or the file itself)")
    parser.add_argument("--model", help="timm model name: rename the weights for this model and check that they fit")
    parser.add_argument("--num-classes", type=int, metavar="N", help="classes of the checkpoint (default: the model's)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    args = parser.parse_args(argv)
    if args.num_classes is not None and args.model is None:
        parser.error("--num-classes needs --model")
    args.output = args.output or args.checkpoint.with_suffix(".safetensors")
    return args


def one_line(error: Exception) -> str:
    """The first sentence of an exception's message, for torch's run over several lines."""
    return re.split(r"\n|\. ", str(error).strip(), maxsplit=1)[0] or type(error).__name__


def load_safely(path: Path) -> tuple[object, list[str]]:
    """Read a torch.save file with tensors as they are and foreign objects as inert stand-ins.

    Args:
        path: The file.

    Returns:
        The file's content, and the foreign names that stand-ins replaced.

    Raises:
        UserError: the file cannot be read, or names something that is not in `STAND_INS`.
    """
    try:
        # files older than torch 1.6 are no zip archives and cannot be listed: there torch itself names what it refuses
        named = sorted(get_unsafe_globals_in_checkpoint(path)) if zipfile.is_zipfile(path) else []
        refused = [name for name in named if name not in STAND_INS]
        if refused:
            raise UserError(f"{path} is refused, nothing of it was run: it names {', '.join(refused)}")
        with safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()]):
            return torch.load(path, map_location="cpu", weights_only=True), named
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or one_line(error)}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {found.group(1)}" if found else f"it is no checkpoint of tensors ({one_line(error)})"
        raise UserError(f"{path} is refused, nothing of it was run: {reason}") from error
    except (RuntimeError, ValueError, EOFError, AssertionError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or no file of torch.save: {one_line(error)}") from error


def pick_weights(content: object, key: str, path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Find the state dict in a checkpoint.

    Args:
        content: What the file holds.
        key: One of `WEIGHT_KEYS`, or "auto".
        path: The file, for messages.

    Returns:
        The key it was found under ("" for the file itself), and the state dict.

    Raises:
        UserError: there is no state dict of tensors there.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary")
    candidates = WEIGHT_KEYS if key == "auto" else (key,)
    found = next((k for k in candidates if isinstance(content.get(k), Mapping)), "")
    if not found and key != "auto":
        raise UserError(f"{path} has no weights under '{key}'; its keys are {', '.join(map(str, content))}")
    state = content[found] if found else content
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        where = f"'{found}' of {path}" if found else f"{path}"
        reason = f"no tensors under {', '.join(others)}" if others else "it is empty"
        raise UserError(f"{where} is no state dict: {reason}")
    return found, dict(state)


def write(state: dict[str, torch.Tensor], metadata: dict[str, str], output: Path) -> None:
    """Write a safetensors file; an interrupted run leaves no half-written one."""
    partial = output.with_name(output.name + ".part")
    try:
        # clones: safetensors refuses tensors that share memory
        save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, partial, metadata)
        os.replace(partial, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {output}: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.model is not None:
        build_classifier(args.model, device="meta")  # a wrong name is known before a large file is read
    if not args.checkpoint.is_file():
        raise UserError(f"there is no file {args.checkpoint}")
    if args.output.resolve() == args.checkpoint.resolve():
        raise UserError(f"the output would replace the checkpoint {args.checkpoint}; give another --output")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists; give --overwrite to replace it")
    content, named = load_safely(args.checkpoint)
    key, state = pick_weights(content, args.key, args.checkpoint)
    if args.model is not None:
        model = build_classifier(
            args.model, num_classes=args.num_classes, weights=state, weights_from=str(args.checkpoint))
        state = model.state_dict()
    with args.checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = {"format": "pt", "source": args.checkpoint.name, "source_sha256": digest, "source_key": key}
    if args.model is not None:
        metadata["architecture"] = args.model
    write(state, metadata, args.output)
    for name in named:
        print(f"{name}: replaced by an empty stand-in, its content is not kept")
    print(f"{args.output}: {len(state)} tensors, {sum(v.numel() for v in state.values()):,} values, "
          f"from {'key ' + repr(key) if key else 'the file itself'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
