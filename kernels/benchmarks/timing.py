"""How the benchmarks measure: CUDA graph replays between events, with the L2 cache flushed before each."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds: median, 20th and 80th percentile."""

    median: float
    low: float
    high: float


_FLUSH_BYTES = 256 * 2**20  # several times any L2


def measure(call: Callable[[], object], repeats: int = 30) -> Timing:
    """Time ``call`` on the device.

    The call is captured in a CUDA graph, so that the time is that of its kernels and not of their launches from Python;
    before each replay a buffer larger than the L2 cache is overwritten.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    events = []
    for _ in range(repeats):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in events]
    cuts = statistics.quantiles(times, n=5)
    return Timing(statistics.median(times), cuts[0], cuts[-1])


def copy_bandwidth() -> float:
    """Bytes per second of a large copy on the device by a kernel, read plus written.

    A kernel, because a graph turns ``copy_`` into a copy node, which is slower.
    """
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / measure(lambda: torch.neg(source, out=target), 10).median * 1e3


def special_function_rate() -> float:
    """Exponentials per second that the special-function units can do: 16 per multiprocessor and clock."""
    device = torch.cuda.get_device_properties(0)
    return 16.0 * device.multi_processor_count * device.clock_rate * 1e3


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes that ``call`` allocates at its peak beyond what is allocated before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
