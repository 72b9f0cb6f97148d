"""Benchmark the kernels: correctness first, then time and memory, one CSV row per case and pass.

python kernels/benchmarks/run.py --output kernels/benchmarks/results.csv
python kernels/benchmarks/run.py --case core --no-check
"""

import argparse
import csv
import datetime
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
import triton  # noqa: E402
from benchmarks.cases import CASES  # noqa: E402
from benchmarks.timing import copy_bandwidth, measure, peak_memory, special_function_rate  # noqa: E402

COLUMNS = [
    *("case", "pass", "median_ms", "p20_ms", "p80_ms", "least_bytes", "copy_bandwidth_percent", "exponentials"),
    *("special_function_percent", "saved_bytes", "peak_bytes", "device", "torch", "triton", "commit", "date"),
]


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def bench(name: str, check: bool, bandwidth: float, exponential_rate: float) -> list[dict]:
    """Rows of one case. Raises AssertionError before any timing if the kernels are wrong."""
    case = CASES[name]()
    if check:
        case.check()

    def both():
        case.forward(save=True)
        return case.backward()

    rows = []
    for which, call, least, exponentials in (
        ("forward", case.forward, case.bytes_forward, case.exponentials_forward),
        ("forward_saving", lambda: case.forward(save=True), case.bytes_forward, case.exponentials_forward),
        ("backward", case.backward, case.bytes_backward, 2 * case.exponentials_forward),
        ("both", both, case.bytes_forward + case.bytes_backward, 3 * case.exponentials_forward),
    ):
        case.forward(save=True)  # what the backward takes lives outside any graph
        time = measure(call)
        rows.append(
            {
                "case": name,
                "pass": which,
                "median_ms": round(time.median, 4),
                "p20_ms": round(time.low, 4),
                "p80_ms": round(time.high, 4),
                "least_bytes": least,
                "copy_bandwidth_percent": round(100 * least / bandwidth / time.median * 1e3, 1),
                "exponentials": exponentials,
                "special_function_percent": round(100 * exponentials / exponential_rate / time.median * 1e3, 1),
                "saved_bytes": case.saved,
                "peak_bytes": peak_memory(call),
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "triton": triton.__version__,
                "commit": _commit(),
                "date": datetime.date.today().isoformat(),
            }
        )
        print(
            f"{name:42} {which:15} {time.median:8.4f} ms  {rows[-1]['copy_bandwidth_percent']:5.1f} % of copy bandwidth"
        )
    return rows


def main() -> None:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--no-check", action="store_true", help="time without the comparison to the float64 loop")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    args = parser.parse_args()
    bandwidth, exponential_rate = copy_bandwidth(), special_function_rate()
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    rows = []
    for name in CASES:
        if args.case in name:
            rows += bench(name, not args.no_check, bandwidth, exponential_rate)
    if args.output:
        with args.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
