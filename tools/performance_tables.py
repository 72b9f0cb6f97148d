#!/usr/bin/env python3
"""Write the tables of models and of their speed in the documentation, from the CSV files in benchmarks/.

    python tools/performance_tables.py            # README.md and pages of docs/
    python tools/performance_tables.py --check    # exit code 1 where they are not what the CSV files say

A table stands between `<!-- performance: NAME -->` and `<!-- performance end -->`, and shows the newest row of each
setting. Its column "run" names runs of the table `runs`, which says where, when and by which command.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence

import _bench
import _zoo
from _results import MODES, ROOT, Row, is_ours, published_top1, read_rows, read_table, select, several_sizes, side

from vmamba.errors import UserError, tool

PAGES = ("performance", "published", "packaging", "video", "export", "quickstart")  # in docs/
DOCUMENTS = ("README.md", *(f"docs/{page}.md" for page in PAGES))
FILES = (  # in benchmarks/
    "models_gpu", "profile_gpu", "scans_gpu", "video_gpu", "models_cpu", "operators_cpu", "export_cpu")
PICTURES = {  # in docs/images
    "performance_accuracy.png": "speed against published accuracy",
    "performance_resolution.png": "speed and memory against image size",
}
STEPS = {"inference": "inference", "train": "training"}
FORMATS = {".onnx": "ONNX", ".pt2": "torch.export", ".pt": "TorchScript", ".aoti.pt2": "AOTInductor"}
AT_128 = {"batch_size": "128", "img_size": "224x224", "amp_dtype": "bfloat16"}
PROFILED = ("model", "batch_size", "img_size")
AT_1 = {**AT_128, "batch_size": "1"}
ABOUT = ("parameters (M)", "top-1, published")
TITLES = {
    "model": "model", "scan": "order", "op": "operator", "frames": "frames", "bench": "step", "mode": "mode",
    "batch_size": "batch", "img_size": "size", "part": "part", "format": "format"}
RUN_COLUMNS = ("date", "device", "threads", "torch", "timm", "vmamba", "commit", "command")

Cells = Callable[[Row], dict[str, str]]


def run_numbers(rows: Iterable[Row]) -> str:
    """Numbers in the table `runs` of the runs that gave these rows."""
    numbers = {run: i for i, run in enumerate(all_runs(), start=1)}
    return ", ".join(map(str, sorted({numbers[tuple(row[c] for c in RUN_COLUMNS)] for row in rows})))


def all_runs() -> list[tuple[str, ...]]:
    """What the columns of `RUN_COLUMNS` say, of each run that gave a row to a table; in the order of their dates."""
    return sorted({tuple(row[column] for column in RUN_COLUMNS) for file in FILES for row in read_rows(file)})


def grid(rows: Sequence[Row], labels: Sequence[str], titles: Sequence[str], cells: Cells) -> str:
    """A Markdown table for each device, or a sentence where there are no rows.

    Args:
        rows: What was measured.
        labels: Columns of the rows whose values make a line.
        titles: Columns of the table; those that no row has a cell for are left out.
        cells: The cells of a row by their titles.
    """
    tables = []
    for device in dict.fromkeys(row["device"] for row in rows):
        lines: dict[tuple[str, ...], list[Row]] = {}
        for row in select(rows, device=device):
            lines.setdefault(tuple(row[label] for label in labels), []).append(row)
        filled = []
        for (name, *rest), line in lines.items():
            own = dict(zip((TITLES[label] for label in labels), (f"`{name}`", *rest), strict=True))
            for row in line:
                own |= cells(row)
            filled.append(own | {"run": run_numbers(line)})
        columns = [title for title in (*(TITLES[label] for label in labels), *titles, "run")
                   if any(line.get(title) for line in filled)]
        tables.append(f"{device}:\n\n" + _bench.markdown_table(
            columns, [{title: line.get(title, "") for title in columns} for line in filled]))
    return "\n\n".join(tables) or "Not measured yet."


def ours_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: not is_ours(row["model"]))


def speed(row: Row) -> str:
    return f"{float(row['img_per_s']):,.0f}"


def about(row: Row) -> dict[str, str]:
    return dict(zip(ABOUT, (row["params_m"], published_top1(row["model"])), strict=True))


def overview() -> str:
    """Images per second of inference and training."""
    def cells(row: Row) -> dict[str, str]:
        return about(row) | {f"{STEPS[row['bench']]}, {MODES[row['mode']]}": speed(row)}

    titles = [f"{step}, {mode}" for step in STEPS.values() for mode in MODES.values()]
    return grid(ours_first(select(read_rows("models_gpu"), **AT_128)), ["model"], [*ABOUT, *titles], cells)


def throughput(bench: str) -> str:
    """Images per second and peak memory of one kind of step in each mode."""
    def cells(row: Row) -> dict[str, str]:
        mode = MODES[row["mode"]]
        return about(row) | {f"{mode}, images/s": speed(row), f"{mode}, MiB": row["peak_memory_mb"]}

    titles = [f"{mode}, {unit}" for unit in ("images/s", "MiB") for mode in MODES.values()]
    rows = ours_first(select(read_rows("models_gpu"), bench=bench, **AT_128))
    return grid(rows, ["model"], [*ABOUT, *titles], cells)


def latency() -> str:
    """Milliseconds for one image in each mode, and the 80 % quantile."""
    def cells(row: Row) -> dict[str, str]:
        mode = MODES[row["mode"]]
        return {f"{mode}, ms": f"{float(row['median_ms']):.2f}", f"{mode}, 80 %": f"{float(row['p80_ms']):.2f}"}

    titles = [f"{mode}, {unit}" for mode in MODES.values() for unit in ("ms", "80 %")]
    return grid(ours_first(select(read_rows("models_gpu"), bench="inference", **AT_1)), ["model"], titles, cells)


def resolution(bench: str, value: Callable[[Row], str]) -> str:
    """One value of each model and mode by image size."""
    rows = sorted(ours_first(several_sizes(bench)), key=lambda row: list(MODES).index(row["mode"]))
    titles = [str(size) for size in sorted({side(row) for row in rows})]
    return grid(rows, ["model", "mode"], titles, lambda row: {str(side(row)): value(row)})


def memory_per_image(row: Row) -> str:
    return f"{float(row['peak_memory_mb']) / int(row['batch_size']):,.1f}"


def profiled() -> str:
    """Milliseconds, share of the step and launches of what a GPU does in a step; last what it waits, and the whole."""
    def cells(row: Row) -> dict[str, str]:
        launches = f", {int(row['launches']):,}" if row["launches"] != "0" else ""
        cell = f"{float(row['ms']):.2f} ms, {row['percent']} %{launches}"
        return {f"{STEPS[row['bench']]}, {MODES[row['mode']]}": cell}

    rows = read_rows("profile_gpu")
    steps: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        steps.setdefault(tuple(row[column] for column in ("device", *PROFILED, "bench", "mode")), []).append(row)
    whole = [
        {**parts[0], "part": "whole step", "ms": parts[0]["step_ms"], "percent": "100.0",
         "launches": str(sum(int(row["launches"]) for row in parts))} for parts in steps.values()]
    last = ("idle", "whole step")
    ordered = sorted([*rows, *whole], key=lambda row: (
        [row[column] for column in PROFILED], last.index(row["part"]) + 1 if row["part"] in last else 0))
    titles = [f"{step}, {mode}" for step in STEPS.values() for mode in MODES.values()]
    return grid(ordered, [*PROFILED, "part"], titles, cells)


def scans() -> str:
    """Time over that of `cross`."""
    rows = read_rows("scans_gpu")
    titles = [f"{STEPS[bench]}, {size}" for bench in STEPS for size in sorted({side(row) for row in rows})]
    return grid(
        rows, ["scan", "model", "mode"], titles, lambda row: {f"{STEPS[row['bench']]}, {side(row)}": row["time_ratio"]})


def video() -> str:
    """Frames per second of clips of several lengths, their times over that of the shortest, and peak memory."""
    def cells(row: Row) -> dict[str, str]:
        step = f"{STEPS[row['bench']]}, {MODES[row['mode']]}"
        return {f"{step}, frames/s": f"{float(row['frames_per_s']):,.0f}", f"{step}, time ratio": row["time_ratio"],
                f"{step}, MiB": row["peak_memory_mb"]}

    titles = [f"{step}, {mode}, {unit}" for step in STEPS.values() for mode in MODES.values()
              for unit in ("frames/s", "time ratio", "MiB")]
    return grid(read_rows("video_gpu"), ["model", "batch_size", "frames"], titles, cells)


def cpu() -> str:
    """Milliseconds per step, and over those of the run's baseline."""
    def cells(row: Row) -> dict[str, str]:
        step = STEPS[row["bench"]]
        return {f"{step}, ms": f"{float(row['median_ms']):,.0f}", f"{step}, ratio": row["time_ratio"]}

    titles = [f"{step}, {unit}" for step in STEPS.values() for unit in ("ms", "ratio")]
    return grid(read_rows("models_cpu"), ["model", "batch_size"], titles, cells)


