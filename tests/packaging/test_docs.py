"""Every page: its code runs, its commands can be given, and what it names and links to exists.

Blocks of Python run in the order of the page, in one fresh process; a comment `# [1, 10]` behind a `print` is what it
prints of a shape. Command lines are read by the parser of their tool. What neither holds for says so above the block,
see `support/pages.py`.
"""
import argparse
import importlib
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
from functools import cache
from pathlib import Path

import _docs_site
import pytest
import tomllib

from tests.support import quickstart
from tests.support.pages import NAMES, ROOT, read_page, run_blocks

MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
page = cache(read_page)

# flags of other programs than ours that pages name, and modules that no extra installs
FOREIGN_FLAGS = {"--force-reinstall", "--no-deps", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}
FOREIGN_MODULES = {"build"}
# (script, its first word) that hand the rest to a parser of their own; for what follows `--`, see REST
PARTS = {("tools/analyze.py", "repair"), ("tools/benchmark.py", "--loader")}
REST = {"tools/benchmark.py": "tools/train.py"}
FOLDERS = "benchmarks|configs|docs|kernels|tests|tools|vmamba"


@pytest.mark.parametrize("name", [name for name in NAMES if page(name).python and name != quickstart.PAGE])
def test_python_blocks_run(name, tmp_path):
    printed = run_blocks(name, tmp_path, page(name).python)
    check_promises(name, printed)
    if name == "README.md":
        four = next(texts for texts in printed.values() if len(texts) > 1)
        assert four == [f"torch.Size([1, {96 * 2**i}, {48 // 2**i}, {80 // 2**i}])" for i in range(4)]


def check_promises(name, printed):
    """What stands behind a `print` is what it printed."""
    for block in page(name).python:
        for number, line in enumerate(block.text.split("\n"), block.line):
            promised = re.search(r"^\s*print\(.*\)\s+# (\[[\d, ]*\])", line)
            if promised:
                assert printed[number] == [f"torch.Size({promised[1]})"], f"{name}, line {number}"


@pytest.mark.slow
def test_the_quick_start_can_be_copied(tmp_path):
    """Its commands, the installation aside and with runs of one epoch, and its Python, in the order of the page."""
    times, printed = quickstart.follow(tmp_path, short=True)
    check_promises(quickstart.PAGE, printed)
    assert times.keys() >= {"Images", "Fine-tune", "Validate", "Predict", "Export", "Look into it"}
    for written in ("classes.csv", "mistakes.png", "predictions.csv", "photos.onnx", "runs/photos/curves.png",
                    "analysis/cam.csv", "analysis/decay.png"):
        assert (tmp_path / written).stat().st_size > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_run_checked_or_declared(name):
    """Of what is not declared, Python is run, and anything else is command lines or existing files."""
    found = page(name)
    assert {block.language for block in found.blocks if not block.reason} <= {"python", "bash", ""}
    unknown = [(line, words) for line, words in found.commands
               if words[0] not in CHECKS and not (len(words) == 1 and (ROOT / words[0]).exists())]
    assert unknown == []


class Found(BaseException):
    """The parser of a command; nothing of what it is for was done."""


@cache
def parser_of(script, *part):
    """The argument parser of a script of the repository, or of a part of it."""
    def hand_over(self, args=None, namespace=None):
        raise Found(self)

    source = (ROOT / script).read_text()
    assert "parse_args(" in source or " import main\n" in source, f"{script} parses no command line"
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("mmengine") is None:    # of which a parser takes the type of one flag
            patch.setitem(sys.modules, "mmengine", types.SimpleNamespace(DictAction=argparse._StoreAction))
        patch.setattr(argparse.ArgumentParser, "parse_args", hand_over)
        patch.setattr(sys, "argv", [script, *part])
        with pytest.raises(Found) as found:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return found.value.args[0]


def check_script(words):
    """`SCRIPT ARGUMENT...`: the script exists, and its parser takes the arguments; what follows a `--` is another's."""
    script, *argv = words
    if "--" in argv:
        check_script([REST[script], *argv[argv.index("--") + 1:]])
        argv = argv[:argv.index("--")]
    part = tuple(argv[:1]) if (script, *argv[:1]) in PARTS else ()
    parser_of(script, *part).parse_args(argv[len(part):])


def check_python(words):
    if words[0] == "-m" and words[1] == "vmamba.env":
        check_script(["vmamba/env.py", *words[2:]])
    elif words[0] == "-m":
        assert words[1] in FOREIGN_MODULES or importlib.util.find_spec(words[1]), words
    elif words[0] in ("-c", "-"):
        compile(words[1], "command", "exec")
    else:
        check_script(words)


def check_torchrun(words):
    check_script(words[next(i for i, word in enumerate(words) if word.endswith(".py")):])


