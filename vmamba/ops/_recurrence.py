"""In-place evaluation of ``h_t = a_t * h_{t-1} + b_t`` in plain torch, for CPUs and any device without Triton.

The sequence is cut into short chunks.  All chunks advance together one step at a time, keeping the local state and the
running product of the decays; the states at the chunk ends, themselves such a sequence, are then chained and added
back.  A sequence of length L so takes some 5 log(L) vector operations instead of L.  Only products of decays appear,
never their quotients or the logarithm of a sum, so long and strongly decaying sequences neither overflow nor lose
precision.
"""
from __future__ import annotations

from torch import Tensor

CHUNK_STEPS = 8
"""Steps of a chunk: longer ones take more and smaller vector operations, shorter ones more passes over the memory."""
SERIAL_STEPS = 3 * CHUNK_STEPS
"""Up to this many steps, walking them one after another costs less than cutting them into chunks."""


def scan_(a: Tensor, b: Tensor, reverse: bool = False, products: bool = False) -> None:
    """Replace ``b`` by the states of the recurrence along dimension -2, from state zero.

    Args:
        a: Decays ``[..., L, D]``; overwritten with scratch, or with the running products if asked.
        b: Inputs ``[..., L, D]``; overwritten with the states.
        reverse: Walk from the last position to the first.
        products: Leave the running products of the decays in ``a``.
    """
    length = b.shape[-2]
    if length <= SERIAL_STEPS:
        _serial_(a, b, reverse, products)
        return
    rest = length % CHUNK_STEPS
    body = length - rest
    start = rest if reverse else 0
    shape = (body // CHUNK_STEPS, CHUNK_STEPS)
    a_body, b_body = a.narrow(-2, start, body), b.narrow(-2, start, body)
    _chunks_(a_body.unflatten(-2, shape), b_body.unflatten(-2, shape), reverse, products)
    if rest:  # less than a chunk is left over: walk on from where the body ended
        first = 0 if reverse else body - 1
        _serial_(a.narrow(-2, first, rest + 1), b.narrow(-2, first, rest + 1), reverse, products)


def _chunks_(a: Tensor, b: Tensor, reverse: bool, products: bool) -> None:
    """The same for ``[..., chunks, steps, D]``, at least two chunks."""
    scan_(a, b, reverse, products=True)
    end = 0 if reverse else -1
    a_end, b_end = a.select(-2, end), b.select(-2, end)  # [..., chunks, D]
    scan_(a_end, b_end, reverse, products)
    # Chunks after the first one begin from the end state of their predecessor; ends themselves are already final.
    if reverse:
        here, inner, before = slice(None, -1), slice(1, None), slice(1, None)
    else:
        here, inner, before = slice(1, None), slice(None, -1), slice(None, -1)
    a_inner = a[..., here, inner, :]
    b[..., here, inner, :].addcmul_(a_inner, b_end[..., before, :].unsqueeze(-2))
    if products:
        a_inner.mul_(a_end[..., before, :].unsqueeze(-2))


def _serial_(a: Tensor, b: Tensor, reverse: bool, products: bool) -> None:
    decays, states = a.unbind(-2), b.unbind(-2)
    if reverse:
        decays, states = decays[::-1], states[::-1]
    for t in range(1, len(states)):
        states[t].addcmul_(decays[t], states[t - 1])
        if products:
            decays[t].mul_(decays[t - 1])