def operators() -> str:
    """Milliseconds of each backend."""
    def cells(row: Row) -> dict[str, str]:
        what = f"batch {row['batch_size']}, {row['dim']} channels, {row['size']}, {row['state']} states, {row['dtype']}"
        return {"shape": what, f"{row['backend']}, ms": f"{float(row['median_ms']):.1f}"}

    rows = read_rows("operators_cpu")
    backends = dict.fromkeys(f"{row['backend']}, ms" for row in rows)
    return grid(rows, ["op", "bench"], ["shape", *backends], cells)


def exports() -> str:
    """Sizes that one file of each format takes, and the largest difference of a logit."""
    def cells(row: Row) -> dict[str, str]:
        return {FORMATS[row["format"]]: f"{row['sizes']}, {row['difference']}" if row["difference"] else "no"}

    rows = [row for row in read_rows("export_cpu") if row["format"] in FORMATS]
    return grid(rows, ["model"], [*FORMATS.values()], cells)


def export_limits() -> str:
    """Why a format has no file, or none for every size."""
    measured = read_rows("export_cpu")
    rows = [row for row in measured if row["reason"]]
    if measured and not rows:
        return "No cell is either."
    return grid(rows, ["model", "format"], ["reason"], lambda row: {"reason": row["reason"].replace("|", "\\|")})


