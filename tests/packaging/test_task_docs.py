"""The pages on tasks: their examples run, and their commands name files and flags that exist."""
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("change_detection", "pretraining", "video")}


@pytest.mark.parametrize("page", PAGES)
def test_example_runs(page):
    code = re.search(r"```python\n(.*?)```", PAGES[page], re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"# \[([\d, ]+)\]", code)
    assert done.stdout.splitlines() == [f"torch.Size([{shape}])" for shape in promised]


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    lines = re.findall(r"^ {4}(python .*?)(?: {2,}#.*)?$", PAGES[page].replace("\\\n", " "), re.MULTILINE)
    assert lines
    for line in lines:
        script, *words = shlex.split(line, comments=True)[1:]
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", done.stdout))
        assert {word for word in words if word.startswith("-")} <= known
        assert all((ROOT / word).is_file() for word in words if word.endswith(".yaml"))
