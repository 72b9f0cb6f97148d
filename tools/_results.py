"""Reading what the benchmarks wrote: rows of CSV files, the newest of each setting, and published accuracies."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import timm

import vmamba.models  # registers the models

ROOT = Path(__file__).resolve().parent.parent
Row = Mapping[str, str]

MODES = {"eager": "eager", "compiled": "compiled", "cudagraph": "CUDA graph"}   # as tables and plots call them

# rows that differ in one of these were not measured under the same conditions
SETTING = ("device", "bench", "model", "scan", "op", "backend", "batch_size", "img_size", "amp_dtype", "mode", "format",
           "part")


def read_rows(name: str) -> list[Row]:
    """Rows of `benchmarks/<name>.csv`, the newest of each setting, in the order of the file; none without the file."""
    return newest(read_table(name))


def read_table(name: str) -> list[Row]:
    """All rows of `benchmarks/<name>.csv`; none without the file."""
    path = ROOT / "benchmarks" / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def newest(rows: Iterable[Row]) -> list[Row]:
    """The row with the latest date of each setting; of a step in parts, those of its latest profile alone."""
    found: dict[tuple, Row] = {}
    for row in rows:
        key = tuple(row.get(column) for column in SETTING)
        if key not in found or row["date"] >= found[key]["date"]:
            found[key] = row
    latest: dict[tuple, str] = {}
    for (*step, _), row in found.items():
        latest[tuple(step)] = max(row["date"], latest.get(tuple(step), ""))
    return [row for (*step, _), row in found.items() if row["date"] == latest[tuple(step)]]


def select(rows: Iterable[Row], **columns: str) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[column] == value for column, value in columns.items())]


def side(row: Row) -> int:
    """Height of the images of a row in pixels."""
    return int(row["img_size"].partition("x")[0])


@cache
def published() -> list[Row]:
    """Rows of benchmarks/published.csv: what the authors of models published, with its source."""
    with (ROOT / "benchmarks" / "published.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def counts() -> dict[str, Row]:
    """Rows of benchmarks/counts.csv by model, which tools/count_models.py writes; none without the file."""
    path = ROOT / "benchmarks" / "counts.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def zoo_models() -> list[str]:
    """Models of the suite, family by family, VMamba's first; then timm's EfficientViM and MambaOut."""
    ours: list[str] = []
    for family in sorted(vmamba.models.__all__, key=lambda family: not family.startswith("vmamba")):
        entries = vars(getattr(vmamba.models, family))
        ours += [name for name in entries if name in timm.list_models(module=family)]
    return ours + timm.list_models(["efficientvim_*", "mambaout_*"], exclude_filters="*_rw")


def is_ours(model: str) -> bool:
    """Whether this package has the model, and not timm."""
    return timm.model_entrypoint(model).__module__.startswith("vmamba.")


def published_top1(model: str) -> str:
    """ImageNet-1K top-1 in percent as published by the model's authors, empty where nothing is."""
    cfg = timm.get_pretrained_cfg(model) if is_ours(model) else None
    note = re.search(r"top-1 ([\d.]+) % \(published\)", " ".join(cfg.notes or ()) if cfg is not None else "")
    if note:
        return note[1]
    rows = [] if is_ours(model) else select(published(), model=model, dataset="ImageNet-1K", metric="top-1")
    return rows[0]["value"] if rows else ""


def several_sizes(bench: str) -> list[Row]:
    """What was measured on a GPU, of models at more than one image size: the row of each size's largest batch."""
    largest: dict[tuple[str, ...], Row] = {}
    for row in select(read_rows("models_gpu"), bench=bench, amp_dtype="bfloat16"):
        key = (row["device"], row["model"], row["mode"], row["img_size"])
        if key not in largest or int(row["batch_size"]) > int(largest[key]["batch_size"]):
            largest[key] = row
    sizes = Counter(key[:3] for key in largest)
    return [row for key, row in largest.items() if sizes[key[:3]] > 1]
