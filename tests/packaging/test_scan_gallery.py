"""docs/scans.md shows every order, and its examples run."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
import show_scan

from vmamba.scans import list_scans

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scans.md").read_text()


def test_every_order_is_named():
    assert [name for name in list_scans() if f"`{name}`" not in PAGE] == []


def test_every_picture_is_shown_and_exists():
    shown = re.findall(r"!\[(\w+)\]\(images/scan_(\w+)\.png\)", PAGE)
    assert all(label == file for label, file in shown)
    assert sorted(file for _, file in shown) == sorted([*show_scan.gallery(), *show_scan.solid_gallery()])
    files = {path.stem.removeprefix("scan_") for path in (ROOT / "docs" / "images").glob("scan_*.png")}
    assert files == {file for _, file in shown}


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_example_runs(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([4, 196])" in done.stdout or "torch.Size([1, 1000])" in done.stdout
