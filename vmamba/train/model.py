"""Builds classifiers for training, from checkpoints and from published weights, and says clearly why it cannot."""
import argparse
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..errors import UserError, near_names
from .checkpoint import FILE_ARGUMENTS, Description, load_weights

__all__ = ["build_classifier", "class_names", "data_config_for", "load_classifier", "model_arguments"]


def model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `timm.create_model` beyond name, channels and classes that the flags ask for.

    Raises:
        UserError: `--model-kwargs` has one that is about weights: there are flags for them.
    """
    refused = FILE_ARGUMENTS & (args.model_kwargs or {}).keys()
    if refused:
        raise UserError(f"--model-kwargs {min(refused)} is about weights: use --pretrained, --checkpoint or "
                        "--initial-checkpoint")
    named = {"global_pool": args.gp, "drop_rate": getattr(args, "drop", None),
             "drop_path_rate": getattr(args, "drop_path", None)}
    return {**{key: value for key, value in named.items() if value is not None}, **(args.model_kwargs or {})}


def build_classifier(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    pretrained: bool = False,
    weights: dict[str, Tensor] | None = None,
    weights_from: str = "",
    **model_args: Any,
) -> Any:
    """Builds a model by its timm name.

    Args:
        name: any of `timm.list_models()`, or `hf-hub:`/`local-dir:` sources.
        num_classes: classes of the head; None keeps the model's own.
        in_chans: input channels; None keeps the model's own.
        pretrained: load the published weights.
        weights: load these instead; any key layout that the model's `checkpoint_filter_fn` takes. They must fit
            completely, head included.
        weights_from: where `weights` come from, for the error message.
        **model_args: passed to `timm.create_model`.

    Returns:
        The model, an `nn.Module` with timm's attributes.

    Raises:
        UserError: unknown model or argument, or the weights do not fit.
    """
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise UserError(f"unknown model {name!r}{near_names(name.partition('.')[0], timm.list_models())}")
    # None would override what a hub checkpoint says
    given = {"num_classes": num_classes, "in_chans": in_chans}
    kwargs = {**{key: value for key, value in given.items() if value is not None}, **model_args}
    if weights is not None:
        kwargs["pretrained_cfg_overlay"] = _weights_overlay(name, weights, num_classes, in_chans)
    try:
        return timm.create_model(name, pretrained=pretrained or weights is not None, **kwargs)
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        what = f"weights of {weights_from} do not fit {name}" if weights is not None else f"cannot build {name}"
        raise UserError(f"{what}: {error}") from error


def _weights_overlay(
    name: str, weights: dict[str, Tensor], num_classes: int | None, in_chans: int | None
) -> dict[str, Any]:
    """Lets timm load `weights` strictly: claiming the target's own head and channels, it adapts neither."""
    overlay: dict[str, Any] = {"state_dict": weights}
    if num_classes is not None:
        overlay["num_classes"] = num_classes
    cfg = timm.get_pretrained_cfg(name) if ":" not in name else None
    if in_chans is not None and cfg is not None:
        _, height, width = cfg.input_size
        overlay["input_size"] = (in_chans, height, width)
    return overlay


def data_config_for(model: nn.Module, args: argparse.Namespace, description: Description | None = None) -> dict:
    """Resolves the input preprocessing: flags over the checkpoint's over the model's own.

    Returns:
        input_size [C, H, W], mean and std (C values each), interpolation, crop_pct, crop_mode.

    Raises:
        UserError: the model does not take images of this size.
    """
    cfg = dict(getattr(model, "pretrained_cfg", {}))
    native = tuple(cfg.get("input_size") or (3, 224, 224))
    if description is not None:
        cfg.update(description.data_config)
    built_for = (args.model_kwargs or {}).get("img_size") or (description and description.model_args.get("img_size"))
    flags = {key: getattr(args, key) for key in ("img_size", "input_size", "crop_pct", "crop_mode", "mean", "std",
                                                 "interpolation")}
    flags["in_chans"] = getattr(model, "in_chans", native[0])
    asked = flags["input_size"] or [flags["in_chans"], *to_2tuple(flags["img_size"] or 1)]
    if asked[0] != flags["in_chans"] or min(asked) < 1:
        raise UserError(f"--input-size {' '.join(map(str, asked))} does not fit a model of {flags['in_chans']} channels"
                        if asked[0] != flags["in_chans"] else f"the image size must be at least 1, not {min(asked)}")
    if built_for and not flags["img_size"] and not flags["input_size"]:
        flags["input_size"] = [flags["in_chans"], *to_2tuple(built_for)]
    try:
        config = resolve_model_data_config(model, args=flags, pretrained_cfg=cfg)
    except AssertionError as error:
        raise UserError(f"--mean and --std need one value, or one for each of the "
                        f"{flags['in_chans']} channels") from error
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    config["input_size"] = size = [flags["in_chans"], *config["input_size"][1:]]
    for key in ("mean", "std"):
        if len(config[key]) != size[0]:     # as timm does: one value for all channels of an unusual input
            config[key] = [sum(config[key]) / len(config[key])] * size[0]
    if cfg.get("fixed_input_size") and not built_for and tuple(size[1:]) != native[1:]:
        name = cfg.get("architecture", type(model).__name__)
        raise UserError(f"{name} takes images of {native[1]}x{native[2]}, not {size[1]}x{size[2]}; to build it for "
                        f"another size add --model-kwargs img_size={size[1]}")
    _check_forward(model, config)
    return config