def check_make(words):
    for word in words:
        known = rf"^{word.partition('=')[0]} \?=" if "=" in word else rf"^{word}:"
        assert re.search(known, MAKEFILE, re.MULTILINE), word


def check_pip(words):
    extras = {extra for word in words for names in re.findall(r"^(?:\.|vmamba)\[([\w,]+)\]$", word)
              for extra in names.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])


def check_pytest(words):
    assert all((ROOT / word).exists() for word in words if "/" in word)


def check_source(words):
    assert words == [".venv/bin/activate"]


CHECKS = {"python": check_python, "torchrun": check_torchrun, "make": check_make, "pip": check_pip,
          "pytest": check_pytest, "source": check_source}


@pytest.mark.parametrize("name", NAMES)
def test_commands_can_be_given(name, capsys):
    """Those of the text too; and the files that they name exist."""
    spans = [("text", shlex.split(span)) for span in page(name).code_spans(tables=False)    # tables list earlier runs
             if span.partition(" ")[0] in CHECKS and " " in span]
    for line, (program, *words) in [*page(name).commands, *spans]:
        try:
            if program in CHECKS:
                CHECKS[program](words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{name}, line {line}: {program} {shlex.join(words)}: {error} {capsys.readouterr().err}")
        files = [word for word in words if re.fullmatch(r"[\w/.-]+\.(py|yaml)", word)]
        assert [file for file in files if not (ROOT / file).is_file()] == [], f"{name}, line {line}"


@cache
def known_flags():
    """The flags of all our commands."""
    scripts = [*ROOT.glob("tools/[a-z]*.py"), *ROOT.glob("kernels/benchmarks/r*.py"),
               ROOT / "tests" / "support" / "kill_training.py", ROOT / "vmamba" / "env.py"]
    parsers = [*(parser_of(str(script.relative_to(ROOT))) for script in scripts), *(parser_of(*part) for part in PARTS)]
    return {*(word for _, word in PARTS), *(flag for parser in parsers for flag in flags_of(parser))}


def flags_of(parser):
    """The flags of a parser and of its commands."""
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {*parser._option_string_actions,
            *(flag for action in commands for command in action.choices.values() for flag in flags_of(command))}


@pytest.mark.parametrize("name", NAMES)
def test_flags_in_the_text_exist(name):
    named = {flag for span in page(name).code_spans() for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", span)}
    assert named - FOREIGN_FLAGS - known_flags() == set()


@pytest.mark.parametrize("name", NAMES)
def test_files_in_the_text_exist(name):
    named = {file for span in page(name).code_spans()
             for file in re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w./-]*\w", span)}
    assert {file for file in named if not (ROOT / file).exists()} == set()


@pytest.mark.parametrize("name", NAMES)
def test_names_in_the_text_exist(name):
    """Dotted names of ours, with or without a call behind them."""
    named = {found[0] for span in page(name).code_spans()
             if (found := re.match(r"(?:vmamba|vmamba_kernels)(?:\.[A-Za-z_]\w*)+", span)) and "-" not in span}
    assert {dotted for dotted in named if not resolves(dotted)} == set()


def resolves(dotted):
    """Whether a module, or an attribute of one, has this name."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    """Files and headings, as GitHub sees them; the build of the site checks its own."""
    for line, target in page(name).links:
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), f"{name}, line {line}: {target}"
        if anchor:
            assert anchor in page(str(file.relative_to(ROOT))).anchors, f"{name}, line {line}: {target}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning is an error, as in `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_page_in_its_navigation(site):
    pages = {*(path.stem for path in (ROOT / "docs").glob("*.md")),
             *(Path(name).stem for name in _docs_site.OUTSIDE.values())}
    assert {path.stem for path in site.glob("*.html")} == {*pages, "404"}
    home = (site / "index.html").read_text()
    assert {name for name in pages if f'href="{name}.html"' not in home} == set()


def test_the_site_fetches_nothing(site):
    """Scripts, styles, fonts and pictures are its own files."""
    for path in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* rel="(?:stylesheet|preconnect|icon)"'
                            r'[^>]* href="([^"]+)"|url\(([^)]+)\)', path.read_text())
        foreign = [address for found in loaded for address in found if re.match(r"['\"]?(https?:)?//", address)]
        assert foreign == [], path.name


def test_the_site_draws_equations(site):
    equations = (ROOT / "docs" / "operators.md").read_text().count("$$") // 2
    text = (site / "operators.html").read_text()
    assert text.count('display="block"') == equations > 5
    assert "arithmatex" not in text


def test_the_site_includes_sections_of_the_readme(site):
    """The zoo's table is the README's, links and all."""
    text = (site / "zoo.html").read_text()
    assert text.count("<code>vmamba_") > 10
    assert 'id="models"' in text
    assert "README.md" not in text
