"""The project's Markdown pages, taken apart: code blocks, command lines, headings and links.

A code block that no test runs or checks has a comment `<!-- not run: REASON -->` above it.
"""
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels" / "README.md",
         *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->$")
_HEADING = re.compile(r"^(#+) (.*?)$")
_LINK = re.compile(r"`[^`\n]*`|!?\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)\)")
_LOOP = re.compile(r"^for (\w+) in (\S+).*; do$")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        line: number of its first line of code, from 1.
        language: first word after the fence; "" for an indented block.
        text: the code, without common indentation.
        reason: why it is neither run nor checked; "" if it is.
    """

    line: int
    language: str
    text: str
    reason: str


@dataclass(frozen=True)
class Page:
    """A page: its code blocks, and the lines outside of them."""

    name: str
    blocks: tuple[Block, ...]
    prose: tuple[tuple[int, str], ...]

    @property
    def python(self) -> list[Block]:
        """What is run."""
        return [block for block in self.blocks if block.language == "python" and not block.reason]

    @property
    def commands(self) -> list[tuple[int, list[str]]]:
        """Lines and words of the command lines; what follows `<<'EOF'` is one last word."""
        return [command for block in self.blocks if block.language in ("", "bash") and not block.reason
                for command in commands_of(block)]

    @property
    def anchors(self) -> set[str]:
        """What links into the page may name, by GitHub's rules."""
        found: dict[str, int] = {}
        for _, line in self.prose:
            heading = _HEADING.match(line)
            if heading:
                found[anchor(heading[2])] = found.get(anchor(heading[2]), 0) + 1
        return {name if i == 0 else f"{name}-{i}" for name, count in found.items() for i in range(count)}

    @property
    def links(self) -> list[tuple[int, str]]:
        """Lines and targets of links and pictures."""
        text = "\n".join(line for _, line in self.prose)
        return [(self.prose[text.count("\n", 0, match.start())][0], match[1])
                for match in _LINK.finditer(text) if match[1]]

    def code_spans(self, tables: bool = True) -> set[str]:
        """Inline code, that of tables too or not; one that a line ends in goes on in the next."""
        lines = [line for _, line in self.prose if tables or not line.startswith("|")]
        paragraphs = "\n".join(lines).split("\n\n")
        return {" ".join(span.split()) for text in paragraphs for span in re.findall(r"`([^`]+)`", text)}


def anchor(heading: str) -> str:
    """GitHub's anchor for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def read_page(name: str) -> Page:
    """Takes a page of the repository apart."""
    lines = (ROOT / name).read_text(encoding="utf-8").split("\n")
    blocks, prose = [], []
    reason, i = "", 0
    while i < len(lines):
        end, language = _block_end(lines, i)
        if end == i:
            line = lines[i]
            declared = _NOT_RUN.match(line.strip())
            reason = declared[1] if declared else reason if not line.strip() else ""
            prose.append((i + 1, line))
            i += 1
            continue
        first, last = (i + 1, end - 1) if language is not None else (i, end)
        blocks.append(Block(first + 1, language or "", dedent("\n".join(lines[first:last])), reason))
        reason, i = "", end
    return Page(name, tuple(blocks), tuple(prose))


def _block_end(lines: list[str], i: int) -> tuple[int, str | None]:
    """Line after the block that begins at line i (i where none does), and a fenced block's language."""
    fence = re.match(r"^ *```(\S*)", lines[i])
    if fence:
        return next(j for j in range(i + 1, len(lines)) if lines[j].strip() == "```") + 1, fence[1]
    if not lines[i].startswith("    ") or (i and lines[i - 1].strip()):
        return i, None
    end = i
    for j in range(i, len(lines)):
        if lines[j].startswith("    "):
            end = j + 1
        elif lines[j].strip():
            break
    return end, None


def commands_of(block: Block) -> list[tuple[int, list[str]]]:
    """Lines and words of a block's command lines. The first round of a loop stands for all."""
    lines = block.text.split("\n")
    found, i = [], 0
    variables: dict[str, str] = {}
    while i < len(lines):
        start, line = i, lines[i].strip()
        while line.endswith("\\"):
            i += 1
            line = f"{line[:-1]} {lines[i].strip()}"
        i += 1
        here = re.search(r" <<'(\w+)'$", line)
        if here:
            end = lines.index(here[1], i)
            text, line, i = "\n".join(lines[i:end]), line[:here.start()], end + 1
        # comments, and what stands in a second column
        line = re.sub(r"( {2,}#.*| {9,}.*)$", "", line)
        loop = _LOOP.match(line)
        if loop:
            variables[loop[1]] = loop[2]
        for variable, value in variables.items():
            line = line.replace(f"${variable}", value)
        words = shlex.split(line, comments=True)
        if words and not loop and words != ["done"]:
            found.append((block.line + start, [*words, text] if here else words))
    return found


def run_blocks(name, folder, blocks):
    """What Python blocks of a page print when they run one after the other: {line of the page: texts}."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "page_runner.py"], cwd=folder, capture_output=True, text=True,
        input=json.dumps({"file": str(ROOT / name), "blocks": [[block.line, block.text] for block in blocks]}),
        env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    printed: dict[int, list[str]] = {}
    for line, text in json.loads(done.stdout):
        printed.setdefault(line, []).append(text)
    return printed
