"""The backbone on its own: maps, options, registries and the errors a user can make."""
import copy

import mmdet.registry
import mmengine.registry
import mmseg.registry
import pytest
import timm
import torch
from mmengine.runner import autocast
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import vmamba.openmmlab as adapter
from vmamba.errors import UserError
from vmamba.openmmlab import SimpleFeaturePyramid, TimmFeatureBackbone

SIZE = (97, 131)
OTHER_KINDS = {"Albumentations": "TRANSFORMS", "TimmLayerDecayConstructor": "OPTIM_WRAPPER_CONSTRUCTORS"}
HIERARCHICAL = {
    "test_vmamba": {},
    "resnet18": {"out_norm": False},
    "test_convnext": {},
    "test_efficientnet": {"out_norm": False},
}


@pytest.mark.parametrize("name", adapter.__all__)
def test_registered_for_every_toolbox(name):
    kind = OTHER_KINDS.get(name, "MODELS")
    for registry in (mmengine.registry, mmdet.registry, mmseg.registry):
        assert getattr(registry, kind).get(name) is getattr(adapter, name)


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_maps(name):
    backbone = TimmFeatureBackbone(name, **HIERARCHICAL[name]).eval()
    x = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        maps = backbone(x)
    assert backbone.out_strides == (4, 8, 16, 32)
    for y, channels, stride in zip(maps, backbone.out_channels, backbone.out_strides, strict=True):
        assert y.is_contiguous()
        assert y.shape[:2] == (2, channels)
        for size, whole in zip(y.shape[2:], SIZE, strict=True):
            assert size in (whole // stride, -(-whole // stride))


@pytest.mark.parametrize("out_norm", [False, True])
def test_maps_are_those_of_the_model_normalised(out_norm):
    backbone = TimmFeatureBackbone("test_vmamba", out_indices=(1, -1), out_norm=out_norm).eval()
    assert backbone.out_indices == (1, 3)
    model = timm.create_model("test_vmamba").eval()
    model.load_state_dict(backbone.model.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        maps = backbone(x)
        expected = model.forward_intermediates(x, indices=[1, 3], intermediates_only=True)
    for y, plain in zip(maps, expected, strict=True):
        wanted = nn.functional.layer_norm(plain.permute(0, 2, 3, 1), plain.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(y, wanted if out_norm else plain)


def test_nothing_is_kept_that_no_map_needs():
    """Distributed training stops at parameters without gradients."""
    backbone = TimmFeatureBackbone("test_vmamba", out_indices=(0, 2))
    sum(y.sum() for y in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    assert not any(n.startswith("model.stages.3") for n, _ in backbone.named_parameters())


def test_plain_model_and_pyramid():
    """Also where width and height are no multiple of the patch, as in detection."""
    args = {"dynamic_img_size": True, "dynamic_img_pad": True}
    backbone = TimmFeatureBackbone("test_vit", plain=True, model_args=args).eval()
    x = torch.randn(1, 3, 96, 120)
    maps = backbone(x)
    assert [tuple(y.shape[2:]) for y in maps] == [(6, 8)]
    pyramid = SimpleFeaturePyramid(backbone.out_channels[0], out_channels=32, num_outs=5)
    outs = pyramid(maps)
    assert [tuple(y.shape) for y in outs] == [(1, 32, h, w) for h, w in ((24, 32), (12, 16), (6, 8), (3, 4), (2, 2))]
    assert all(y.is_contiguous() for y in outs)
    several = TimmFeatureBackbone("test_vit", out_indices=(0, 1, 2, 3), plain=True, model_args=args).eval()
    outs = SimpleFeaturePyramid(several.out_channels[0], out_channels=16)(several(x))
    assert [tuple(y.shape) for y in outs] == [(1, 16, h, w) for h, w in ((24, 32), (12, 16), (6, 8), (3, 4))]
    with pytest.raises(ValueError, match="got 2 maps, but needs 1 or 4"):
        pyramid(maps * 2)
    with pytest.raises(ValueError, match="num_outs is 3"):
        SimpleFeaturePyramid(16, num_outs=3)


@pytest.mark.parametrize(("frozen_stages", "frozen"), [
    (-1, ()), (0, ("stem.",)), (2, ("stem.", "stages.0.", "stages.1.")),
    (4, ("stem.", "stages.0.", "stages.1.", "stages.2.", "stages.3."))])
def test_frozen_stages(frozen_stages, frozen):
    backbone = TimmFeatureBackbone("test_vmamba", frozen_stages=frozen_stages, drop_path_rate=0.5)
    backbone.train()
    for name, parameter in backbone.model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen or ("nothing",)), name
    for i, stage in enumerate(backbone.model.stages):
        assert stage.training == (frozen_stages < i + 1)
        assert all(m.training == stage.training for m in stage.modules())  # stochastic depth too
    assert all(p.requires_grad for n, p in backbone.named_parameters() if n.startswith("outnorm"))


@pytest.mark.parametrize("norm_eval", [False, True])
def test_norm_eval(norm_eval):
    backbone = TimmFeatureBackbone("resnet18", out_norm=False, norm_eval=norm_eval, frozen_stages=1)
    backbone.train()
    norms = {n: m for n, m in backbone.model.named_modules() if isinstance(m, _BatchNorm)}
    assert len(norms) == 20
    for name, module in norms.items():
        assert module.training == (not norm_eval and not name.startswith(("bn1", "layer1."))), name
    assert backbone.model.layer4[0].conv1.training


@pytest.mark.parametrize("options", [{"with_cp": True}, {"channels_last": True}], ids=lambda o: next(iter(o)))
@pytest.mark.parametrize("name", ["test_vmamba", "test_convnext"])
def test_options_that_change_no_number(name, options):
    plain = TimmFeatureBackbone(name)
    other = TimmFeatureBackbone(name, **options)
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 96)
    results = []
    for backbone in (plain, other):
        maps = backbone(x)
        assert all(y.is_contiguous() for y in maps)
        sum((y ** 2).mean() for y in maps).backward()
        results.append((maps, [p.grad for p in backbone.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_activation_checkpointing_is_on():
    backbone = TimmFeatureBackbone("test_vmamba", with_cp=True)
    assert all(stage.grad_checkpointing for stage in backbone.model.stages)


def test_drop_path_rate():
    def rates(backbone):
        return [m.drop_prob for m in backbone.modules() if isinstance(m, timm.layers.DropPath)]

    assert rates(TimmFeatureBackbone("test_vmamba")) == []
    assert max(rates(TimmFeatureBackbone("test_vmamba", drop_path_rate=0.3))) == pytest.approx(0.3)


def test_mixed_precision():
    backbone = TimmFeatureBackbone("test_vmamba")
    x = torch.randn(1, 3, 64, 64)
    with autocast(device_type="cpu", dtype=torch.bfloat16):
        maps = backbone(x)
    sum(y.float().sum() for y in maps).backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())
    for y, full in zip(maps, backbone(x), strict=True):
        torch.testing.assert_close(y.float(), full, rtol=0.1, atol=0.1)  # 8 bits, over normalised maps


def test_copies():
    """Exponential moving averages copy the model with its hooks."""
    backbone = TimmFeatureBackbone("test_vmamba").eval()
    other = copy.deepcopy(backbone)
    backbone.load_state_dict(TimmFeatureBackbone("test_vmamba").state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(backbone(x)[0], other(x)[0])
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(backbone(x)[0], other(x)[0])


@pytest.mark.parametrize(("options", "message"), [
    ({"model_name": "vmamba_tiny_s1l9"},
     "there is no model 'vmamba_tiny_s1l9' in timm or vmamba; near names: vmamba_tiny_s1l8"),
    ({"model_name": "test_vit"},
     "write plain=True in the backbone and neck=dict(type='SimpleFeaturePyramid', in_channels=64, out_channels=256)"),
    ({"out_indices": (0, 1, 2, 4)},
     "out_indices (0, 1, 2, 4) of test_vmamba: it has the maps 0 to 3 (strides 4, 8, 16, 32); "
     "write e.g. out_indices=(0, 1, 2, 3)"),
    ({"out_indices": ()}, "write e.g. out_indices=(0, 1, 2, 3)"),
    ({"frozen_stages": 5}, "frozen_stages is 5, but test_vmamba has 4 stages; write -1 (none) to 4"),
    ({"init_cfg": {"type": "Kaiming"}}, "needs to be dict(type='Pretrained', checkpoint='FILE')"),
    ({"init_cfg": {"type": "Pretrained", "checkpoint": "a.pth"}, "pretrained": True}, "write one of them"),
])
def test_errors_say_what_to_write(options, message):
    with pytest.raises(UserError) as error:
        mmdet.registry.MODELS.build({"type": "TimmFeatureBackbone", "model_name": "test_vmamba", **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
