"""What a run learns by, checked against the formulas; what is frozen stays as it was."""

import pytest
import timm
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from vmamba.errors import UserError
from vmamba.train.arguments import train_parser
from vmamba.train.checkpoint import Description, save_weights
from vmamba.train.tasks import create_task, freeze_stages

CPU = torch.device("cpu")
CONFIG = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}


def task_of(*flags, model=None):
    args = train_parser().parse_args(["--model", "test_vmamba", *flags])
    model = model or timm.create_model("test_vmamba", num_classes=3)
    return create_task(args, model, CPU, CONFIG, soft_targets=False)


@pytest.fixture
def batch():
    return torch.randn(2, 3, 32, 32), torch.tensor([0, 2])


def test_mesa_adds_cross_entropy_with_the_averaged_model(batch):
    task = task_of("--mesa", "1.5", "--model-ema", "--smoothing", "0")
    with torch.no_grad():
        for parameter in task.trainable_module_ema.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    task.train()
    assert not task.trainable_module_ema.module.training
    images, labels = batch
    logits = task.trainable_module(images)
    plain = cross_entropy(logits, labels)
    assert torch.allclose(task(images, labels)["loss"], plain)
    task.active = True
    teacher = softmax(task.trainable_module_ema.module(images), -1)
    expected = plain - 1.5 * (teacher * log_softmax(logits, -1)).sum(-1).mean()
    assert torch.allclose(task(images, labels)["loss"], expected, rtol=1e-5)


def test_teacher_sees_the_image_in_its_own_normalisation(batch, tmp_path):
    teacher = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    config = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 32, 32]}
    save_weights(tmp_path / "t.safetensors", teacher.state_dict(),
                 Description("test_vit", 3, model_args={"img_size": 32}, data_config=config))
    task = task_of("--kd-checkpoint", str(tmp_path / "t.safetensors"), "--kd-weight", "0.7", "--kd-temperature", "2",
                   "--smoothing", "0")
    task.train()
    images, labels = batch
    logits = task.trainable_module(images)

    def column(values):
        return torch.tensor(values).view(1, 3, 1, 1)

    raw = images * column(CONFIG["std"]) + column(CONFIG["mean"])
    wanted = log_softmax(teacher((raw - column(config["mean"])) / column(config["std"])) / 2, -1)
    distance = 4 * kl_div(log_softmax(logits / 2, -1), wanted, reduction="batchmean", log_target=True)
    expected = 0.3 * cross_entropy(logits, labels) + 0.7 * distance
    assert torch.allclose(task(images, labels)["loss"], expected, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in task.teacher.parameters())
    assert not any("teacher" in key for key in task.get_checkpoint_state()["state_dict"])


@pytest.mark.parametrize(("flags", "message"), [
    (["--mesa", "1"], "needs --model-ema"),
    (["--mesa", "1", "--model-ema", "--kd-model", "test_vit"], "two teachers"),
    (["--kd-checkpoint", "/nonexistent"], "does not exist"),
])
def test_contradictions(flags, message):
    with pytest.raises(UserError, match=message):
        task_of(*flags)


def test_teacher_of_other_classes(tmp_path):
    teacher = timm.create_model("test_vmamba", num_classes=5)
    save_weights(tmp_path / "t.safetensors", teacher.state_dict(), Description("test_vmamba", 5, data_config=CONFIG))
    with pytest.raises(UserError, match="teacher test_vmamba has 5 classes, the data 3"):
        task_of("--kd-checkpoint", str(tmp_path / "t.safetensors"))


@pytest.mark.parametrize("name", ["test_vmamba", "test_vim", "resnet18"])
def test_frozen_stages(name):
    model = timm.create_model(name, num_classes=3)
    freeze_stages(model, 1)
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=True))
    assert frozen == {*groups[0], *groups[1]}
    assert {key for key, _ in model.get_classifier().named_parameters()}
    with pytest.raises(UserError, match=r"--frozen-stages 9 is too many: the model has \d"):
        freeze_stages(model, 9)


def test_linear_probe_trains_the_classifier_only():
    model = timm.create_model("test_vmamba", num_classes=3)
    freeze_stages(model, None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in model.get_classifier().parameters()}


def test_compile_leaves_names_alone():
    task = task_of("--compile", "--model-ema")
    assert task.get_checkpoint_state()["state_dict"].keys() == timm.create_model("test_vmamba").state_dict().keys()