def export_latency() -> str:
    """Milliseconds of PyTorch for one image, and the time of each format over that; of models that one would use."""
    def cells(row: Row) -> dict[str, str]:
        if row["format"] in FORMATS:
            return {f"{FORMATS[row['format']]}, ratio": row["time_ratio"]}
        return {"size": row["img_size"], "PyTorch, ms": f"{float(row['median_ms']):,.0f}"}

    titles = ["size", "PyTorch, ms", *(f"{name}, ratio" for name in FORMATS.values())]
    rows = [row for row in read_rows("export_cpu") if not row["model"].startswith("test_")]
    return grid(rows, ["model"], titles, cells)


def runs() -> str:
    """Where, when and by which command each run was made."""
    lines = [dict(zip(RUN_COLUMNS, run, strict=True)) | {"run": str(i)} for i, run in enumerate(all_runs(), start=1)]
    for line in lines:
        line["command"] = f"`{line['command']}`"
    return _bench.markdown_table(("run", *RUN_COLUMNS), lines) if lines else "Not measured yet."


def tested_versions() -> str:
    """What tools/test_matrix.py found, the newest of each pair of Python and PyTorch."""
    pairs: dict[tuple[str, ...], Row] = {}
    for row in sorted(read_table("test_matrix"), key=lambda row: row["date"]):
        pairs[row["python"].rpartition(".")[0], row["torch"] or row["asked"]] = row
    lines = [{
        "Python": row["python"], "PyTorch": row["torch"] or row["asked"],
        **{name: row[name] for name in ("torchvision", "timm", "numpy", "triton")},
        "result": row["result"], "tests": f"{row['passed']} passed, {row['failed']} failed" if row["passed"] else "",
        "date": row["date"][:10]} for _, row in sorted(pairs.items(), key=lambda item: [
            [int(part) for part in re.findall(r"\d+", version)] for version in item[0]])]
    return _bench.markdown_table(list(lines[0]), lines) if lines else "Not tried yet."


def quick_start() -> str:
    """How long each section of the quick start took when tests/support/quickstart.py last followed it."""
    rows = read_table("quickstart")
    if not rows:
        return "Not timed yet."
    rows = select(rows, date=max(row["date"] for row in rows))
    lines = [
        {"section": row["section"], "clock, s": row["seconds"], "processor, s": row["cpu_seconds"]} for row in rows]
    whole = {column: f"{sum(int(line[column]) for line in lines)}" for column in ("clock, s", "processor, s")}
    about = f"{rows[0]['device']}, PyTorch {rows[0]['torch']}, {rows[0]['date'][:10]}:"
    return f"{about}\n\n" + _bench.markdown_table(list(lines[0]), [*lines, {"section": "all", **whole}])


def pictures() -> str:
    """The plots that tools/plot_performance.py has drawn."""
    drawn = [name for name in PICTURES if (ROOT / "docs" / "images" / name).is_file()]
    return "\n\n".join(f"![{PICTURES[name]}](images/{name})" for name in drawn) or "Not drawn yet."


TABLES: dict[str, Callable[[], str]] = {
    "zoo": _zoo.zoo, "published": _zoo.beyond,
    "overview": overview, "latency": latency, "profile": profiled, "scans": scans, "video": video, "cpu": cpu,
    "operators": operators,
    "runs": runs, "pictures": pictures, "tested versions": tested_versions,
    "export": exports, "export limits": export_limits, "export latency": export_latency, "quick start": quick_start,
    "inference": lambda: throughput("inference"), "training": lambda: throughput("train"),
    "inference by size": lambda: resolution("inference", speed),
    "training by size": lambda: resolution("train", speed),
    "training memory by size": lambda: resolution("train", memory_per_image),
}
MARKED = re.compile(r"(<!-- performance: ([\w ]+) -->\n).*?(<!-- performance end -->)", re.DOTALL)


def fill(text: str) -> str:
    """`text` with every marked table as the CSV files have it.

    Raises:
        UserError: there is no table of a name.
    """
    def table(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise UserError(f"there is no table {match[2]!r}; known: {', '.join(TABLES)}")
        return f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}"

    return MARKED.sub(table, text)


@tool
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a file would change")
    args = parser.parse_args(argv)
    stale = 0
    for name in DOCUMENTS:
        path = ROOT / name
        before = path.read_text()
        after = fill(before)
        if after == before:
            continue
        stale += 1
        if args.check:
            print(f"{name} is not what benchmarks/ says; run python tools/performance_tables.py", file=sys.stderr)
        else:
            path.write_text(after)
            print(f"wrote {name}")
    return int(args.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
