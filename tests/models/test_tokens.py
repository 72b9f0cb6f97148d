"""What every family of token models does: any image size, feature maps, heads, resizing, tracing and compiling."""
import pytest
import torch
from timm.models import create_model, save_for_hf
from timm.optim import create_optimizer_v2, param_groups_weight_decay

import vmamba  # noqa: F401

MODELS = ("test_vim", "test_plainmamba", "test_localvim", "test_localvim_midcls", "test_rsmamba")
WITH_CLASS_TOKEN = ("test_vim", "test_localvim_midcls")
SIDE = 96  # the size that the position embeddings of these models are for

pytestmark = pytest.mark.parametrize("name", MODELS)


def count_tokens(model, height, width):
    rows, columns = model.patch_embed.grid_size(height, width)
    return rows * columns + (model.cls_token is not None)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (97, 131), (16, 16), (40, 200)])
def test_any_image_size(name, size):
    model = create_model(name).eval()
    with torch.no_grad():
        tokens = model.forward_features(torch.randn(2, 3, *size))
        logits = model.forward_head(tokens)
    assert tokens.shape == (2, count_tokens(model, *size), model.num_features)
    assert logits.shape == (2, 1000)
    assert torch.isfinite(logits).all()


def test_features_only_gives_contiguous_nchw(name):
    model = create_model(name, features_only=True, out_indices=(0, 2))
    maps = model(torch.randn(1, 3, 64, 112))
    assert [tuple(m.shape) for m in maps] == [(1, 48, 4, 7)] * 2
    assert all(m.is_contiguous() for m in maps)
    assert model.feature_info.channels() == [48, 48]
    assert model.feature_info.reduction() == [16, 16]


