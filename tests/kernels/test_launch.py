"""What makes launches of one kind, which run again what Triton compiled for the first of them."""

import pytest
import torch
import triton
from vmamba_kernels import _launch
from vmamba_kernels._launch import empty  # as it is where no fixture fills it


@triton.jit
def _kernel(a_ptr, b_ptr, n, EVEN):
    pass


@pytest.fixture
def launch(monkeypatch):
    """A function that launches on CPU tensors, as on a GPU, and says whether that compiled, and what ran."""
    compiled, ran = [], []

    def run(*given):
        ran.append(given)

    def compile_(kernel, grid, arguments, how, twin):
        compiled.append(arguments)
        return _launch._Compiled(run, 0, None, tuple(how.values()))

    monkeypatch.setattr(_launch, "interpreted", lambda: False)
    monkeypatch.setattr(_launch, "_compile", compile_)
    monkeypatch.setattr(_launch, "_kernels", {})
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: -1, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)

    def call(a, b, n=8, EVEN=True):
        before = len(compiled), len(ran)
        _launch.launch(_kernel, (3,), a, b, n, EVEN=EVEN)
        return len(compiled) > before[0], ran[before[1]:]

    return call


def _tensor(dtype=torch.float32, offset=0):
    memory = torch.empty(256, dtype=torch.uint8)
    start = -memory.data_ptr() % 16 + offset
    return memory[start : start + 64].view(dtype)


class _Elsewhere(torch.Tensor):
    def get_device(self):
        return 1


def test_the_second_launch_of_a_kind_takes_the_new_addresses(launch):
    a, b = _tensor(), _tensor()
    assert launch(a, b) == (True, [])
    a, b = _tensor(), _tensor()
    compiled, [ran] = launch(a, b)
    assert not compiled
    assert ran[:3] == (3, 1, 1)
    assert ran[-4:] == (a.data_ptr(), b.data_ptr(), 8, True)


def test_a_pointer_may_be_none(launch):
    a = _tensor()
    assert launch(a, None)[0]
    compiled, [ran] = launch(a, None)
    assert not compiled
    assert ran[-4:] == (a.data_ptr(), None, 8, True)


@pytest.mark.parametrize("other", [
    {"a": _tensor(torch.bfloat16)}, {"b": _tensor(torch.bfloat16)}, {"b": None}, {"n": 9}, {"EVEN": False},
    {"a": _tensor(offset=4)}, {"b": _tensor(offset=4)}, {"b": _tensor().as_subclass(_Elsewhere)},
])
def test_another_type_alignment_device_absence_size_or_constant_is_another_kind(launch, other):
    same = {"a": _tensor(), "b": _tensor()}
    assert launch(**same)[0]
    assert launch(**{**same, **other})[0]
    assert not launch(**{**same, **other})[0]
    assert not launch(**same)[0]


def test_which_of_two_pointers_is_aligned_makes_a_kind(launch):
    assert launch(_tensor(), _tensor(offset=4))[0]
    assert launch(_tensor(offset=4), _tensor())[0]
    assert launch(_tensor(offset=4), _tensor(offset=4))[0]
    assert not launch(_tensor(), _tensor(offset=4))[0]


@pytest.mark.parametrize("shape", [(3,), (2, 3, 5), (0, 4), (4, 0, 2), torch.Size((7, 1))], ids=str)
def test_new_tensors_are_contiguous(shape, device):
    got = empty(shape, dtype=torch.bfloat16, device=torch.device(device))
    expected = torch.empty(shape, dtype=torch.bfloat16, device=device)
    assert (got.shape, got.stride(), got.dtype, got.device) == (
        expected.shape, expected.stride(), expected.dtype, expected.device)
