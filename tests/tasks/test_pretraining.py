"""Masked image modelling: masks agree at all resolutions, nothing of what is masked is seen, only that is asked for."""

import copy

import pytest
import timm
import torch

from vmamba.tasks.pretraining import MaskedImageModel, MaskedImageTask, draw_visible, masked_patch_loss, visible_at
from vmamba.tasks.pretraining.encoders import MaskedSequence, MaskedStages, MaskedTokens
from vmamba.tasks.pretraining.masks import from_patches, normalised_patches, to_patches
from vmamba.tasks.pretraining.model import LearnedToken
from vmamba.tasks.pretraining.toki import TokenInterpolation

STAGES = ("test_vmamba", "test_a2mamba", "test_efficientvmamba", "test_localvmamba", "test_mambavision", "test_mlla",
          "test_msvmamba", "test_res_vmamba", "test_spatial_mamba", "test_vim2", "test_vmamba_m2", "test_vssd")
TOKENS = ("test_localvim", "test_localvim_midcls", "test_plainmamba")
SEQUENCES = ("test_vim", "test_videomamba", "test_rsmamba")


def masked(name, **kwargs):
    torch.manual_seed(0)
    return MaskedImageModel(timm.create_model(name, num_classes=0), **{"decoder_dim": 16, **kwargs}).eval()


def every_family():
    return {name for name in timm.list_models("test_*")
            if timm.model_entrypoint(name).__module__.startswith("vmamba.")}


@pytest.mark.parametrize(("grid", "ratio", "kept"), [
    ((4, 4), 0.75, 4), ((3, 5), 0.6, 6), ((2, 1), 0.01, 1), ((2, 2), 0.99, 1), ((1, 7), 0.5, 3)])
def test_every_image_keeps_as_many_patches_of_its_own(grid, ratio, kept):
    visible = draw_visible(64, grid, ratio, torch.Generator().manual_seed(0))
    assert visible.shape == (64, *grid)
    assert set(visible.sum((1, 2)).tolist()) == {kept}
    assert len(visible.flatten(1).unique(dim=0)) > 1
    assert visible.float().mean(0).min() > 0        # no place is always masked


def test_a_single_patch_cannot_be_masked():
    with pytest.raises(ValueError, match="1 x 1, but masking needs at least two"):
        draw_visible(2, (1, 1), 0.5)


