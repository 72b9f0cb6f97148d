"""The quick start as a reader follows it: commands and Python in the order of the page, in a folder of their own.

    python -m tests.support.quickstart FOLDER --results-file benchmarks/quickstart.csv

says how long each section took; FOLDER must not exist. The installation is left out: it is a matter of the network.
"""
import argparse
import csv
import datetime
import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

import vmamba
from tests.support.pages import ROOT, commands_of, read_page, run_blocks
from vmamba.env import processor_name

PAGE = "docs/quickstart.md"
SHORT = ("--epochs", "1", "--warmup-epochs", "0")
COLUMNS = ("section", "seconds", "cpu_seconds", "date", "command", "device", "torch", "vmamba")


def follow(folder, short=False):
    """Does what the page says.

    Args:
        folder: Where, an empty folder; the tools and configurations are linked into it.
        short: Train for one epoch only.

    Returns:
        Seconds of each section, of the clock and of the processors, and what the Python printed, by the line.
    """
    for name in ("tools", "configs"):
        (folder / name).symlink_to(ROOT / name)
    found = read_page(PAGE)
    headings = [(line, text.removeprefix("## ")) for line, text in found.prose if text.startswith("## ")]
    times, printed = {}, {}
    for block in found.blocks:
        if block.reason:
            continue
        section = [text for line, text in headings if line < block.line][-1]
        begin, begin_cpu = time.perf_counter(), _cpu_seconds()
        if block.language == "python":
            printed |= run_blocks(PAGE, folder, [block])
        elif not _run(block, folder, short):
            continue
        wall, cpu = times.get(section, (0.0, 0.0))
        times[section] = wall + time.perf_counter() - begin, cpu + _cpu_seconds() - begin_cpu
    return times, printed


def _run(block, folder, short):
    """Runs the commands of a block but for the installation's; how many there were."""
    count = 0
    for line, (program, *words) in commands_of(block):
        if program != "python" or words[0] == "-m":
            continue
        more = SHORT if short and words[0] == "tools/train.py" else ()
        given, words = (words[1], words[:1]) if words[0] == "-" else ("", words)
        done = subprocess.run(
            [sys.executable, *words, *more], cwd=folder, input=given, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])})
        assert done.returncode == 0, f"{PAGE}, line {line}: {done.stderr}"
        count += 1
    return count


def _cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    """Follows the page and appends a row a section to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to follow it")
    parser.add_argument("--results-file", type=Path, required=True, metavar="CSV", help="append the results to it")
    args = parser.parse_args()
    args.folder.mkdir()
    times, _ = follow(args.folder.resolve())
    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "command": shlex.join(["python", "-m", "tests.support.quickstart", "FOLDER", *sys.argv[2:]]),
        "device": f"{processor_name()}, {os.cpu_count()} cores", "torch": torch.__version__,
        "vmamba": vmamba.__version__}
    with args.results_file.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        for section, (wall, cpu) in times.items():
            writer.writerow({"section": section, "seconds": f"{wall:.0f}", "cpu_seconds": f"{cpu:.0f}", **about})
            print(f"{section}: {wall:.0f} s, {cpu:.0f} s of processors")


if __name__ == "__main__":
    main()
