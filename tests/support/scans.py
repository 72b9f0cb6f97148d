"""Random but sensible arguments for the scan operators."""
import torch


def selective_scan_arguments(
        batch=2, channels=6, length=13, states=1, groups=1, dtype=torch.float32, gate=True, initial=True, seed=0,
        requires_grad=True):
    """Keyword arguments of selective_scan: inputs in ``dtype``, parameters and state in float32 or wider."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape, to=dtype):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(to)

    arguments = {
        "u": normal(batch, channels, length), "delta": normal(batch, channels, length),
        "A": -(torch.rand(channels, states, generator=g, dtype=torch.float64) * 2 + 0.1).to(wide),
        "B": normal(batch, groups, states, length), "C": normal(batch, groups, states, length),
        "D": normal(channels, to=wide), "z": normal(batch, channels, length) if gate else None,
        "delta_bias": normal(channels, to=wide) - 1, "delta_softplus": True,
        "initial_state": normal(batch, channels, states, to=wide) if initial else None,
    }
    return {k: v.requires_grad_(requires_grad) if torch.is_tensor(v) else v for k, v in arguments.items()}


def ss2d_arguments(
        batch=2, height=3, width=5, channels=4, directions=4, states=1, rank=2, dtype=torch.float32, readout=True,
        seed=0, tokens=None, own=False, requires_grad=True):
    """Positional tensor arguments of ss2d_scan; ``own``: each direction has an x of its own."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    length = height * width if tokens is None else tokens

    def normal(*shape, to=dtype):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(to)

    columns = rank + 2 * states if readout else rank + 1
    arguments = (
        normal(batch, length, *([directions] if own else []), channels), normal(batch, length, directions, columns),
        normal(directions, channels, rank, to=wide), normal(directions, channels, to=wide) - 1,
        (normal(directions, channels, states, to=wide) * 0.5), normal(directions, channels, to=wide))
    return tuple(a.requires_grad_(requires_grad) for a in arguments)


def gradients(output, arguments, seed=1):
    """Gradients of a random projection of ``output`` (a tensor or a tuple) by the tensors among ``arguments``."""
    outputs = output if isinstance(output, tuple) else (output,)
    g = torch.Generator().manual_seed(seed)
    seeds = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o) for o in outputs]
    inputs = [a for a in arguments if torch.is_tensor(a) and a.requires_grad]
    return torch.autograd.grad(outputs, inputs, seeds)