@torch.no_grad()
def _check_forward(model: nn.Module, config: dict[str, Any]) -> None:
    """Runs one zero image through the model, so that a size it cannot take is known before anything is written."""
    parameter = next(model.parameters())
    training = model.training
    channels, height, width = config["input_size"]
    try:
        model.eval()(torch.zeros(1, channels, height, width, device=parameter.device, dtype=parameter.dtype))
    except Exception as error:  # each model has its own way to refuse a size
        name = getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__)
        raise UserError(f"{name} does not take images of {channels}x{height}x{width}: {error}") from error
    finally:
        model.train(training)


def load_classifier(args: argparse.Namespace) -> tuple[Any, Description]:
    """Builds the classifier that `--checkpoint` or `--model --pretrained` name, ready for evaluation on the CPU.

    Args:
        args: parsed flags: checkpoint, use_ema, model, pretrained, and those of `add_model_arguments`.

    Returns:
        The model and its description, completed by the model's own data configuration.

    Raises:
        UserError: no weights named, or the checkpoint does not fit the flags.
    """
    weights, known = load_weights(args.checkpoint, args.use_ema) if args.checkpoint else (None, None)
    name = args.model or (known.architecture if known else None)
    if known and ":" in known.architecture and not args.model:
        raise UserError(f"checkpoint {args.checkpoint} is of {known.architecture}, which is fetched only if you ask "
                        f"for it: give --model {known.architecture}")
    if not name:
        raise UserError(f"{args.checkpoint} does not say what model it is: give --model"
                        if args.checkpoint else "no model: give --checkpoint FILE or --model NAME --pretrained")
    if not args.checkpoint and not args.pretrained:
        raise UserError(f"{name} has no weights yet: give --checkpoint FILE or --pretrained")
    if known:
        for flag, has in (("model", known.architecture), ("num_classes", known.num_classes),
                          ("in_chans", known.in_chans)):
            wanted = getattr(args, flag)
            if wanted is not None and wanted != has:
                raise UserError(f"checkpoint {args.checkpoint} has {flag.replace('_', ' ')} {has}, "
                                f"not {wanted} as --{flag.replace('_', '-')} says")
    channels = args.input_size[0] if args.input_size else args.in_chans
    model_args = {**(known.model_args if known else {}), **model_arguments(args)}
    model = build_classifier(
        name,
        num_classes=known.num_classes if known else args.num_classes,
        in_chans=known.in_chans if known else channels,
        pretrained=args.pretrained,
        weights=weights,
        weights_from=args.checkpoint or "",
        **model_args,
    ).eval()
    config = data_config_for(model, args, known)
    if known is None:
        names = model.pretrained_cfg.get("label_names")     # of a folder or repository made by push_to_hub.py
        known = Description(
            name, model.num_classes, config["input_size"][0], model_args,
            list(names) if isinstance(names, (list, tuple)) and len(names) == model.num_classes else [])
    known.data_config = config
    return model, known


def class_names(model: nn.Module, description: Description) -> list[str]:
    """Returns the checkpoint's class names, ImageNet's for published ImageNet weights, else the indices."""
    if description.label_names:
        return description.label_names
    subset = infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        return [info.index_to_description(index) for index in range(description.num_classes)]
    return [str(index) for index in range(description.num_classes)]
