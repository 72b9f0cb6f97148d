"""The run directory: what a run leaves behind, and the rule that no run is ever overwritten by accident."""
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

__all__ = ["RunDirectory", "atomic_path", "check_writable", "make_folder", "sync_folder"]


class RunDirectory:
    """Names the files of a run and guards them.

    Args:
        path: the directory, or its `resume.pt`.

    Attributes:
        tool: the script that makes such runs, and continues them.
    """

    tool = "tools/train.py"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.name == "resume.pt":
            self.path = self.path.parent
        self.arguments = self.path / "args.yaml"                # every option of the run
        self.environment = self.path / "environment.json"       # commands, versions, commit
        self.summary = self.path / "summary.csv"                # one row an epoch
        self.steps = self.path / "steps.csv"                    # one row each --log-interval steps
        self.events = self.path / "tensorboard"                 # with --tensorboard
        self.curves = self.path / "curves.png"
        self.confusion_table = self.path / "confusion.csv"      # of the best epoch
        self.confusion = self.path / "confusion.png"
        self.classes = self.path / "classes.csv"                # of the best epoch
        self.mistakes_table = self.path / "mistakes.csv"        # of the best epoch
        self.mistakes = self.path / "mistakes.png"
        self.state = self.path / "resume.pt"                    # everything needed to continue
        self.previous_state = self.path / "resume_previous.pt"  # the one before
        self.last = self.path / "last.safetensors"
        self.best = self.path / "model_best.safetensors"
        self.last_ema = self.path / "last_ema.safetensors"
        self.best_ema = self.path / "model_best_ema.safetensors"

    @property
    def files(self) -> list[Path]:
        """All files a run may hold."""
        kept = sorted(self.path.glob("epoch_[0-9][0-9][0-9][0-9].safetensors"))
        return [self.arguments, self.environment, self.summary, self.steps, self.curves, self.confusion_table,
                self.confusion, self.classes, self.mistakes_table, self.mistakes, self.state, self.previous_state,
                self.damaged_state, self.last, self.best, self.last_ema, self.best_ema, *kept]

    @property
    def damaged_state(self) -> Path:
        """Where a state that cannot be read is put aside."""
        return self.path / "resume_damaged.pt"

    def epoch_weights(self, epoch: int) -> Path:
        """Weights that are kept from the end of this epoch, counted from 1."""
        return self.path / f"epoch_{epoch:04}.safetensors"

    def existing(self) -> "RunDirectory":
        """Returns itself if it holds a run, even one that saved no state yet, else raises a `UserError`."""
        if not self.path.exists():
            raise UserError(f"run directory {self.path} does not exist")
        if not self.arguments.is_file():
            raise UserError(f"{self.path} holds no run to resume: {self.arguments.name} is missing")
        return self

    def refuse_existing(self) -> None:
        """Raises a `UserError` if the directory already holds a run: anything that took an epoch to make."""
        if any(file.exists() for file in self.files if file not in (self.arguments, self.environment, self.steps)):
            raise UserError(f"{self.path} already holds a run: continue it with --resume {self.path}, "
                            "replace it with --overwrite, or choose another --experiment")

    def create(self) -> None:
        """Makes the directory and removes the files of an earlier run in it.

        Raises:
            UserError: the directory cannot be written.
        """
        make_folder(self.path)
        for file in self.files:
            file.unlink(missing_ok=True)
        if self.events.is_dir():
            for file in self.events.glob("events.out.tfevents.*"):
                file.unlink()


def check_writable(folder: Path) -> None:
    """Raises a `UserError` if `folder` could not be made or written to. Leaves everything as it is."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"cannot write to output folder {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to output folder {folder}: no permission for {existing}")


def make_folder(folder: Path) -> None:
    """Makes `folder` and tries to write into it; raises a `UserError` if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to output folder {folder}: {error.strerror}") from error


@contextmanager
def atomic_path(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, and moves it to `path` when that went well.

    Whatever interrupts the writing, `path` is either the old file or the whole new one, on the disk and not only in
    the system's memory.

    Args:
        path: the file.
        previous: what the old file is renamed to. Between the two renames there is no `path`, but this.

    Raises:
        UserError: the file cannot be written, the disk is full for example. The old file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the renames in `folder` last through a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
