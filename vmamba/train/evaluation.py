"""Evaluates a classifier on a split: loss, top-1, top-5, calibration and the confusion matrix, by torchmetrics."""
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.task import evaluation_sample_limit
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import UserError, require

__all__ = ["MAX_CONFUSION_CLASSES", "Evaluation", "Mistake", "evaluate"]

# a confusion matrix of more classes than this can neither be read nor is worth its memory
MAX_CONFUSION_CLASSES = 2000


@dataclass
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
        topk: further accuracies, percent, by the number of classes that an image's class may be among.
    """

    loss: float
    top1: float
    top5: float
    confusion: Tensor | None
    images: int
    ece: float
    mistakes: list[Mistake]
    topk: dict[int, float] = field(default_factory=dict)

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
    topk: Sequence[int] = (),
    observe: Callable[[Tensor], None] | None = None,
) -> Evaluation:
    """Evaluates a model; under `torchrun` over all processes, each image counted once.

    Args:
        model: classifier, put into eval mode; logits [B, num_classes].
        loader: (images, labels) batches on `device`.
        num_classes: number of classes.
        device: where the model is.
        autocast: context the forward pass runs in.
        channels_last: memory format of the input.
        progress: show a bar if stderr is a terminal.
        between: called before each batch; what it raises ends the evaluation.
        flip: average the logits of each image and its mirror image.
        valid: classes of the model [num_classes] that the split's labels 0, 1, ... stand for; None: the same.
        mistakes: keep so many of the most confident wrong predictions.
        topk: numbers of classes for further accuracies.
        observe: takes the logits [B, num_classes] of each batch, those that count.

    Raises:
        UserError: torchmetrics is missing, the split is empty, or has labels the model has no class for.
    """
    meters = _Meters(num_classes, device, mistakes, topk, loader)
    left = evaluation_sample_limit(loader)
    model.eval()
    hidden = None if progress else True
    for images, labels in require("tqdm").tqdm(loader, desc="validation", unit="batch", leave=False, disable=hidden):
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
        if observe is not None:
            observe(logits)
        meters.update(logits, labels)
    return meters.compute()


class _Meters:
    """What is counted over a split; `compute` brings the counts of all processes together."""

    def __init__(self, num_classes: int, device: torch.device, mistakes: int, topk: Sequence[int], loader: Any):
        metrics = require("torchmetrics")
        self.num_classes, self.topk = num_classes, list(topk)
        counts = {1, 5, *topk}
        self.scores = metrics.MetricCollection({
            str(k): metrics.Accuracy("multiclass", num_classes=num_classes, average="micro", top_k=min(k, num_classes))
            for k in counts}, compute_groups=False).to(device)
        self.calibration = metrics.CalibrationError("multiclass", num_classes=num_classes, n_bins=15).to(device)
        self.loss = metrics.MeanMetric().to(device)
        self.count = metrics.SumMetric().to(device)
        self.count.update(0)
        self.confusion: Any = None
        if num_classes <= MAX_CONFUSION_CLASSES:
            self.confusion = metrics.ConfusionMatrix("multiclass", num_classes=num_classes).to(device)
        self.mistakes, self.worst, self.seen = mistakes, list[Mistake](), 0
        # under `torchrun` the images are dealt out in turn
        sampler = getattr(loader, "sampler", None)
        self.first, self.stride = getattr(sampler, "rank", 0), getattr(sampler, "num_replicas", 1)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: logits [B, num_classes], labels [B]; raises a `UserError` if there are no such classes."""
        if labels.max() >= self.num_classes or labels.min() < 0:
            raise UserError(f"the split has labels from {int(labels.min())} to {int(labels.max())}, "
                            f"but the model has {self.num_classes} classes")
        probabilities = logits.softmax(-1)
        self.scores.update(logits, labels)
        self.calibration.update(probabilities, labels)
        self.loss.update(cross_entropy(logits, labels, reduction="none"))
        self.count.update(len(labels))
        if self.confusion is not None:
            self.confusion.update(logits, labels)
        if self.mistakes:
            confidence, predicted = probabilities.max(-1)
            wrong = (predicted != labels).nonzero().flatten()
            columns = (values[wrong].tolist() for values in (confidence, predicted, labels))
            found = [Mistake(share, self.first + self.stride * (self.seen + number), label, guess)
                     for number, share, guess, label in zip(wrong.tolist(), *columns, strict=True)]
            self._keep_worst([*self.worst, *found])
        self.seen += len(labels)

    def _keep_worst(self, found: list[Mistake]) -> None:
        self.worst = sorted(found, key=lambda mistake: (-mistake.confidence, mistake.index))[:self.mistakes]

    def compute(self) -> Evaluation:
        """Returns the results; raises a `UserError` if no image was counted."""
        images = int(self.count.compute())
        if images == 0:
            raise UserError("the split has no images")
        if self.mistakes and self.stride > 1:
            parts: list[Any] = [None] * self.stride
            torch.distributed.all_gather_object(parts, self.worst)
            self._keep_worst([mistake for part in parts for mistake in part])
        shares = {int(k): 100 * float(share) for k, share in self.scores.compute().items()}
        return Evaluation(
            float(self.loss.compute()), shares[1], shares[5],
            None if self.confusion is None else self.confusion.compute().cpu(), images,
            100 * float(self.calibration.compute()), self.worst, {k: shares[k] for k in self.topk})
