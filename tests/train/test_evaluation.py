"""evaluate: checked against counts made by hand."""

from contextlib import nullcontext

import pytest
import torch

from vmamba.errors import UserError
from vmamba.train.evaluation import evaluate

CPU = torch.device("cpu")


class Table(torch.nn.Module):
    """Logits that are the input itself."""

    def forward(self, x):
        return x.flatten(1)


def run(logits, labels, classes=7, batch=4):
    loader = [(x[:, :, None, None], y) for x, y in zip(logits.split(batch), labels.split(batch), strict=True)]
    return evaluate(Table(), loader, classes, CPU, nullcontext())


def test_against_counts():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(19, 7, generator=generator), torch.randint(7, (19,), generator=generator)
    result = run(logits, labels)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert result.images == 19
    assert result.top1 == pytest.approx(100 * (ranks < 1).float().mean().item())
    assert result.top5 == pytest.approx(100 * (ranks < 5).float().mean().item())
    # the mean over images, not over batches of different size
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    expected = torch.zeros(7, 7, dtype=torch.int64)
    for label, predicted in zip(labels, logits.argmax(1), strict=True):
        expected[label, predicted] += 1
    assert torch.equal(result.confusion, expected)


def test_calibration_error_against_bins():
    generator = torch.Generator().manual_seed(2)
    logits, labels = 3 * torch.randn(40, 7, generator=generator), torch.randint(7, (40,), generator=generator)
    confidence, predicted = logits.softmax(1).max(1)
    bins = (confidence * 15).ceil().clamp(min=1)
    gaps = [(confidence[bins == b].mean() - (predicted == labels)[bins == b].float().mean()).abs() * (bins == b).sum()
            for b in bins.unique()]
    assert run(logits, labels).ece == pytest.approx(100 * sum(gaps).item() / 40, rel=1e-4)


def test_mistakes_are_the_most_confident_first():
    logits, labels = torch.eye(4) * torch.tensor([[1.0], [5.0], [3.0], [9.0]]), torch.tensor([0, 2, 0, 1])
    loader = [(x[:, :, None, None], y) for x, y in zip(logits.split(3), labels.split(3), strict=True)]
    found = evaluate(Table(), loader, 4, CPU, nullcontext(), mistakes=2).mistakes
    assert [(m.index, m.label, m.predicted) for m in found] == [(3, 1, 3), (1, 2, 1)]
    assert found[0].confidence == pytest.approx(logits.softmax(1).max().item())


class Corner(torch.nn.Module):
    """Logits that tell the left of an image from its right."""

    def forward(self, x):
        return x[:, 0, 0, :]


def test_flip_averages_the_logits_of_the_mirror_image():
    images = torch.tensor([[3.0, 0.0, 1.0], [0.0, 1.0, 5.0]])[:, None, None, :]
    labels = torch.tensor([2, 0])
    result = evaluate(Corner(), [(images, labels)], 3, CPU, nullcontext(), flip=True)
    mean = (images + images.flip(-1))[:, 0, 0] / 2
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(mean, labels).item(), rel=1e-5)


def test_fewer_than_five_classes():
    result = run(torch.eye(3), torch.tensor([0, 1, 0]), classes=3)
    assert (result.top1, result.top5) == (pytest.approx(200 / 3), 100)


def test_label_beyond_the_classes():
    with pytest.raises(UserError, match="labels from 0 to 9, but the model has 7 classes"):
        run(torch.zeros(2, 7), torch.tensor([0, 9]))


def test_no_images():
    with pytest.raises(UserError, match="no images"):
        evaluate(Table(), [], 3, CPU, nullcontext())


def test_padding_of_a_distributed_sampler_does_not_count():
    class Loader(list):
        class sampler:
            num_valid_samples = 3

    logits = torch.eye(4)[:, :, None, None]
    result = evaluate(Table(), Loader([(logits, torch.tensor([0, 1, 0, 0]))]), 4, CPU, nullcontext())
    assert (result.images, result.top1) == (3, pytest.approx(200 / 3))
