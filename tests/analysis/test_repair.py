"""The repair loss: its parts of small examples, its gradient, and that it mends what it is to mend."""
import pytest
import timm
import torch

from vmamba.analysis import ClassTemplates, RepairTask, Tap, state_correlations
from vmamba.analysis.correlation import Correlation
from vmamba.analysis.repair import external_loss, internal_loss


def test_external_loss():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 6.0]]])
    foreground = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.5]]])
    assert float(external_loss([maps], foreground)) == pytest.approx((2 + 3) / 2)
    assert float(external_loss([maps, 3 * maps], foreground)) == pytest.approx(2 * (2 + 3) / 2)      # mean over layers
    assert float(external_loss([maps], torch.ones(2, 8, 8))) == 0


def test_internal_loss():
    internal, template = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [False, True]])
    assert float(internal_loss(internal, template)) == pytest.approx((2 + 3) / 4)


def test_templates_are_of_simple_images():
    tap = Tap("layer", "x")
    templates = ClassTemplates(3, confidence=0.8)
    logits = torch.tensor([[5.0, 0, 0], [5.0, 0, 0], [0.1, 0, 0], [0, 5.0, 0]])
    classes = torch.tensor([0, 0, 0, 2])        # simple, simple, not sure, wrong
    internal = torch.tensor([[9.0, 0, 1], [5.0, 4, 0], [0.0, 9, 9], [9.0, 9, 9]])
    templates.add(logits, classes, {tap: Correlation(torch.zeros(4, 1, 1), internal)})
    assert templates.counts.tolist() == [2, 0, 0]
    found = templates.templates()[tap]
    assert found[0].tolist() == [True, False, False]        # of the mean 7, 2, 0.5
    assert found[1:].all()                                  # no simple image: nothing is penalised


@pytest.mark.parametrize(("name", "layer", "size"), [
    ("test_vmamba", "stages.2.blocks.0.mixer", {}),
    ("test_vim", "blocks.1.mixer", {"img_size": 32}),       # whose position embedding timm would resize in float32
])
def test_gradient_is_that_of_differences(name, layer, size):
    """Through the states' gradients, for parameters before, in and after the layer."""
    model = timm.create_model(name, num_classes=5, **size).eval().double()
    images, target = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 4])
    external, internal = [Tap(layer, "c"), Tap(layer, "s")], [Tap(layer, "x")]
    with torch.no_grad():
        width = state_correlations(model, images, target, internal)[1][internal[0]].internal.shape[1]
    template = torch.rand(5, width) > 0.5
    task = RepairTask(model, external, internal, {internal[0]: template}, 1e3, 1e4, verbose=False)
    foreground = (torch.rand(2, 32, 32) > 0.5).double()
    found = task(images, target, foreground)
    assert found["loss"] > task.criterion(found["output"], target) > 0
    assert min(found["external"], found["internal"]) > 0
    gradients = torch.autograd.grad(found["loss"], list(model.parameters()))
    directions = [torch.randn_like(p) for p in model.parameters()]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    losses = []
    for step in (1e-7, -2e-7):      # to either side, so near that no ReLU changes sides
        with torch.no_grad():
            for p, d in zip(model.parameters(), directions, strict=True):
                p.add_(d, alpha=step)
        losses.append(task(images, target, foreground)["loss"].detach())
    torch.testing.assert_close(slope, (losses[0] - losses[1]) / 2e-7, rtol=1e-5, atol=1e-6)


def test_steps_by_it_mend_the_model():
    """Both losses fall, on the images that they are of, further than by plain fine-tuning."""
    images, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    foreground = torch.zeros(4, 32, 32)
    foreground[:, :16] = 1
    layer = "stages.2.blocks.1.mixer"
    external, internal = [Tap(layer, "c")], [Tap(layer, "x")]
    ends = []
    for weight in (1.0, 0.0):
        torch.manual_seed(0)
        model = timm.create_model("test_vmamba", num_classes=3).train()
        templates = {internal[0]: torch.arange(32).expand(3, -1) % 2 == 0}
        task = RepairTask(model, external, internal, templates, 1.0, 1.0, verbose=False)
        first = task(images, target, foreground)
        task.external_weight, task.internal_weight = (
            weight / float(first[name].detach()) for name in ("external", "internal"))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            task(images, target, foreground)["loss"].backward()
            optimizer.step()
        last = task(images, target, foreground)
        ends.append([float(last[name].detach() / first[name].detach()) for name in ("external", "internal")])
    (external_mended, internal_mended), (external_plain, internal_plain) = ends
    assert external_mended < min(1, external_plain)
    assert internal_mended < min(1, internal_plain)
