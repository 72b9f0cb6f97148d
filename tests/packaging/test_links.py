"""Links between the pages of the repository lead somewhere: to files that exist and headings that they have."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "kernels").rglob("*.md"),
                *(ROOT / "model_cards").glob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?\)")


def without_code(text):
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    """Of the headings of a page, as GitHub makes them, and those written as HTML."""
    text = without_code(path.read_text())
    found, seen = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)), {}
    for heading in re.findall(r"^#{1,6} +(.*?) *#* *$", text, re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = seen.setdefault(slug, 0)
        seen[slug] += 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def dead_links(path):
    """Links of a page to files and headings that are not there; addresses of the web are left alone."""
    dead = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", without_code(path.read_text()))):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        inside = linked.is_relative_to(ROOT) and linked.exists()
        if not inside or (anchor and linked.suffix == ".md" and anchor not in anchors(linked)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    assert dead_links(path) == []


def test_dead_links_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A `name`, and more\n\n## Twice\n\n## Twice\n\n```\n# not a heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Own heading\n[a](#own-heading) [b](other.md) [c](other.md#a-name-and-more) [d](other.md#twice-1)\n"
        "[e](https://example.org/x#y) `[f](code.md)`\n\n```\n[g](code.md)\n```\n"
        "[h](#missing) [i](gone.md) [j](other.md#not-a-heading) ![k](gone.png) [l](other.md#twice-2) [m](../up.md)\n")
    assert dead_links(page) == [
        "#missing", "gone.md", "other.md#not-a-heading", "gone.png", "other.md#twice-2", "../up.md"]