def test_masks_agree_at_all_resolutions():
    """Each cell of a finer map is visible as the patch it lies in."""
    visible = draw_visible(8, (4, 6), 0.6)
    fine = visible_at(visible, (16, 12))
    for row, column in ((0, 0), (5, 7), (15, 11)):
        assert torch.equal(fine[:, row, column], visible[:, row // 4, column // 2])
    assert torch.equal(fine[:, ::4, ::2], visible)
    with pytest.raises(ValueError, match="4 x 6 patches has no counterpart on a map of 7 x 6"):
        visible_at(visible, (7, 6))


def test_patches_and_back():
    images = torch.randn(2, 3, 8, 12)
    patches = to_patches(images, 4)
    assert patches.shape == (2, 2, 3, 48)
    assert torch.equal(from_patches(patches, 4), images)
    assert set(patches[1, 0, 2].tolist()) == set(images[1, :, :4, 8:].flatten().tolist())


def test_loss_is_of_masked_patches_only_each_in_its_own_scale():
    images = torch.randn(2, 3, 8, 12) * torch.tensor([[[[3.0]]], [[[0.1]]]]) + 5
    visible = draw_visible(2, (2, 3), 0.5)
    predicted = torch.randn(2, 3, 8, 12)
    loss = masked_patch_loss(predicted, images, visible)
    expected = []
    for image, guess, seen in zip(images, predicted, visible, strict=True):
        errors = []
        for row, column in (~seen).nonzero().tolist():
            where = (slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            patch = image[where]
            target = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            errors.append((guess[where] - target).square().mean())
        expected.append(torch.stack(errors).mean())
    assert torch.allclose(loss, torch.stack(expected), rtol=1e-4)
    pixels = visible_at(visible, (8, 12)).unsqueeze(1)
    assert torch.equal(masked_patch_loss(torch.where(pixels, 1e6, predicted), images, visible), loss)
    target, _, _ = normalised_patches(images, 4)
    assert masked_patch_loss(from_patches(target, 4), images, visible).max() == 0


def test_constant_patches_have_a_target():
    target, mean, deviation = normalised_patches(torch.full((1, 3, 8, 8), 2.0), 4)
    assert target.abs().max() == 0
    assert (mean == 2).all()
    assert torch.allclose(deviation, torch.tensor(1e-3))


@pytest.mark.parametrize("token", ["toki", "learned"])
def test_it_learns(token):
    """To tell which way an image grows brighter, which all its patches show; without looking, the loss is 1."""
    model = masked("test_vmamba", mask_size=8, mask_token=token).train()
    task = MaskedImageTask(model, 0.5, verbose=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    angles = (torch.arange(8) * torch.pi / 4).view(8, 1, 1)
    rows, columns = torch.arange(32.0).view(1, 32, 1) - 15.5, torch.arange(32.0).view(1, 1, 32) - 15.5
    images = (0.1 * (rows * angles.cos() + columns * angles.sin())).unsqueeze(1).expand(-1, 3, -1, -1)
    losses = []
    for _ in range(80):
        loss = task(images, None)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.88


def test_every_family_is_here():
    assert {*STAGES, *TOKENS, *SEQUENCES} == every_family()


@pytest.mark.parametrize("name", [*STAGES, *TOKENS, *SEQUENCES])
def test_features_do_not_see_masked_pixels(name):
    """Whatever is under the masked patches, features and prediction stay as they are; and what is visible counts."""
    model = masked(name)
    images = torch.randn(2, 3, 64, 96)
    visible = draw_visible(2, model.grid(images), 0.6)
    pixels = visible_at(visible, (64, 96)).unsqueeze(1)
    hidden = torch.where(pixels, images, torch.randn_like(images))
    hidden[:, 0] = torch.where(pixels[:, 0], hidden[:, 0], float("inf"))
    with torch.no_grad():
        maps, others = model.encoder(images, visible), model.encoder(hidden.nan_to_num(posinf=1e30), visible)
        changed = model.encoder(torch.where(pixels, -images, images), visible)
    assert [m.shape[1:3] for m in maps] == [(64 // s, 96 // s) for s in model.encoder.strides]
    assert all(torch.equal(a, b) for a, b in zip(maps, others, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(maps, changed, strict=True))


@pytest.mark.parametrize("name", [*STAGES, *TOKENS, *SEQUENCES])
def test_everything_that_is_trained_gets_a_gradient(name):
    """Else distributed training would wait for ever; what lies behind the features is not trained."""
    model = masked(name).train()
    MaskedImageTask(model, 0.6, verbose=False)(torch.randn(2, 3, 64, 64), None)["loss"].backward()
    missing = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert all(key.startswith(("encoder.model.fc_norm.", "encoder.model.head.")) for key in frozen)


def test_stages_with_cells_larger_than_a_patch_are_left_out():
    """Neither run nor trained: a run's checkpoint has them as they were."""
    model = masked("test_vmamba", mask_size=8).train()
    before = {key: value.clone() for key, value in model.encoder.model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.1)
    for stage in model.encoder.model.stages[2:]:
        stage.register_forward_hook(lambda module, inputs, output: pytest.fail("a coarser stage ran"))
    MaskedImageTask(model, 0.6, verbose=False)(torch.randn(2, 3, 64, 64), None)["loss"].backward()
    optimizer.step()
    same = {key for key, value in model.encoder.model.state_dict().items() if torch.equal(value, before[key])}
    left_out = ("stages.2.", "stages.3.", "norm.", "head.")
    assert {key for key in before if key.startswith(left_out)} == same
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_maps_are_empty_where_masked_after_every_block():
    model = masked("test_vmamba").encoder
    assert isinstance(model, MaskedStages)
    visible = draw_visible(2, (2, 2), 0.5)
    seen = []
    for part in (model.model.stem, *(block for stage in model.model.stages for block in stage.blocks)):
        part.register_forward_hook(lambda module, inputs, output: seen.append(output))     # after the encoder's own
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64), visible)
    assert len(seen) == 7
    for output in seen:
        cells = visible_at(visible, output.shape[1:3])
        assert output[~cells].abs().max() == 0
        assert output[cells].abs().min(-1).values.max() > 0


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_have_the_visible_tokens_only(name):
    """The same as an image of which only these tokens exist, in their order, the class token among them."""
    model = masked(name).encoder
    assert isinstance(model, MaskedSequence)
    images = torch.randn(1, 3, 64, 96)
    visible = draw_visible(1, (64 // model.strides[0], 96 // model.strides[0]), 0.6)
    lengths = []
    for block in model.model.blocks:
        block.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    with torch.no_grad():
        features = model(images, visible)[0]
        tokens, _, _ = model.model.embed(images * visible_at(visible, (64, 96)))
        numbers = model.model._split(torch.arange(tokens.shape[1]).view(1, -1, 1))[0].flatten()
        kept = [i for i in range(tokens.shape[1])
                if i not in numbers or visible.flatten()[numbers.tolist().index(i)]]
        x = tokens[:, kept]
        for block in model.model.blocks:
            x = model.model.apply_block(block, x, 1, len(kept))
        x = model.model.norm(x)
    assert set(lengths) == {len(kept)}
    assert len(kept) - int(visible.sum()) == (model.model.cls_token is not None)
    patches = [place for place, i in enumerate(kept) if i in numbers]
    assert torch.allclose(features[visible], x[0, patches], atol=1e-5)


def test_tokens_on_a_grid_stay_and_are_empty():
    model = masked("test_plainmamba").encoder
    assert type(model) is MaskedTokens
    visible, seen = draw_visible(2, (4, 4), 0.5), []
    model.model.blocks[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(torch.randn(2, 3, 64, 64), visible)
    assert seen[0][~visible.flatten(1)].abs().max() == 0
    assert seen[0][visible.flatten(1)].abs().max() > 0


@pytest.mark.parametrize(("name", "size", "kinds"), [
    ("test_vmamba", None, "LLLT"), ("test_vmamba", 64, "LLLT"), ("test_vmamba", 8, "LT"), ("test_vim", None, "T")])
def test_tokens_are_interpolated_on_the_coarsest_map(name, size, kinds):
    model = masked(name, mask_size=size)
    assert "".join({TokenInterpolation: "T", LearnedToken: "L"}[type(fill)] for fill in model.fill) == kinds
    assert not any(isinstance(f, TokenInterpolation) for f in masked(name, mask_size=size, mask_token="learned").fill)


@pytest.mark.parametrize(("name", "kwargs", "message"), [
    ("test_vmamba", {"mask_size": 12}, "12 pixels do not fit maps at strides 4, 8, 16, 32"),
    ("test_vmamba", {"mask_size": 2}, "2 pixels do not fit"),
    ("test_vmamba", {"mask_token": "zero"}, "needs one of 'toki', 'learned'"),
])
def test_arguments_that_do_not_fit(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        masked(name, **kwargs)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="ResNet cannot be masked"):
        masked("resnet18")


def test_image_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match="80x64 do not divide into cells of 32 pixels"):
        masked("test_vmamba").grid(torch.zeros(1, 3, 80, 64))
    assert masked("test_vmamba", mask_size=8).grid(torch.zeros(1, 3, 96, 64)) == (12, 8)


def test_checkpoint_is_the_encoder_and_the_rest_is_beside_it():
    task = MaskedImageTask(masked("test_vmamba"), 0.5, verbose=False)
    task.setup_ema(decay=0.5)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    for ema in (False, True):
        state = task.get_checkpoint_state(ema=ema)
        weights, rest = (state[f"{key}_ema" if ema else key] for key in ("state_dict", "task_state"))
        assert weights.keys() == timm.create_model("test_vmamba", num_classes=0).state_dict().keys()
        other = MaskedImageTask(masked("test_vmamba"), 0.5, verbose=False)
        other.load_checkpoint_state(weights, rest)
        model = task.masked_image_model(ema)
        assert all(torch.equal(a, b) for a, b in zip(
            model.state_dict().values(), other.masked_image_model().state_dict().values(), strict=True))
    with pytest.raises(KeyError):
        other.load_checkpoint_state(weights, None)
    with pytest.raises(RuntimeError, match="size mismatch"):
        MaskedImageTask(masked("test_vmamba", decoder_dim=8), 0.5, verbose=False).load_checkpoint_state(weights, rest)


def test_a_copy_masks_by_itself():
    """The hooks of an averaged model act on its own mask."""
    model = masked("test_vmamba")
    other = copy.deepcopy(model)
    images = torch.randn(1, 3, 64, 64)
    first, second = torch.tensor([[[True, False], [False, False]]]), torch.tensor([[[False, True], [True, False]]])
    with torch.no_grad():
        expected = model(images, second)
        model(images, first)
        assert torch.equal(other(images, second), expected)


def test_gradient_checkpointing_masks_in_the_backward_pass_too():
    model = masked("test_vmamba").train()
    images, visible = torch.randn(2, 3, 64, 64), draw_visible(2, (2, 2), 0.5)
    gradients = []
    for enable in (False, True):
        model.encoder.model.set_grad_checkpointing(enable)
        model.zero_grad()
        masked_patch_loss(model(images, visible), images, visible).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_weight_decay_spares_what_the_encoder_spares():
    model = masked("test_vim")
    names = model.no_weight_decay()
    assert "encoder.model.pos_embed" in names
    assert names <= dict(model.named_parameters()).keys()
    assert any(name.startswith("decoder.") for name in names)


def test_compiled():
    """Dynamo traces encoder, tokens and decoder; the compiled model gives the same, and keeps the names of weights."""
    task = MaskedImageTask(masked("test_vmamba"), 0.5, verbose=False)
    images, visible = torch.randn(2, 3, 64, 64), draw_visible(2, (2, 2), 0.5)
    with torch.no_grad():
        expected = task.trainable_module(images, visible)
        names = task.get_checkpoint_state()["state_dict"].keys()
        task.compile(backend="eager")
        assert torch.allclose(task.trainable_module(images, visible), expected, atol=1e-6)
    assert task.get_checkpoint_state()["state_dict"].keys() == names


def test_half_precision_keeps_the_interpolation_wide():
    fill = TokenInterpolation(8)
    torch.nn.init.normal_(fill.transition, std=0.3)
    features, visible = torch.randn(1, 4, 4, 8).bfloat16(), draw_visible(1, (4, 4), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        filled = fill(features, visible)
    assert filled.dtype == torch.bfloat16
    assert torch.allclose(filled.float(), fill(features.float(), visible), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_on_a_gpu():
    task = MaskedImageTask(masked("test_vmamba").cuda().train(), 0.5, device=torch.device("cuda"), verbose=False)
    with torch.autocast("cuda", torch.bfloat16):
        loss = task(torch.randn(2, 3, 64, 64, device="cuda"), None)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.requires_grad)
