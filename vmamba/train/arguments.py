"""The flags of the three tools. Names and meanings are timm's, see `timm`'s train.py and validate.py."""
import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from timm.utils import ParseKwargs

from ..data import BUNDLED
from ..data.augmentation import read_transforms
from ..errors import UserError
from .config import load_config
from .run_directory import RunDirectory

__all__ = ["Parser", "add_data_arguments", "add_device_arguments", "add_model_arguments", "parse_train_arguments",
           "train_parser"]

_Bool = argparse.BooleanOptionalAction


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", False, {}) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are `UserError`s: one line, without the usage text."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError` with argparse's message."""
        raise UserError(f"{message} (see --help)")


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds what selects and reads a dataset; shared by train.py and validate.py."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data-dir", metavar="DIR", help="folder of an image folder dataset, or root of a timm dataset")
    add("--dataset", default="", metavar="NAME",
        help=f"bundled dataset ({', '.join(BUNDLED)}) or timm name with prefix (torch/, hfds/, hfids/, tfds/, wds/)")
    add("--dataset-download", action=_Bool, default=False, help="let the dataset download itself if it can")
    add("--data-cache", metavar="DIR", help="folder that keeps decoded images, on a fast disk or in /dev/shm")
    add("--class-map", default="", metavar="FILE", help="text file with one class name a line; the line is the index")
    add("--input-img-mode", metavar="MODE", help="PIL mode of the images (default: RGB, or L for one channel)")
    add("--input-key", metavar="KEY", help="dataset key (or file types) of the images")
    add("--target-key", metavar="KEY", help="dataset key of the labels")
    add("-j", "--workers", type=int, default=min(4, os.cpu_count() or 1), metavar="N",
        help="loader processes; 0 loads in the main process")
    return group


def add_model_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds what builds a model and its input; shared by the three tools."""
    group = parser.add_argument_group("model and input")
    add = group.add_argument
    add("--model", metavar="NAME", help="model name, any of timm.list_models()")
    add("--pretrained", action=_Bool, default=False, help="start from the published weights")
    add("--num-classes", type=int, metavar="N", help="classes of the model (default: what data or checkpoint say)")
    add("--gp", metavar="POOL", help="global pooling type")
    add("--in-chans", type=int, metavar="N", help="input channels")
    add("--img-size", type=int, metavar="N", help="side of the square input image, pixels")
    add("--input-size", type=int, nargs=3, metavar=("C", "H", "W"), help="input channels, height, width")
    add("--crop-pct", type=float, metavar="X", help="part of the resized image that evaluation crops, 0 to 1")
    add("--crop-mode", choices=("squash", "border", "center"), help="how evaluation crops")
    add("--mean", type=float, nargs="+", metavar="X", help="channel means of the input, range 0 to 1")
    add("--std", type=float, nargs="+", metavar="X", help="channel standard deviations of the input, range 0 to 1")
    add("--interpolation", choices=("bilinear", "bicubic", "nearest"), help="resize interpolation of evaluation")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V", help="more model arguments")
    return group


def add_device_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds device and precision; shared by the three tools."""
    group = parser.add_argument_group("device")
    add = group.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to run on")
    add("--amp", action=_Bool, default=False, help="mixed precision by torch.autocast")
    add("--amp-dtype", choices=("float16", "bfloat16"), default="float16", help="lower precision of --amp")
    return group


def train_parser() -> Parser:
    """Returns the parser of tools/train.py."""
    parser = Parser(usage="%(prog)s [options]",
                    description="Train an image classifier. With no arguments: vmamba_nano on the bundled digits.")
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file of the options below; flags override it")
    _extend_data(add_data_arguments(parser))
    _extend_model(add_model_arguments(parser))
    _add_optimisation(parser.add_argument_group("optimisation"))
    _add_schedule(parser.add_argument_group("schedule"))
    _add_augmentation(parser.add_argument_group("augmentation and regularisation"))
    _add_distillation(parser.add_argument_group("distillation"))
    _extend_device(add_device_arguments(parser))
    _add_run(parser.add_argument_group("run"))
    return parser


def _extend_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--train-split", default="train", metavar="NAME", help="training split")
    add("--val-split", default="validation", metavar="NAME", help="validation split")
    add("-b", "--batch-size", type=int, default=128, metavar="N", help="images a step and process")
    add("-vb", "--validation-batch-size", type=int, metavar="N", help="images a validation step (default: the same)")


def _extend_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--initial-checkpoint", metavar="FILE", help="weights to start from; must fit completely")
    add("--reset-head", action=_Bool, default=False, help="start with a new classifier, whatever the weights hold")
    add("--frozen-stages", type=int, metavar="N", help="do not train the stem and the first N stages")
    add("--linear-probe", action=_Bool, default=False, help="train the classifier only")
    add("--drop", type=float, metavar="P", help="dropout before the classifier")
    add("--drop-path", type=float, metavar="P", help="stochastic depth rate of the last block")
    add("--grad-checkpointing", action=_Bool, default=False, help="recompute activations: less memory, more time")
    add("--channels-last", action=_Bool, default=False, help="channels-last memory format of the input")


def _extend_device(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--compile", action=_Bool, default=False, help="compile the model with torch.compile")
    add("--fsdp", action=_Bool, default=False,
        help="split parameters, average and optimiser over the processes (FSDP2), for models that fill a device")


def _add_optimisation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--opt", default="adamw", metavar="NAME", help="optimiser, any of timm.optim.list_optimizers()")
    add("--opt-eps", type=float, metavar="X", help="optimiser epsilon")
    add("--opt-betas", type=float, nargs="+", metavar="X", help="optimiser betas")
    add("--opt-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V", help="more optimiser arguments")
    add("--momentum", type=float, default=0.9, metavar="X", help="optimiser momentum")
    add("--weight-decay", type=float, default=0.05, metavar="X", help="weight decay")
    add("--layer-decay", type=float, metavar="X", help="factor of the learning rate from each layer to the one below")
    add("--clip-grad", type=float, metavar="X", help="gradient clipping threshold")
    add("--clip-mode", choices=("norm", "value", "agc"), default="norm", help="gradient clipping mode")
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="batches a step of the optimiser")
    add("--model-ema", action=_Bool, default=False, help="track and evaluate an average of the weights")
    add("--model-ema-decay", type=float, default=0.9999, metavar="X", help="decay of the average")
    add("--model-ema-warmup", action=_Bool, default=False, help="grow the decay from 0 at the beginning")


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--epochs", type=int, default=300, metavar="N", help="epochs of the schedule")
    add("--stop-epoch", type=int, metavar="N", help="stop after this many epochs, the schedule unchanged; resumable")
    add("--lr", type=float, metavar="X", help="learning rate (default: from --lr-base and the global batch size)")
    add("--lr-base", type=float, default=1e-3, metavar="X", help="learning rate at a batch of --lr-base-size")
    add("--lr-base-size", type=int, default=1024, metavar="N", help="global batch size --lr-base is meant for")
    add("--lr-base-scale", choices=("linear", "sqrt"), default="linear", help="how the rate follows the batch size")
    add("--sched", choices=("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant"),
        default="cosine", help="learning rate schedule")
    add("--sched-on-updates", action=_Bool, default=True, help="update the rate each step instead of each epoch")
    add("--min-lr", type=float, default=0.0, metavar="X", help="lowest learning rate")
    add("--warmup-lr", type=float, default=1e-6, metavar="X", help="learning rate the warm-up begins with")
    add("--warmup-epochs", type=int, default=5, metavar="N", help="epochs of warm-up")
    add("--warmup-prefix", action=_Bool, default=False, help="warm-up comes before --epochs, not out of it")
    add("--cooldown-epochs", type=int, default=0, metavar="N", help="epochs at --min-lr at the end")
    add("--decay-epochs", type=float, metavar="N", help="step: epochs between decays; wsd: length of the decay")
    add("--decay-milestones", type=int, nargs="+", default=[90, 180, 270], metavar="N", help="multistep: epochs")
    add("--decay-rate", type=float, default=0.1, metavar="X", help="step, multistep: factor; poly: power")


def _add_augmentation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--aug", choices=("timm", "albumentations", "torchvision"), default="timm",
        help="timm: the options up to --aa; the others: --aug-config in their place")
    add("--aug-config", type=read_transforms, metavar="FILE",
        help="YAML list of transforms of albumentations or torchvision.transforms.v2; in a YAML config the list itself")
    add("--no-aug", action=_Bool, default=False, help="no augmentation of the training images")
    add("--train-crop-mode", choices=("rrc", "rkrc", "rkrr"), help="training crop")
    add("--train-interpolation", choices=("random", "bilinear", "bicubic", "nearest"), help="training resize")
    add("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="random crop area, parts of the image")
    add("--ratio", type=float, nargs=2, metavar=("LOW", "HIGH"), help="random crop aspect ratio")
    add("--hflip", type=float, default=0.5, metavar="P", help="probability of a horizontal flip")
    add("--vflip", type=float, default=0.0, metavar="P", help="probability of a vertical flip")
    add("--color-jitter", type=float, default=0.4, metavar="X", help="colour jitter")
    add("--aa", metavar="NAME", help="AutoAugment, RandAugment or AugMix policy, such as rand-m9-mstd0.5-inc1")
    add("--aug-repeats", type=int, default=0, metavar="N", help="repeated augmentation: times each image comes")
    add("--reprob", type=float, default=0.0, metavar="P", help="probability of random erasing")
    add("--remode", choices=("const", "rand", "pixel"), default="pixel", help="what random erasing fills with")
    add("--recount", type=int, default=1, metavar="N", help="erased regions an image")
    add("--mixup", type=float, default=0.0, metavar="ALPHA", help="Mixup alpha; 0 is off")
    add("--cutmix", type=float, default=0.0, metavar="ALPHA", help="CutMix alpha; 0 is off")
    add("--cutmix-minmax", type=float, nargs=2, metavar=("LOW", "HIGH"), help="CutMix size range instead of alpha")
    add("--mixup-prob", type=float, default=1.0, metavar="P", help="probability that a batch is mixed")
    add("--mixup-switch-prob", type=float, default=0.5, metavar="P", help="probability of CutMix if both are on")
    add("--mixup-mode", choices=("batch", "pair", "elem"), default="batch", help="what shares one mix")
    add("--mixup-off-epoch", type=int, default=0, metavar="N", help="no mixing from this epoch on; 0 is never")
    add("--smoothing", type=float, default=0.1, metavar="X", help="label smoothing")
    add("--loss", choices=("ce", "bce"), default="ce", help="softmax or binary cross-entropy")


def _add_distillation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--kd-model", metavar="NAME", help="teacher, any timm model, with its published weights")
    add("--kd-checkpoint", metavar="FILE", help="weights of the teacher; those of a run also say which model it is")
    add("--kd-weight", type=float, default=0.5, metavar="X", help="share of the teacher in the loss, 0 to 1")
    add("--kd-temperature", type=float, default=1.0, metavar="T", help="temperature of both softmaxes")
    add("--mesa", type=float, default=0.0, metavar="X", help="weight of imitating the averaged weights; 0 is off")
    add("--mesa-start", type=float, default=0.25, metavar="X", help="part of --epochs after which that begins")


def _add_run(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--print-config", action="store_true", help="print the resolved options as YAML and do nothing else")
    add("--output", default="runs", metavar="DIR", help="folder of the run directories")
    add("--experiment", default="", metavar="NAME", help="name of the run directory (default: time and model)")
    add("--resume", metavar="RUN", help="run directory to continue; its own options are used, flags override them")
    add("--auto-resume", action=_Bool, default=False, help="continue the run of --experiment if there is one")
    add("--overwrite", action=_Bool, default=False, help="replace the run that the run directory holds")
    add("--recovery-interval", type=int, default=0, metavar="N",
        help="save the state each N steps; 0: only after epochs and when asked to stop")
    add("--checkpoint-interval", type=int, default=0, metavar="N", help="keep the weights of each Nth epoch; 0: none")
    add("--max-skipped-steps", type=int, default=0, metavar="N",
        help="leave out and report up to N steps whose gradients are not finite; 0: stop at the first")
    add("--max-unreadable", type=int, default=0, metavar="N",
        help="replace and report up to N training images an epoch that cannot be read; 0: stop at the first")
    add("--seed", type=int, default=42, metavar="N", help="random seed")
    add("--threads", type=int, metavar="N", help="CPU threads of PyTorch in the main process (default: its own choice)")
    add("--log-interval", type=int, default=10, metavar="N", help="steps between rows of steps.csv")
    add("--tensorboard", action=_Bool, default=False, help="write events for TensorBoard as well")
    add("--wandb", metavar="PROJECT", help="log to this project of Weights & Biases as well")


def parse_train_arguments(
    argv: Sequence[str] | None, recipes: Path | None = None, parser: Parser | None = None
) -> argparse.Namespace:
    """Parses the command line of a training tool: flags over the YAML file over the defaults.

    Args:
        argv: command line without the program name; None is `sys.argv`.
        recipes: folder with one `<name>.yaml` for each bundled dataset, used when neither `--config` nor
            `--data-dir` nor another dataset is given.
        parser: `train_parser`, or one with more flags; None is the former.

    Raises:
        UserError: any bad flag, config file or run directory.
    """
    parser = parser or train_parser()
    first = parser.parse_args(argv)
    _find_run(first)
    config: str | Path | None = first.config
    if first.resume and config:
        raise UserError("--resume uses the options of its run: leave --config out")
    if first.resume and first.overwrite:
        raise UserError("--resume continues a run, --overwrite replaces it: give one of them")
    if first.resume:
        config = RunDirectory(first.resume).existing().arguments
    elif not config and not first.data_dir and (not first.dataset or first.dataset in BUNDLED) and recipes:
        config = recipes / f"{first.dataset or 'digits'}.yaml"
    if config:
        values = load_config(config, parser)
        if first.resume:
            values["stop_epoch"] = None     # the earlier stop is what is being resumed
        parser.set_defaults(**values)
    args = parser.parse_args(argv)
    args.resume = first.resume
    args.config = str(config) if config else None
    if not args.dataset and not args.data_dir:
        raise UserError("no dataset: give --data-dir FOLDER or --dataset NAME")
    _check_ranges(args)
    return args


def _find_run(first: argparse.Namespace) -> None:
    """With `--auto-resume`, turns the first command line of a run into one that continues it."""
    if not first.auto_resume:
        return
    if not first.experiment or first.resume or first.overwrite:
        raise UserError("--auto-resume needs --experiment NAME, and neither --resume nor --overwrite")
    run = RunDirectory(Path(first.output) / first.experiment)
    if run.arguments.is_file():
        first.resume, first.config = str(run.path), None


def _check_ranges(args: argparse.Namespace) -> None:
    """Refuses numbers that make no sense before anything is built or written."""
    for name in ("batch_size", "validation_batch_size", "epochs", "stop_epoch", "grad_accum_steps", "num_classes",
                 "img_size", "in_chans", "threads", "log_interval", "lr_base_size", "recount"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    for name in ("workers", "seed", "aug_repeats", "recovery_interval", "checkpoint_interval", "max_skipped_steps",
                 "max_unreadable", "frozen_stages", "mesa", "warmup_epochs", "cooldown_epochs", "lr",
                 "lr_base", "min_lr", "weight_decay"):
        value = getattr(args, name)
        if value is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative, not {value}")
    if args.fsdp and args.clip_mode == "agc":
        raise UserError("--clip-mode agc needs whole parameters: it cannot be used with --fsdp")
    if args.kd_temperature <= 0:
        raise UserError(f"--kd-temperature must be above 0, not {args.kd_temperature}")
    for name in ("drop", "drop_path", "hflip", "vflip", "reprob", "mixup_prob", "mixup_switch_prob", "smoothing",
                 "model_ema_decay", "kd_weight", "mesa_start"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} must lie between 0 and 1, not {value}")
