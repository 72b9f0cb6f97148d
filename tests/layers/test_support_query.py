"""Support recap and query intercept against the published implementation, and what each may see."""
import pytest
import torch

from tests.goldens import fill
from tests.support.parity import load_golden
from vmamba.layers.support_query import SupportQueryScan
from vmamba.ops import ss2d_scan
from vmamba.scans import recap_order, scan_order

META, TENSORS = load_golden("hmnet/hmnet_scan_ops.json")
WALKS = ("row", "col", "row_rev", "col_rev")


@pytest.fixture(scope="module")
def published():
    """The fixture's parameters, and its inputs as maps [1, H, W, D]."""
    config = META["config"]
    module = SupportQueryScan(config["d_inner"], config["d_state"], config["dt_rank"], config["ratio"])
    state = dict(fill.fill_state_dict(META["entries"]))
    with torch.no_grad():
        module.x_proj.weight.copy_(state["x_proj_weight"].flatten(0, 1))
        module.dt_weight.copy_(state["dt_projs_weight"])
        module.dt_bias.copy_(state["dt_projs_bias"])
        module.A_log.copy_(state["A_logs"].view_as(module.A_log))
        module.D.copy_(state["Ds"].view_as(module.D))
    inputs = {
        k: fill.seeded_randn(v["name"], v["shape"]).permute(0, 2, 3, 1) for k, v in META["input"].items()}
    return module, inputs


def close(actual, name):
    expected = TENSORS[name]
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, atol=1e-5 * scale, rtol=0, msg=lambda m: f"{name}: {m}")


def test_recap(published):
    module, inputs = published
    query, support = module.recap(inputs["x_q"], inputs["x_s_down"])
    for k, walk in enumerate(WALKS):
        close(query[:, k].transpose(1, 2), f"recap_q_{walk}")
        close(support[:, k].transpose(1, 2), f"support_{walk}")


def test_intercept(published):
    module, inputs = published
    states = module.support_state(inputs["x_s_down"])
    close(states.flatten(1, 2), "support_last_state")
    close(module.intercept(inputs["x_q_down"], states.mean(1)).transpose(1, 2), "intercept_q_down")


def test_scans_of_one_image_are_the_cross_scan(published):
    module, inputs = published
    tokens = inputs["x_q"].flatten(1, 2)
    y = ss2d_scan(tokens, module._project(tokens), module.dt_weight, module.dt_bias, module.A_log, module.D,
                  scan_order("cross", inputs["x_q"].shape[1:3]), merge=None)
    for k, walk in enumerate(WALKS):
        close(y[:, k].transpose(1, 2), f"self_{walk}")


def test_order_by_hand():
    order = recap_order((2, 4), 2)  # windows of 1 x 2 tokens; copies of the support are 8 9, 10 11, 12 13, 14 15
    assert order.index.tolist() == [
        [8, 9, 0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15, 6, 7],
        [8, 9, 0, 1, 10, 11, 4, 5, 12, 13, 2, 3, 14, 15, 6, 7],
        [9, 8, 7, 6, 11, 10, 5, 4, 13, 12, 3, 2, 15, 14, 1, 0],
        [9, 8, 7, 6, 11, 10, 3, 2, 13, 12, 5, 4, 15, 14, 1, 0]]
    with pytest.raises(ValueError, match="size must be divisible by the ratio 4, got 8 x 6"):
        recap_order((8, 6), 4)


def test_query_tokens_do_not_see_each_other_in_the_intercept():
    module = SupportQueryScan(6, 3)
    query, state = torch.randn(2, 3, 4, 6), torch.randn(2, 6, 3)
    before = module.intercept(query, state)
    query[:, 1, 2] += 1
    changed = (module.intercept(query, state) - before).abs().amax((0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [6]


def test_whole():
    module = SupportQueryScan(8, 4, as_released=False)
    query, support = torch.randn(2, 2, 16, 8, 8, requires_grad=True).unbind(0)
    of_query, of_support = module(query, support)
    assert of_query.shape == of_support.shape == query.shape
    grads = torch.autograd.grad((of_query.sum() + of_support.sum()), [query, support, *module.parameters()])
    assert all(torch.isfinite(g).all() and g.any() for g in grads)
    with torch.no_grad():
        module.D[0, 1:] += 1  # the first channel's skip weight stays, so only the intercept of others can differ
        plain = module.intercept(query[:, ::4, ::4], torch.zeros(2, 8, 4))
        module.as_released = True
        released = module.intercept(query[:, ::4, ::4], torch.zeros(2, 8, 4))
    assert torch.equal(plain[..., 0], released[..., 0])
    assert not torch.allclose(plain[..., 1:], released[..., 1:])
