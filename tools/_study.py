"""What the studies share: one training as a row of a results file, and tables of the rows."""

import argparse
import contextlib
import csv
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import _bench

from vmamba.errors import UserError
from vmamba.train.fit import main as train
from vmamba.train.run_directory import RunDirectory

RECIPES = Path(__file__).parent.parent / "configs" / "classification"


def read(path: Path) -> list[dict[str, str]]:
    """Rows of the results file; none where there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def trained(flags: Sequence[str], what: str) -> Iterator[RunDirectory]:
    """Trains once, and gives the run directory, which is removed afterwards.

    Args:
        flags: of tools/train.py.
        what: what is trained, for the error message.

    Raises:
        UserError: the training failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder) / "log", "w") as log, contextlib.redirect_stdout(log):
            code = train([*flags, "--output", folder, "--experiment", "run"], recipes=RECIPES)
        if code:
            raise UserError(f"training {what} failed")
        yield RunDirectory(Path(folder) / "run")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The option of a study whose GPU would wait for one process that loads."""
    parser.add_argument("--workers", type=int, metavar="N",
                        help="processes that load images (default: the recipe's, which suits a CPU)")


def overrides(args: argparse.Namespace) -> list[str]:
    """Flags of tools/train.py for what a study was told to do otherwise than its recipe: `epochs`, `workers`."""
    flags = []
    if args.epochs is not None:
        flags += ["--epochs", str(args.epochs), "--warmup-epochs", str(min(2, args.epochs - 1))]
    if args.workers is not None:
        flags += ["--workers", str(args.workers)]
    return flags


def table(name: str, values: Mapping[str, list[float]]) -> str:
    """Mean and sample standard deviation of accuracies, best mean first.

    Args:
        name: what the keys of `values` are.
        values: accuracies in percent, one a run.
    """
    rows = [{name: key, "top-1, %": f"{statistics.mean(runs):.2f}",
             "standard deviation": f"{statistics.stdev(runs):.2f}" if len(runs) > 1 else "",
             "runs": len(runs)}
            for key, runs in sorted(values.items(), key=lambda item: -statistics.mean(item[1]))]
    return _bench.markdown_table(list(rows[0]), rows)
