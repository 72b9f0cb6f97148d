"""The command behind tools/pretrain.py: trains an encoder without labels, in the run of tools/train.py."""
import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import vmamba.models  # noqa: F401  (registers the models)
from vmamba.data import create_dataset
from vmamba.data.order import seed_all
from vmamba.errors import UserError, tool
from vmamba.train.arguments import Parser, parse_train_arguments, train_parser
from vmamba.train.build import Run, assemble_run, create_model, dataset_options
from vmamba.train.checkpoint import Description
from vmamba.train.fit import Kind, train
from vmamba.train.loop import EpochTrainer, Progress
from vmamba.train.model import data_config_for, model_arguments
from vmamba.train.reports import next_commands
from vmamba.train.run_directory import RunDirectory
from vmamba.train.tasks import finish_task, place_model

from .evaluation import Reconstruction, draw_sheet, evaluate_reconstruction
from .model import MASK_TOKENS, MaskedImageModel
from .task import MaskedImageTask

__all__ = ["PretrainingDirectory", "main", "pretrain_parser"]

# options of tools/train.py that are about labels, classifiers or teachers, and what stands for "not asked for"
_OF_CLASSIFIERS = {
    "num_classes": None, "reset_head": False, "frozen_stages": None, "linear_probe": False, "layer_decay": None,
    "mixup": 0.0, "cutmix": 0.0, "cutmix_minmax": None, "kd_model": None, "kd_checkpoint": None, "mesa": 0.0}
_WITHOUT_EFFECT = ("mixup_prob", "mixup_switch_prob", "mixup_mode", "mixup_off_epoch", "smoothing", "loss", "kd_weight",
                   "kd_temperature", "mesa_start", "gp", "drop", "target_key", "class_map")


class PretrainingDirectory(RunDirectory):
    """The run directory of a pre-training: without tables of classes, and with a sheet of reconstructions."""

    tool = "tools/pretrain.py"

    def __init__(self, path: str | Path):
        super().__init__(path)
        self.reconstructions = self.path / "reconstructions.png"    # of the last epoch

    @property
    def files(self) -> list[Path]:
        """All files a run may hold."""
        return [*super().files, self.reconstructions]


def pretrain_parser() -> Parser:
    """Returns the parser of tools/pretrain.py: that of tools/train.py, and what masks and reconstructs."""
    parser = train_parser()
    parser.description = "Pre-train a backbone without labels: it learns to tell what is under masked patches."
    for action in parser._actions:      # configs of classifiers may be the base of ours: read, but not shown
        if action.dest in (*_OF_CLASSIFIERS, *_WITHOUT_EFFECT):
            action.help = argparse.SUPPRESS
    add = parser.add_argument_group("masked image modelling").add_argument
    add("--mask-ratio", type=float, default=0.75, metavar="X", help="part of the patches that is masked, 0 to 1")
    add("--mask-size", type=int, metavar="N",
        help="side of these patches, pixels (default: the stride of the model's coarsest map)")
    add("--mask-token", choices=MASK_TOKENS, default="toki",
        help="what stands for masked tokens: interpolated from visible ones, or one learned vector")
    add("--decoder-dim", type=int, default=128, metavar="N", help="width of the decoder")
    add("--decoder-depth", type=int, default=1, metavar="N", help="blocks of the decoder with a scan")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Refuses options that mean nothing here, and numbers that make no sense."""
    for name, unset in _OF_CLASSIFIERS.items():
        if getattr(args, name) != unset:
            raise UserError(f"--{name.replace('_', '-')} is for classifiers: it has no meaning in pre-training")
    if not 0 < args.mask_ratio < 1:
        raise UserError(f"--mask-ratio must lie between 0 and 1, not {args.mask_ratio}")
    for name in ("mask_size", "decoder_dim", "decoder_depth"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


@tool
def main(argv: Sequence[str] | None = None, recipes: Path | None = None) -> int:
    """Pre-trains as the command line says; arguments and exit codes as of :func:`vmamba.train.fit.main`."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_train_arguments(argv, recipes, pretrain_parser())
    _check(args)
    return train(args, argv, Kind(PretrainingDirectory, build_run, _evaluate, _write_epoch, _report))


