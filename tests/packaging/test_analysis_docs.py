"""docs/analysis.md: its example prints what it says, its commands parse, its pictures are there and small."""
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vmamba.analysis.cli import main, repair

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "analysis.md").read_text()
MOST_BYTES = 200_000


def test_example_prints_what_it_says():
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^print\(.*\) +# (.*)$", code, re.MULTILINE)
    assert done.stdout.splitlines() == promised != []


@pytest.mark.parametrize("line", re.findall(
    r"^ {4}python (tools/analyze\.py .*)$", PAGE.replace("\\\n", " "), re.MULTILINE))
def test_commands_parse(line):
    words = shlex.split(line)[1:]
    if words[0] == "repair":
        repair.parser().parse_args(words[1:])
    else:
        main.parser().parse_args(words)


def test_pictures_are_there_and_small():
    shown = re.findall(r"!\[[^]]+\]\((images/[^)]+)\)", PAGE)
    assert len(shown) >= 6
    for name in shown:
        assert (ROOT / "docs" / name).stat().st_size < MOST_BYTES, name
    own = {path.name for path in (ROOT / "docs" / "images").glob("analysis_*")}
    assert own == {Path(name).name for name in shown}
