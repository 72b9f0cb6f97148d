"""The command behind tools/export.py: a checkpoint, or published weights, as a file that other runtimes run."""
import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError, require, tool
from ..export import ENDINGS, WRITERS, differences, ending, load_exported
from .arguments import Parser, add_model_arguments
from .checkpoint import Description
from .model import class_names, load_classifier
from .run_directory import check_writable, make_folder
from .validate import checkpoint_arguments, resolve_device

__all__ = ["main"]


def _parser() -> Parser:
    parser = Parser(usage="%(prog)s --output FILE [options]",
                    description="Write a classifier as ONNX, as an archive of torch.export, as TorchScript or as a "
                    "package of AOTInductor, and check that the file answers like the model.")
    checkpoint_arguments(parser)
    add_model_arguments(parser)
    group = parser.add_argument_group("export")
    group.add_argument("--output", metavar="FILE", required=True,
                       help="file to write; its end says the format: " + ", ".join(
                           f"{end} ({name})" for end, name in ENDINGS.items()))
    group.add_argument("--fixed-size", action=argparse.BooleanOptionalAction, default=False,
                       help="take images of the model's input size only, not of any height and width")
    group.add_argument("--device", default="cpu", help="device that an AOTInductor package is compiled for")
    return parser


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Exports as the command line says; returns 0, or 2 after one line on stderr, with nothing written."""
    args = _parser().parse_args(argv)
    path = Path(args.output)
    form = _format(path, args.device)
    require("skimage.data", extra="export")  # before minutes of work
    device = resolve_device(args.device)
    model, description = load_classifier(args)
    export_classifier(model.to(device), description, path, form, args.fixed_size)
    return 0


def _format(path: Path, device: str) -> str:
    """Returns the end of the file's name that says its format, and refuses what cannot be written."""
    form = ending(path)
    if form is None:
        raise UserError(f"output file {path} must end in {', '.join(ENDINGS)}")
    if path.is_dir():
        raise UserError(f"output file {path} is a folder")
    if device != "cpu" and form != ".aoti.pt2":
        raise UserError(f"--device is for .aoti.pt2: {ENDINGS[form]} is written on the CPU and runs on any device")
    check_writable(path.parent)
    return form


def export_classifier(
    model: nn.Module, description: Description, path: Path, form: str, fixed_size: bool
) -> list[Any]:
    """Writes a classifier to a file, with preprocessing and class names, if the file then answers like it.

    Args:
        model: in evaluation mode, on the device that it is exported for.
        description: of the model; its data_config says preprocessing and image size.
        path: the file.
        form: its format, a key of `vmamba.export.WRITERS`.
        fixed_size: take images of one size only.

    Returns:
        The differences from the model that were found, a `vmamba.export.Difference` for each batch.

    Raises:
        UserError: the model cannot be written in this format, or the file differs from it; nothing is written.
    """
    description = replace(description, label_names=class_names(model, description))
    text = json.dumps(asdict(description), ensure_ascii=False)
    make_folder(path.parent)
    found = []
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        WRITERS[form](model, description.data_config["input_size"], fixed_size, text, draft)
        exported = load_exported(draft, next(model.parameters()).device)
        for difference in differences(model, exported, description.data_config, fixed_size):
            print(f"{path}: {difference}", flush=True)
            found.append(difference)
            if not difference.passes:
                raise UserError(f"{path} is not written: it does not answer like {description.architecture}: "
                                f"{difference}")
        for part in sorted(Path(folder).iterdir()):  # weights beside the file come after it in the alphabet
            part.replace(path.parent / part.name)
    size = path.stat().st_size / 2 ** 20
    sides = "the size {1}x{2}".format(*description.data_config["input_size"]) if fixed_size else "any size"
    print(f"wrote {path} ({ENDINGS[form]}, {size:.1f} MiB): {description.architecture} for images of {sides}, "
          f"{description.num_classes} classes", flush=True)
    return found
