"""Losses of the three tasks: cross-entropy and Lovász-softmax on each output, weighed as the authors weigh them."""
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORED", "change_losses", "lovasz_softmax"]

IGNORED = 255
"""Label of pixels that do not count."""


def lovasz_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Lovász-softmax loss over the pixels of a batch, averaged over the classes that are present.

    Berman et al., "The Lovász-Softmax loss", CVPR 2018, arXiv:1705.08790, equations 9 to 12: the Lovász extension of
    the Jaccard loss of each class at the errors of its probability.

    Args:
        probabilities: [B, classes, H, W].
        labels: [B, H, W] int64, :data:`IGNORED` for pixels that do not count.

    Returns:
        Scalar; 0 where no pixel counts.
    """
    classes = probabilities.shape[1]
    counted = labels.flatten() != IGNORED
    truth = F.one_hot(labels.flatten()[counted], classes).to(probabilities.dtype)  # [P, classes]
    probability = probabilities.movedim(1, -1).flatten(0, -2)[counted]
    present = truth.sum(0) > 0
    if not bool(present.any()):
        return probabilities.sum() * 0.0
    truth, probability = truth[:, present], probability[:, present]
    errors, by_error = (truth - probability).abs().sort(dim=0, descending=True)
    hits = truth.gather(0, by_error)
    # Jaccard loss when the i pixels with the greatest errors are wrong; its steps are the weights of the errors
    total = hits.sum(0)
    jaccard = 1 - (total - hits.cumsum(0)) / (total + (1 - hits).cumsum(0))
    weights = jaccard.diff(dim=0, prepend=torch.zeros_like(jaccard[:1]))
    return (errors * weights.detach()).sum(0).mean()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels that count; 0 where none does."""
    if not bool((labels != IGNORED).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits, labels, ignore_index=IGNORED)


def _both(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return _cross_entropy(logits, labels), lovasz_softmax(logits.softmax(1), labels)


def _binary(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ce, lovasz = _both(logits["change"], labels["change"])
    return {"ce_change": ce, "lovasz_change": lovasz, "loss": ce + 0.75 * lovasz}


def _semantic(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    # class 0 says that a pixel has no label, as where nothing changed
    covers = {name: labels[name].masked_fill(labels[name] == 0, IGNORED) for name in ("first", "second")}
    for name, target in {"change": labels["change"], **covers}.items():
        parts[f"ce_{name}"], parts[f"lovasz_{name}"] = _both(logits[name], target)
    unchanged = (covers["first"] == IGNORED).unsqueeze(1)
    difference = (logits["first"].softmax(1) - logits["second"].softmax(1)) * unchanged
    parts["similarity"] = difference.square().mean()
    cover = 0.5 * (parts["ce_first"] + parts["ce_second"] + 0.5 * parts["similarity"])
    lovasz = parts["lovasz_change"] + 0.5 * (parts["lovasz_first"] + parts["lovasz_second"])
    return {**parts, "loss": parts["ce_change"] + cover + 0.75 * lovasz}


def _damage(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for name in ("building", "damage"):
        parts[f"ce_{name}"], parts[f"lovasz_{name}"] = _both(logits[name], labels[name])
    total = (
        parts["ce_building"] + parts["ce_damage"] + 0.5 * parts["lovasz_building"] + 0.75 * parts["lovasz_damage"])
    return {**parts, "loss": total}


_TASKS = {"bcd": _binary, "scd": _semantic, "bda": _damage}


def change_losses(task: str, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The loss of a task, and what it is made of.

    * bcd: ``CE + 0.75 Lovász``.
    * scd: ``CE_change + 0.5 (CE_first + CE_second + 0.5 S) + 0.75 (L_change + 0.5 (L_first + L_second))``. The
      covers' label 0 does not count. S is the mean squared difference of both dates' probabilities over all elements,
      0 where the first date has a label: what did not change should look the same.
    * bda: ``CE_building + CE_damage + 0.5 L_building + 0.75 L_damage``.

    Terms of an output of which no pixel counts are 0. (The authors leave out a batch of "bda" without any damage
    label altogether.)

    Args:
        task: "bcd", "scd" or "bda".
        logits: Outputs of the model [B, classes, H, W] by name.
        labels: [B, H, W] int64 by the same names, :data:`IGNORED` for pixels that do not count.

    Returns:
        Scalars by name; "loss" is the one to minimise.
    """
    return _TASKS[task](logits, labels)
