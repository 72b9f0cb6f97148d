"""docs/scans.md shows every order."""
import re
from pathlib import Path

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
