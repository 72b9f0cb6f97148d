"""Stopping a run from outside: SIGTERM and SIGINT end it at the next step, with everything saved."""
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["EXIT_STOPPED", "StopRequest", "StoppedRun"]

# EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same again. Not the 130 and 143 of a process that a signal killed
EXIT_STOPPED = 75


class StoppedRun(Exception):
    """The run was asked to stop, and its state is saved."""


class StopRequest:
    """Says whether a signal asked the run to stop.

    Attributes:
        asked: whether this process got a signal.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT over. The second signal does what it always did: it ends the process."""
        if threading.current_thread() is not threading.main_thread():   # Python allows handlers there only
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in numbers}
        owner = os.getpid()

        def handle(number: int, frame: Any) -> None:
            self.asked = True
            for other in numbers:
                signal.signal(other, before[other])
            if os.getpid() == owner:    # not a loader process that has just been started
                print(f"{signal.Signals(number).name}: saving at the next step, then stopping; once more ends at once",
                      file=sys.stderr, flush=True)

        for number in numbers:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, before[number])

    def agreed(self, distributed: bool, device: torch.device) -> bool:
        """Returns whether any process was asked to stop. With `distributed` all processes have to call it together."""
        if not distributed:
            return self.asked
        asked = torch.tensor(int(self.asked), device=device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return bool(asked.item())
