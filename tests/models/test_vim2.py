"""ViM2, which has no published code: its averages, its channel mixer and its sizes beside the paper's."""
import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model

import vmamba  # noqa: F401
from vmamba.layers import ChannelScan
from vmamba.ops.reference import selective_scan_reference


@pytest.mark.parametrize(("name", "paper", "slack"), [
    ("vim2_tiny", 20, 0.21), ("vim2_small", 43, 0.02), ("vim2_base", 74, 0.03)])
def test_size_beside_that_of_the_paper(name, paper, slack):
    model = create_model(name, device="meta")
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert abs(count / paper - 1) < slack
    channels = [len([b for b in stage.blocks if isinstance(b.mixer, ChannelScan)]) for stage in model.stages]
    assert [len(stage.blocks) - n for stage, n in zip(model.stages, channels, strict=True)] == [2 * n for n in channels]


def test_initially_a_stage_is_a_residual_network():
    stage = create_model("test_vim2").eval().stages[2]
    x = torch.randn(2, 8, 6, 24)
    with torch.no_grad():
        y = stage.downsample(x)
        for block in stage.blocks:
            y = y + block.mixer(block.norm(y))
        torch.testing.assert_close(stage(x), y)


def test_each_mixer_takes_a_weighted_sum_of_all_maps_before_it():
    stage = create_model("test_vim2").eval().stages[2]
    x = torch.randn(2, 8, 6, 24)
    with torch.no_grad():
        for module in (*stage.blocks, stage):
            module.average.normal_()
        maps = [stage.downsample(x)]
        for i, block in enumerate(stage.blocks):
            assert len(block.average) == i + 1
            maps.append(block.mixer(block.norm(torch.einsum("m,mbhwc->bhwc", block.average, torch.stack(maps)))))
        torch.testing.assert_close(stage(x), torch.einsum("m,mbhwc->bhwc", stage.average, torch.stack(maps)))


def test_averages_train_with_checkpointing_and_are_not_decayed():
    model = create_model("test_vim2", drop_path_rate=0.2)
    names = [name for name, p in model.named_parameters() if name.endswith(".average")]
    assert len(names) == 4 + 3 * 4
    grads = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        torch.manual_seed(0)
        model(torch.randn(2, 3, 40, 40)).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(grads[1], grads[0])
    assert all(model.get_parameter(name).ndim == 1 and model.get_parameter(name).grad.any() for name in names)


def test_channel_scan_written_out():
    """One position and one direction at a time, one channel after another."""
    mixer = ChannelScan(6, 10, d_state=3).double().eval()
    x = torch.randn(2, 9, 8, 6, dtype=torch.float64)
    with torch.no_grad():
        v, z = mixer.in_proj(x).chunk(2, dim=-1)
        total = torch.zeros_like(v)
        for k in range(2):
            steps = v.flip(-1) if k else v
            u = F.silu(F.conv1d(
                F.pad(steps.reshape(-1, 1, 10), (2, 0)), mixer.conv_weight[k].view(1, 1, 3), mixer.conv_bias[k:k + 1]))
            u = u.reshape(2, 9, 8, 10)
            grid = F.adaptive_avg_pool2d(u.permute(0, 3, 1, 2), 7).flatten(2)  # [B, E, 49]
            dt, B, C = (grid @ mixer.x_proj[k].t()).split([1, 3, 3], dim=-1)
            delta = mixer.dt_weight[k] * u.permute(0, 3, 1, 2).flatten(2) + dt  # [B, E, H * W]
            A = -torch.exp(mixer.A_log[k]).expand(72, 3)
            y, _ = selective_scan_reference(
                u.permute(0, 1, 2, 3).reshape(2, 72, 10), delta.mT, A, B.mT.unsqueeze(1), C.mT.unsqueeze(1),
                mixer.D[k].expand(72), None, mixer.dt_bias[k].expand(72), True)
            total += (y.flip(-1) if k else y).reshape(total.shape)
        torch.testing.assert_close(mixer(x), mixer.out_proj(total * F.silu(z)))


def test_a_channel_reaches_every_other():
    mixer = ChannelScan(6, 12, d_state=3).eval()
    x = torch.randn(1, 8, 8, 6, requires_grad=True)
    captured = []
    mixer.out_proj.register_forward_hook(lambda m, args, out: captured.append(args[0]))
    mixer.in_proj.register_forward_hook(lambda m, args, out: captured.insert(0, out))
    mixer(x)
    projected, scanned = captured
    for channel in (0, 11):
        grad, = torch.autograd.grad(scanned[0, 3, 3, channel], projected, retain_graph=True)
        assert (grad[0, 3, 3, :12] != 0).all()