def test_intermediates(name):
    model = create_model(name).eval()
    x = torch.randn(2, 3, 64, 112)
    final, maps = model.forward_intermediates(x, norm=True)
    torch.testing.assert_close(final, model.forward_features(x))
    patches, token = model._split(final)
    torch.testing.assert_close(maps[-1], patches.transpose(1, 2).unflatten(2, (4, 7)))
    listed = model.forward_intermediates(x, norm=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(listed[-1], patches)
    if name in WITH_CLASS_TOKEN:
        pairs = model.forward_intermediates(x, norm=True, return_prefix_tokens=True, intermediates_only=True)
        torch.testing.assert_close(pairs[-1][1], token)
    with pytest.raises(ValueError, match="output_fmt is 'NHWC', but needs 'NCHW' or 'NLC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_features_only_with_checkpointing_trains(name):
    model = create_model(name, features_only=True)
    model.model.set_grad_checkpointing(True)
    sum(m.sum() for m in model(torch.randn(2, 3, 32, 32))).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_heads(name):
    model = create_model(name, in_chans=5, num_classes=7)
    x = torch.randn(1, 5, 32, 48)
    assert model(x).shape == (1, 7)
    tokens = model.forward_features(x)
    patches, _ = model._split(tokens)
    for pool, expected in (("avg", patches.mean(1)), ("max", patches.amax(1)), ("", tokens)):
        model.reset_classifier(0, pool)
        torch.testing.assert_close(model.forward_head(tokens), model.fc_norm(expected))
    if name in WITH_CLASS_TOKEN:
        model.reset_classifier(0, "token")
        torch.testing.assert_close(model.forward_head(tokens), tokens[:, (tokens.shape[1] - 1) // 2])
    else:
        with pytest.raises(ValueError, match="this model has no class token"):
            model.reset_classifier(0, "token")
    with pytest.raises(ValueError, match="global_pool is 'catavgmax', but needs one of"):
        model.reset_classifier(3, "catavgmax")


def test_resizing_keeps_what_images_of_that_size_gave(name):
    model = create_model(name).eval()
    x = torch.randn(1, 3, 64, 112)
    with torch.no_grad():
        before = model(x)
        model.set_input_size((64, 112))
        assert model.pos_embed.shape[1] == count_tokens(model, 64, 112)
        torch.testing.assert_close(model(x), before)


def test_a_checkpoint_of_another_size_is_resized(name):
    source, small = create_model(name).eval(), create_model(name, img_size=(64, 112)).eval()
    overlay = {"state_dict": source.state_dict()}
    loaded = create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=(64, 112)).eval()
    assert loaded.pos_embed.shape == small.pos_embed.shape
    x = torch.randn(1, 3, 64, 112)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), source(x))


@pytest.mark.parametrize("decay_ssm", [True, False])
def test_weight_decay_is_that_of_the_recipe(name, decay_ssm):
    """All but vectors and embeddings, of A_log only where the family's authors exempt it; others may choose to."""
    if name == "test_plainmamba":
        model, decay_ssm = create_model(name), False
    else:
        assert create_model(name).decay_ssm
        model = create_model(name, decay_ssm=decay_ssm)
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for key, p in model.named_parameters():
        exempt = key.endswith((".D", "bias", "pos_embed", "cls_token", "direction_B")) or p.ndim == 1
        exempt = exempt or (key.endswith("A_log") and not decay_ssm)
        assert (id(p) in decayed) == (not exempt), key


def test_layer_decay_reaches_every_layer(name):
    model = create_model(name)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    scales = {key: scale[id(p)] for key, p in model.named_parameters()}
    assert scales["pos_embed"] < scales["blocks.0.mixer.A_log"] < scales["blocks.2.mixer.A_log"]
    assert scales["blocks.2.mixer.in_proj.weight"] < scales["head.weight"] == 1.0


def test_initialisation_on_meta_then_empty_then_init_weights(name):
    model = create_model(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    mixer = model.blocks[2].mixer
    step = torch.nn.functional.softplus(mixer.dt_bias)
    assert 1e-4 <= step.min() <= step.max() <= 0.1 + 1e-6
    torch.testing.assert_close(mixer.A_log.exp()[..., -1], torch.full_like(mixer.A_log[..., -1], mixer.d_state))


def test_bfloat16_and_autocast_stay_close(name):
    model = create_model(name).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(x)
        low = model.bfloat16()(x.bfloat16())
    assert autocast.dtype == low.dtype == torch.bfloat16
    assert (autocast.float() - expected).abs().max() < 0.15 * expected.std()
    assert (low.float() - expected).abs().max() < 0.15 * expected.std()


def test_export_with_dynamic_batch_and_size(name):
    model = create_model(name).eval()
    dims = {0: torch.export.Dim("batch", max=16), 2: torch.export.Dim("height", min=48, max=512),
            3: torch.export.Dim("width", min=48, max=512)}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(dims,))
    for shape in ((2, 3, 64, 96), (1, 3, 97, 131)):
        x = torch.randn(*shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), model(x))


def test_compiles_as_one_graph(name):
    model = create_model(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 32, 64)
    expected = model(x)
    expected.sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    actual = compiled(x)
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiles_as_one_graph_for_all_sizes(name):
    model = create_model(name).eval()
    model.blocks = model.blocks[:1]
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for shape in ((2, 3, SIDE, SIDE), (3, 3, 97, 131)):
            x = torch.randn(*shape)
            torch.testing.assert_close(compiled(x), model(x))


def test_torchscript_save_and_load(name, tmp_path):
    model = create_model(name).eval()
    torch.jit.script(model).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    for shape in ((1, 3, SIDE, SIDE), (2, 3, 45, 70)):
        x = torch.randn(*shape)
        torch.testing.assert_close(loaded(x), model(x))


def test_hub_round_trip(name, tmp_path):
    source = create_model(name, num_classes=3, img_size=64)
    save_for_hf(source, tmp_path / "model", safe_serialization=True)
    loaded = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, img_size=64)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.eval()(x), source.eval()(x))


def test_unknown_argument_is_refused(name):
    with pytest.raises(TypeError, match="scann"):
        create_model(name, scann="cross")
