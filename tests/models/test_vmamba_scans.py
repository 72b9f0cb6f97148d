"""VMamba with other scan orders than its own."""
import pytest
import torch
from timm.models import create_model
from torch._dynamo.testing import CompileCounterWithBackend

import vmamba  # noqa: F401
from vmamba.layers import SS2D
from vmamba.models.vmamba import checkpoint_filter_fn
from vmamba.ops import ss2d_scan
from vmamba.scans import default_directions, list_scans, scan_order, scan_tokens

OVER_THE_MAP = [name for name in list_scans() if scan_tokens(name, 1, 1) == 1]
# a permutation, padding between tokens and at the end, and tokens that directions leave out
KINDS = ["hilbert4", "h+v_flip+w7+w7_flip", "atrous"]


def build(scan):
    torch.manual_seed(0)
    return create_model("test_vmamba", scan=scan).eval()


def build_mixer(scan):
    """A mixer whose output depends on the order; a fresh one's scan hardly adds to its skip connection."""
    torch.manual_seed(0)
    mixer = SS2D(8, scan=scan).eval()
    with torch.no_grad():
        for p in (mixer.in_proj.weight, mixer.x_proj.weight):
            p.mul_(10)
    return mixer


@pytest.mark.parametrize("scan", OVER_THE_MAP)
def test_any_order_trains_at_an_odd_size(scan):
    model = build(scan)
    model(torch.randn(1, 3, 45, 70)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.stages[0].blocks[0].mixer.dt_weight.shape[0] == default_directions(scan)


def test_the_order_is_the_one_that_is_walked():
    """The mixer against the reference operator with the table of the order."""
    mixer = build_mixer("hilbert4")
    x = torch.randn(2, 5, 6, 8)

    def run(order):
        tokens = mixer.conv(mixer.in_proj(x)).flatten(1, 2)
        proj = mixer.x_proj(tokens).view(2, 30, 4, -1)
        y = ss2d_scan(
            tokens, proj, mixer.dt_weight, mixer.dt_bias, mixer.A_log, mixer.D, scan_order(order, (5, 6)),
            backend="reference")
        return mixer.out_proj(mixer.out_norm(y)).view_as(x)

    with torch.no_grad():
        torch.testing.assert_close(mixer(x), run("hilbert4"))
        assert (mixer(x) - run("cross")).abs().max() > 0.1 * mixer(x).std()


def test_parameters_are_those_of_the_released_weights():
    model = create_model("vmamba_tiny_s1l8", scan="hilbert4", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 30_249_064
    state = build("cross").state_dict()
    assert checkpoint_filter_fn(state, build("hilbert4")).keys() == state.keys()


# The rest of the model knows nothing of orders, and is traced with its own one in test_vmamba.py.
@pytest.mark.parametrize("scan", KINDS)
def test_export_of_the_mixer_with_dynamic_size(scan):
    mixer = build_mixer(scan)
    sides = {1: torch.export.Dim("height", min=4, max=128), 2: torch.export.Dim("width", min=4, max=128)}
    program = torch.export.export(mixer, (torch.randn(2, 6, 9, 8),), dynamic_shapes=(sides,))
    x = torch.randn(2, 15, 11, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), mixer(x))


@pytest.mark.parametrize("scan", KINDS)
def test_one_compiled_graph_of_the_mixer_serves_all_sizes(scan):
    torch._dynamo.reset()
    mixer = build_mixer(scan)
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixer, fullgraph=True, backend=graphs, dynamic=True)
    compiled(torch.randn(2, 6, 9, 8))
    first = graphs.frame_count
    for size in ((15, 11), (7, 14)):
        x = torch.randn(2, *size, 8)
        torch.testing.assert_close(compiled(x), mixer(x))
    assert graphs.frame_count == first
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in mixer.parameters())


@pytest.mark.parametrize("scan", KINDS)
def test_torchscript_and_fx_of_the_mixer_at_other_sizes(scan):
    mixer = build_mixer(scan)
    script, graph = torch.jit.script(mixer), torch.fx.symbolic_trace(mixer)
    for size in ((6, 9), (15, 11)):
        x = torch.randn(2, *size, 8)
        torch.testing.assert_close(script(x), mixer(x))
        torch.testing.assert_close(graph(x), mixer(x))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: create_model("vmamba_tiny_s1l8", scan="hilbrt4", device="meta"), ValueError,
     "^unknown scan order 'hilbrt4'; did you mean 'hilbert4'"),
    (lambda: build("window_then_global"), ValueError,
     "^the order 'window_then_global' walks copies of the map, but SS2D scans the map itself$"),
    (lambda: checkpoint_filter_fn(build("cross").state_dict(), build("hilbert")), RuntimeError,
     "^the checkpoint has 4 scan directions, but scan='hilbert' has 1; name an order of 4, e.g. by joining orders "),
    (lambda: checkpoint_filter_fn(
        {"layers.0.blocks.0.op.dt_projs_weight": torch.zeros(4, 16, 1)}, build("bidi")), RuntimeError,
     "^the checkpoint has 4 scan directions, but scan='bidi' has 2"),
    (lambda: ss2d_scan(
        torch.zeros(1, 20, 2), torch.zeros(1, 20, 4, 3), torch.zeros(4, 2, 1), None, torch.zeros(4, 2, 1), None,
        scan_order("hilbert4", (4, 4))), ValueError, r"^order is for 16 tokens \(grid 4x4\), but x has L = 20$"),
])
def test_orders_that_do_not_fit_are_explained_in_a_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
