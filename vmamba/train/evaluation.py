"""Evaluates a classifier on a split: loss, top-1, top-5, calibration and the confusion matrix, by torchmetrics."""
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from timm.task import evaluation_sample_limit
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import UserError, require

__all__ = ["MAX_CONFUSION_CLASSES", "Evaluation", "Mistake", "evaluate"]

# a confusion matrix of more classes than this can neither be read nor is worth its memory
MAX_CONFUSION_CLASSES = 2000


@dataclass(order=True)
class Mistake:
    """A wrong prediction.

    Attributes:
        confidence: probability of the predicted class, 0 to 1.
        index: number of the image in the split.
        label: true class.
        predicted: predicted class.
    """

    confidence: float
    index: int
    label: int
    predicted: int


@dataclass
class Evaluation:
    """Results on one split.

    Attributes:
        loss: mean cross-entropy, nats.
        top1: share of images whose most probable class is right, percent.
        top5: share of images whose class is among the five most probable, percent.
        confusion: images by (true class, predicted class), [C, C] int64; None above `MAX_CONFUSION_CLASSES`.
        images: number of images.
        ece: expected calibration error over 15 bins of equal width, percent (Guo et al. 2017, arXiv:1706.04599).
        mistakes: the most confident wrong predictions, as many as were asked for.
    """

    loss: float
    top1: float
    top5: float
    confusion: Tensor | None
    images: int
    ece: float
    mistakes: list[Mistake]

    @property
    def score(self) -> float:
        """What tells the best epoch: more is better."""
        return self.top1

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Returns the scalar results by name."""
        return {f"{prefix}loss": self.loss, f"{prefix}top1": self.top1, f"{prefix}top5": self.top5,
                f"{prefix}ece": self.ece}

    def __str__(self) -> str:
        return f"val loss {self.loss:.4f}  top1 {self.top1:6.2f} %  top5 {self.top5:6.2f} %"


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Any,
    num_classes: int,
    device: torch.device,
    autocast: AbstractContextManager,
    channels_last: bool = False,
    progress: bool = False,
    between: Callable[[], None] = lambda: None,
    flip: bool = False,
    valid: Tensor | None = None,
    mistakes: int = 0,
) -> Evaluation:
    """Runs `model` over `loader`. Under `torchrun` every image of the split counts exactly once.

    Args:
        model: maps [B, C, H, W] to logits [B, num_classes].
        loader: yields (images, class indices).
        num_classes: number of classes.
        device: where the model is.
        autocast: context the forward pass runs in.
        channels_last: memory format of the input.
        progress: show a bar if stderr is a terminal.
        between: called before each batch; what it raises ends the evaluation.
        flip: average the logits of each image and its mirror image.
        valid: classes of the model [num_classes] that the split's labels 0, 1, ... stand for; None: the same.
        mistakes: keep so many of the most confident wrong predictions; for a single process.

    Raises:
        UserError: torchmetrics is missing, the split is empty, or has labels the model has no class for.
    """
    metrics = require("torchmetrics")
    scores = metrics.MetricCollection({
        "top1": metrics.Accuracy("multiclass", num_classes=num_classes, average="micro"),
        "top5": metrics.Accuracy("multiclass", num_classes=num_classes, average="micro", top_k=min(5, num_classes)),
    }, compute_groups=False).to(device)
    calibration = metrics.CalibrationError("multiclass", num_classes=num_classes, n_bins=15).to(device)
    loss = metrics.MeanMetric().to(device)
    count = metrics.SumMetric().to(device)
    count.update(0)
    confusion = None
    if num_classes <= MAX_CONFUSION_CLASSES:
        confusion = metrics.ConfusionMatrix("multiclass", num_classes=num_classes).to(device)
    left = evaluation_sample_limit(loader)
    worst: list[Mistake] = []
    seen = 0
    model.eval()
    bar = require("tqdm").tqdm(loader, desc="validation", unit="batch", leave=False, disable=None if progress else True)
    for images, labels in bar:
        between()
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast:
            logits = model(images)
            if flip:
                logits = (logits + model(images.flip(-1))) / 2
        if valid is not None:
            logits = logits[:, valid]
        # the sampler pads each process's share by repeating images at its end: they have run, but do not count
        logits, labels = logits.float()[:left], labels[:left]
        left = None if left is None else left - len(labels)
        if len(labels) == 0:
            continue
        if labels.max() >= num_classes or labels.min() < 0:
            raise UserError(f"the split has labels from {int(labels.min())} to {int(labels.max())}, "
                            f"but the model has {num_classes} classes")
        probabilities = logits.softmax(-1)
        scores.update(logits, labels)
        calibration.update(probabilities, labels)
        loss.update(cross_entropy(logits, labels, reduction="none"))
        count.update(len(labels))
        if confusion is not None:
            confusion.update(logits, labels)
        if mistakes:
            worst = sorted([*worst, *_mistakes(probabilities, labels, seen)], reverse=True)[:mistakes]
            seen += len(labels)
    images_seen = int(count.compute())
    if images_seen == 0:
        raise UserError("the split has no images")
    result = scores.compute()
    return Evaluation(
        float(loss.compute()), 100 * float(result["top1"]), 100 * float(result["top5"]),
        None if confusion is None else confusion.compute().cpu(), images_seen, 100 * float(calibration.compute()),
        worst,
    )


def _mistakes(probabilities: Tensor, labels: Tensor, first: int) -> list[Mistake]:
    """Returns the wrong predictions of a batch, probabilities [B, C], whose images are numbered from `first` on."""
    confidence, predicted = probabilities.max(-1)
    wrong = (predicted != labels).nonzero().flatten()
    columns = (values[wrong].tolist() for values in (confidence, predicted, labels))
    return [Mistake(share, first + number, label, guess)
            for number, share, guess, label in zip(wrong.tolist(), *columns, strict=True)]
