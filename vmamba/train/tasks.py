"""What a run learns by: plain classification, a teacher's logits, or the run's own averaged weights (MESA)."""
import argparse
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import group_parameters
from timm.task import ClassificationTask, DistillationTeacher, LogitDistillationTask, TrainingTask
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import UserError
from .checkpoint import load_weights
from .model import build_classifier
from .sharding import shard_task

__all__ = ["SelfDistillationTask", "create_task", "finish_task", "freeze_stages", "place_model"]


class SelfDistillationTask(ClassificationTask):
    """Classification, and imitation of the averaged weights from some epoch on ("MESA").

    loss = task loss + weight * CE(softmax(averaged model's logits), model's logits), after Du et al. 2022,
    "Sharpness-Aware Training for Free", arXiv:2205.14083, in the form the recipes of MLLA, VSSD and others use.

    Args:
        model: the model to train.
        weight: weight of the imitation.
        **kwargs: of `ClassificationTask`.

    Attributes:
        active: whether the imitation counts; the training loop sets it.
    """

    def __init__(self, model: nn.Module, weight: float, **kwargs: Any):
        super().__init__(model, **kwargs)
        self.weight = weight
        self.active = False

    def train(self, mode: bool = True) -> "SelfDistillationTask":
        """Sets the mode of the model; the averaged one stays in evaluation mode."""
        super().train(mode)
        if self.has_ema():
            self.trainable_module_ema.eval()
        return self

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] and targets [B] or [B, num_classes] -> `loss` and logits `output` [B, num_classes]."""
        result = super().forward(input, target)
        if self.active:
            with torch.no_grad():
                teacher = self.trainable_module_ema(input).float().softmax(-1)
            result["loss"] = result["loss"] + self.weight * cross_entropy(result["output"].float(), teacher)
        return result


def create_task(
    args: argparse.Namespace, model: Any, device: torch.device, data_config: dict[str, Any], soft_targets: bool
) -> TrainingTask:
    """Moves the model to its device and wraps it with its loss and, if asked for, its average.

    Args:
        args: options of the run.
        model: the classifier.
        device: where it goes.
        data_config: preprocessing of its input.
        soft_targets: targets are distributions, smoothed already.

    Raises:
        UserError: options that contradict each other or do not fit the model.
    """
    if args.mesa and (args.kd_model or args.kd_checkpoint):
        raise UserError("--mesa and --kd-model are two teachers: give one of them")
    if args.mesa and not args.model_ema:
        raise UserError("--mesa imitates the averaged weights: it needs --model-ema")
    place_model(args, model, device)
    criterion = {"loss_type": args.loss, "smoothing": args.smoothing, "soft_targets": soft_targets}
    common: dict[str, Any] = {"criterion_kwargs": criterion, "device": device, "verbose": False}
    task: TrainingTask
    if args.mesa:
        task = SelfDistillationTask(model, args.mesa, **common)
    elif args.kd_model or args.kd_checkpoint:
        task = LogitDistillationTask(
            model, _create_teacher(args, model, device), distill_loss_weight=args.kd_weight,
            task_loss_weight=1 - args.kd_weight, temperature=args.kd_temperature, **common)
        task.student_mean, task.student_std = (_per_channel(data_config[key], device) for key in ("mean", "std"))
    else:
        task = ClassificationTask(model, **common)
    finish_task(args, task, device)
    return task


def place_model(args: argparse.Namespace, model: Any, device: torch.device) -> None:
    """Moves a model to its device, in the memory format and with the checkpointing that the options ask for.

    Raises:
        UserError: it has no gradient checkpointing.
    """
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise UserError(f"{args.model} has no gradient checkpointing") from error
    model.to(device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)


def finish_task(args: argparse.Namespace, task: TrainingTask, device: torch.device) -> None:
    """Gives a task the averaged weights, the sharding and the compilation that the options ask for."""
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
    if args.fsdp:
        shard_task(task, device)
    if args.compile:
        task.compile()


def _create_teacher(args: argparse.Namespace, student: Any, device: torch.device) -> DistillationTeacher:
    """Builds the teacher with its own weights and preprocessing."""
    weights, known = load_weights(args.kd_checkpoint) if args.kd_checkpoint else (None, None)
    name = args.kd_model or (known.architecture if known else None)
    if not name or (":" in name and not args.kd_model):
        raise UserError(f"{args.kd_checkpoint} does not say what model it is: give --kd-model")
    model = build_classifier(
        name, num_classes=known.num_classes if known else None, in_chans=student.in_chans, pretrained=weights is None,
        weights=weights, weights_from=args.kd_checkpoint or "", **(known.model_args if known else {}))
    if model.num_classes != student.num_classes:
        raise UserError(f"teacher {name} has {model.num_classes} classes, the data {student.num_classes}: "
                        "a teacher has to know the same classes")
    teacher = DistillationTeacher(model.to(device).requires_grad_(False), device=device)
    config = known.data_config if known else timm.data.resolve_model_data_config(model)
    mean, std = ([sum(values) / len(values)] if student.in_chans == 1 else values
                 for values in (config["mean"], config["std"]))
    teacher.mean_kd, teacher.std_kd = _per_channel(mean, device), _per_channel(std, device)
    return teacher


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def freeze_stages(model: Any, count: int | None) -> None:
    """Takes parameters out of training.

    Args:
        model: a timm model.
        count: freeze the stem and so many stages (blocks, in models without stages); None: all but the classifier.

    Raises:
        UserError: the model has fewer stages, or no groups of parameters.
    """
    if count is None:
        model.requires_grad_(False)
        model.get_classifier().requires_grad_(True)
        return
    if not hasattr(model, "group_matcher"):
        raise UserError(f"{type(model).__name__} does not say what its stages are: --frozen-stages cannot be used")
    groups = group_parameters(model, model.group_matcher(coarse=True), reverse=False)
    stages = max(groups) - 1 if groups else 0      # the first group is the stem, the last the classifier
    if count > stages:
        raise UserError(f"--frozen-stages {count} is too many: the model has {stages}")
    parameters = dict(model.named_parameters())
    for group in range(count + 1):
        for name in groups[group]:
            parameters[name].requires_grad_(False)
