"""tools/train.py, whose process of rank 1 is killed in the middle: `python tests/support/failing_rank.py FLAGS`."""
import os
import signal
import sys

from vmamba.train import fit
from vmamba.train.loop import EpochTrainer

step = EpochTrainer._step


def fail(self, batches, parameters, progress):
    if self.args.rank == 1 and progress.epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batches, parameters, progress)


EpochTrainer._step = fail

if __name__ == "__main__":
    sys.exit(fit.main())
