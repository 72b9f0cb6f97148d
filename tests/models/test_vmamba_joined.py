"""Blocks whose residual additions join the norms that follow, as on a GPU, here on whatever there is."""
import pytest
import torch

from vmamba.layers import LayerNorm, ss2d
from vmamba.models import vmamba as module
from vmamba.models.vmamba import VMambaBlock, VMambaBlocks

DIM, DEPTH = 8, 3


@pytest.fixture
def joins(monkeypatch):
    """What is joined, after all blocks believe that they run on a GPU."""
    monkeypatch.setattr(module, "runs_alone_on_gpu", lambda _: True)
    seen = []
    add = LayerNorm.add

    def watched(self, x, branch, drop_path):
        seen.append((self, drop_path))
        return add(self, x, branch, drop_path)

    monkeypatch.setattr(LayerNorm, "add", watched)
    return seen


@pytest.fixture
def nodes(joins, monkeypatch):
    """The blocks that run as one node of autograd, after their mixers believe it as well."""
    monkeypatch.setattr(ss2d, "runs_alone_on_gpu", lambda _: True)
    seen = []
    one_node = VMambaBlock.one_node
    monkeypatch.setattr(VMambaBlock, "one_node", lambda self, *a: (seen.append(self), one_node(self, *a))[1])
    return seen


def make(drop_path=0.0, mlp_ratio=2.0):
    torch.manual_seed(0)
    return VMambaBlocks(*(VMambaBlock(DIM, mlp_ratio, drop_path, {}) for _ in range(DEPTH))).double()


def results(blocks, x):
    x = x.clone().requires_grad_()
    y = blocks(x)
    blocks.zero_grad()
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
    return [y.detach(), x.grad, *(p.grad.clone() for p in blocks.parameters())]


def norms_of(blocks):
    return [norm for block in blocks for norm in (block.norm1, block.norm2)]


def test_they_give_what_one_by_one_they_give(joins, monkeypatch):
    blocks, x = make(), torch.randn(2, 4, 3, DIM, dtype=torch.double)
    got = results(blocks, x)
    assert [norm for norm, _ in joins] == norms_of(blocks)[1:]
    monkeypatch.setattr(module, "runs_alone_on_gpu", lambda _: False)
    joins.clear()
    expected = results(blocks, x)
    assert [norm for norm, _ in joins] == norms_of(blocks)[1::2]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_stochastic_depth_goes_with_the_addition(joins):
    blocks = make(drop_path=0.25)
    blocks[1].drop_path2.drop_prob = 0.5
    x = torch.randn(2, 4, 3, DIM, dtype=torch.double)
    blocks(x)
    assert [rate for _, rate in joins] == [0.25, 0.25, 0.25, 0.5, 0.25]
    eager = make(drop_path=0.25).eval()
    torch.testing.assert_close(eager(x), make().eval()(x))


def test_branches_that_are_not_scaled_up_are_added_by_their_own_module(joins):
    blocks = make(drop_path=0.25)
    blocks[1].drop_path2.scale_by_keep = False
    blocks(torch.randn(2, 4, 3, DIM, dtype=torch.double))
    assert [norm for norm, _ in joins] == norms_of(blocks)[1::2]


def test_dropped_branches_leave_the_map_as_it_is(joins):
    blocks = make(drop_path=1.0)
    x = torch.randn(2, 4, 3, DIM, dtype=torch.double)
    torch.testing.assert_close(blocks(x), x)


@pytest.mark.parametrize("of", [lambda b: b, lambda b: b.norm1, lambda b: b.drop_path2], ids=["block", "norm", "drop"])
@pytest.mark.parametrize("backward", [False, True])
def test_hooks_are_called(of, backward, joins):
    blocks, calls = make(drop_path=0.1), []
    hook = of(blocks[1])
    (hook.register_full_backward_hook if backward else hook.register_forward_hook)(lambda *_: calls.append(1) and None)
    blocks(torch.randn(2, 4, 3, DIM, dtype=torch.double, requires_grad=True)).sum().backward()
    assert calls == [1]


def test_blocks_without_mlp_run_one_by_one(joins):
    assert make(mlp_ratio=0.0)(torch.randn(1, 4, 3, DIM, dtype=torch.double)).shape == (1, 4, 3, DIM)
    assert not joins


def test_no_blocks_change_nothing(joins):
    x = torch.randn(1, 2, 2, DIM)
    assert VMambaBlocks()(x) is x


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.double, torch.float])
def test_a_block_as_one_node_gives_what_its_operators_give(drop_path, dtype, nodes, joins, monkeypatch):
    blocks, x = make(drop_path).to(dtype), torch.randn(4, 4, 3, DIM, dtype=dtype)
    torch.manual_seed(1)
    got = results(blocks, x)
    assert nodes == list(blocks)
    assert not joins
    nodes.clear()
    monkeypatch.setattr(VMambaBlock, "is_one_node", lambda *_: False)
    torch.manual_seed(1)
    expected = results(blocks, x)
    assert not nodes
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_weights_and_inputs_get_no_gradients(nodes):
    blocks = make()
    blocks[0].requires_grad_(False)
    blocks[1].mixer.requires_grad_(False)
    blocks(torch.randn(1, 4, 3, DIM, dtype=torch.double)).sum().backward()
    assert nodes == list(blocks)
    assert all((p.grad is not None) is p.requires_grad for p in blocks.parameters())


def test_without_gradients_there_is_no_node(nodes):
    with torch.no_grad():
        make()(torch.randn(1, 4, 3, DIM, dtype=torch.double))
    assert not nodes


def test_second_derivatives_of_a_node_are_refused(nodes):
    x = torch.randn(1, 4, 3, DIM, dtype=torch.double, requires_grad=True)
    (dx,) = torch.autograd.grad(make()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("of", [
    lambda b: b.mixer, lambda b: b.mixer.out_proj, lambda b: b.mlp, lambda b: b.mlp.fc1, lambda b: b.norm2,
], ids=["mixer", "out_proj", "mlp", "fc1", "norm2"])
def test_a_block_with_a_hook_inside_is_none(of, nodes):
    blocks = make()
    of(blocks[1]).register_forward_hook(lambda *_: None)
    blocks(torch.randn(1, 4, 3, DIM, dtype=torch.double))
    assert nodes == [blocks[0], blocks[2]]
