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
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vmamba.errors import UserError, tool
from vmamba.models._safe_load import load_safely
from vmamba.train.model import build_classifier
from vmamba.train.run_directory import atomic_path

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
    try:
        with atomic_path(output) as path:
            # clones: safetensors refuses tensors that share memory
            save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, path, metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {output}: {error}") from error


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
    try:
        content, named = load_safely(args.checkpoint)
    except ValueError as error:
        raise UserError(str(error)) from error
    key, state = pick_weights(content, args.key, args.checkpoint)
    if args.model is not None:
        model = build_classifier(
            args.model, num_classes=args.num_classes, weights=state, weights_from=str(args.checkpoint))
        state = model.state_dict()
    digest = hashlib.sha256()
    with args.checkpoint.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    metadata = {"format": "pt", "source": args.checkpoint.name, "source_sha256": digest.hexdigest(), "source_key": key}
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