def build_run(args: argparse.Namespace, directory: RunDirectory, device: torch.device) -> Run:
    """Builds data sets, encoder, decoder, loaders and optimisation.

    Args:
        args: options of `pretrain_parser`, with `world_size`, `rank`, `device` and `distributed` set.
        directory: where the run will leave its files.
        device: where the model goes.

    Raises:
        UserError: any option, dataset or weight file that does not fit.
    """
    if not args.model:
        raise UserError("no model: give --model NAME")
    seed_all(args.seed)
    datasets = _create_datasets(args)
    encoder = create_model(args, None, args.input_size[0] if args.input_size else args.in_chans)
    encoder.reset_classifier(0)
    data_config = data_config_for(encoder, args)
    model = _create_masked(args, encoder, data_config["input_size"])
    kept = {key: value for key, value in model_arguments(args).items() if key not in ("drop_rate", "drop_path_rate")}
    description = Description(args.model, 0, data_config["input_size"][0], kept, [], data_config, args.dataset)

    def create() -> MaskedImageTask:
        place_model(args, encoder, device)
        task = MaskedImageTask(model.to(device), args.mask_ratio, device=device, verbose=False)
        finish_task(args, task, device)
        return task

    run = assemble_run(args, directory, device, description, datasets, create)
    run.progress = Progress(best=float("-inf"))
    return run


def _create_datasets(args: argparse.Namespace) -> tuple[Any, Any]:
    """Opens both splits of images, whatever folders they lie in."""
    train_set, eval_set = (
        create_dataset(args.dataset, args.data_dir, split, is_training=training, labelled=False,
                       **dataset_options(args))
        for split, training in ((args.train_split, True), (args.val_split, False)))
    train_root, eval_root = (Path(getattr(getattr(dataset, "reader", None), "root", None) or ".")
                             for dataset in (train_set, eval_set))
    # timm takes the whole folder for a split it does not find
    if not args.dataset and args.rank == 0 and train_root.is_relative_to(eval_root):
        print(f"warning: {args.data_dir} has no folder {args.val_split}/: the validation loss is of training images",
              file=sys.stderr)
    return train_set, eval_set


def _create_masked(args: argparse.Namespace, encoder: Any, input_size: Sequence[int]) -> MaskedImageModel:
    """Puts the decoder to an encoder and tries them on one image.

    Raises:
        UserError: the model cannot be masked, or not in such patches, or not at this image size.
    """
    try:
        model = MaskedImageModel(encoder, args.mask_size, args.mask_token, args.decoder_dim, args.decoder_depth).eval()
        with torch.no_grad():
            MaskedImageTask(model, args.mask_ratio, verbose=False)(torch.zeros(1, *input_size))
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot pre-train {args.model}: {error}") from error
    return model


def _evaluate(run: Run, ema: bool, trainer: EpochTrainer, between: Callable[[], None]) -> Reconstruction:
    args, task = run.args, run.task
    assert isinstance(task, MaskedImageTask)
    return evaluate_reconstruction(
        task.masked_image_model(ema), run.eval_loader, args.mask_ratio, torch.device(args.device), trainer.autocast,
        args.seed, args.channels_last, progress=args.rank == 0, between=between)


def _write_epoch(run: Run, result: Reconstruction, improved: bool) -> None:
    config, directory = run.description.data_config, run.directory
    assert isinstance(directory, PretrainingDirectory)
    draw_sheet(directory.reconstructions, result.sheet, config["mean"], config["std"])


def _report(run: Run, seconds: float) -> None:
    """Says what the run made and what can be done with it."""
    args, directory, done = run.args, run.directory, run.progress.epoch
    if done == 0:
        raise UserError("no epoch was trained: --epochs or --stop-epoch is 0")
    encoder = directory.last_ema if args.model_ema else directory.last
    print(f"{'finished' if done >= run.epochs else 'stopped'} after epoch {done} of {run.epochs}, {seconds:.0f} s; "
          f"lowest validation loss {-run.progress.best:.4f}")
    print(f"files in {directory.path}: {', '.join(file.name for file in directory.files if file.exists())}")
    print(f"fine-tune: python tools/train.py --model {args.model} --initial-checkpoint {encoder} ...")
    print(f"resume:    {next_commands(directory, args, done >= run.epochs)[-1][1]}")
