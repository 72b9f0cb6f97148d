"""What `make docs` adds to mkdocs: pages and sections from outside docs/, links that leave it, equations as MathML.

The Markdown files are written for the repository, where links are relative to the file. On the site

* the files of `OUTSIDE` are pages as well;
* a comment `<!-- include: README.md#models -->` stands for that section of that file;
* links to files that are no pages keep their text only;
* equations between `$` or `$$` become MathML, which browsers draw without a script.
"""
import html
import posixpath
import re
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
# file of the repository -> its page
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "kernels/README.md": "kernels.md"}

_FENCE = re.compile(r"^ *```")
_HEADING = re.compile(r"^(#+) (.*)$")
_INCLUDE = re.compile(r"^<!-- include: (\S+?)#(\S+) -->$", re.MULTILINE)
# an inline code span, which is left alone, or a link or picture
_LINK = re.compile(r"`[^`\n]*`|(!?\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\])\(([^)\s]+)\)")
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

slug = slugify(case="lower")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Includes sections, and turns links between files into links between pages."""
    source = next((file for file, name in OUTSIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    parts = _INCLUDE.split(relink(markdown, source))
    for i in range(1, len(parts), 3):
        parts[i:i + 2] = [relink(section(parts[i], parts[i + 1]), parts[i]), ""]
    return "".join(parts)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces what the extension arithmatex found by MathML."""
    return _EQUATION.sub(
        lambda match: convert(html.unescape(match[2]).strip(), display="block" if match[1] == "div" else "inline"),
        content)


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Markdown with the text outside of code blocks changed."""
    parts: list[str] = []
    fenced = False

    def is_code(line: str) -> bool:
        nonlocal fenced
        fence = bool(_FENCE.match(line))
        inside, fenced = fenced, fenced ^ fence
        return inside or fence or line.startswith("    ")

    for code, lines in groupby(markdown.split("\n"), is_code):
        text = "\n".join(lines)
        parts.append(text if code else change(text))
    return "\n".join(parts)


def section(file: str, anchor: str) -> str:
    """A section of a file of the repository, with its heading.

    Raises:
        ValueError: the file has no such heading.
    """
    found: list[str] = []
    level, fenced = 0, False
    for line in (ROOT / file).read_text(encoding="utf-8").split("\n"):
        fenced ^= bool(_FENCE.match(line))
        heading = None if fenced else _HEADING.match(line)
        if heading and level and len(heading[1]) <= level:
            break
        if heading and not level and slug(heading[2], "-") == anchor:
            level = len(heading[1])
        if level:
            found.append(line)
    if not found:
        raise ValueError(f"{file} has no section {anchor!r}")
    return "\n".join(found)


@cache
def sections() -> dict[tuple[str, str], str]:
    """(file, anchor) of each section that a page includes, and the page."""
    return {
        (file, anchor): page.name for page in sorted((ROOT / "docs").glob("*.md"))
        for file, anchor in _INCLUDE.findall(page.read_text(encoding="utf-8"))}


def relink(markdown: str, source: str) -> str:
    """Markdown of the file `source` with links as the site needs them.

    Raises:
        ValueError: a link to a file that does not exist.
    """
    folder = posixpath.dirname(source)

    def change(match: re.Match) -> str:
        text, target = match[1], match[2]
        if text is None or target.startswith(("#", "http://", "https://", "mailto:")):
            return match[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if not (ROOT / path).exists():
            raise ValueError(f"{source} links to {path}, which does not exist")
        page = site_name(path, anchor)
        if page is None:
            return text[1:-1]
        return f"{text}({page}{'#' if anchor else ''}{anchor})"

    return outside_code(markdown, lambda text: _LINK.sub(change, text))


def site_name(path: str, anchor: str = "") -> str | None:
    """Where the site has a file of the repository, None where it has not."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return OUTSIDE.get(path) or sections().get((path, anchor))
