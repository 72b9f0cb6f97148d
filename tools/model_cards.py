#!/usr/bin/env python3
"""Write the model cards: model_cards/ARCHITECTURE.TAG.md for every registered configuration.

    python tools/model_cards.py            # writes those that changed, removes those of configurations that are gone
    python tools/model_cards.py --check    # exit code 1 where they are not what the code and benchmarks/ say

A card is made of the docstring of the model file (paper, origin and licence), the `timm` configuration (address of the
weights, published accuracies), what tools/_counting.py counts on the meta device, and the newest rows of benchmarks/.
Nothing is downloaded and no weight is made.
"""

import argparse
import sys

from _cards import Card, configurations
from _results import ROOT

from vmamba.errors import tool

FOLDER = ROOT / "model_cards"
COMMAND = "python tools/model_cards.py"


@tool
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a card would change")
    args = parser.parse_args(argv)
    changes = []
    names = configurations()
    for name in names:
        path = FOLDER / f"{name}.md"
        text = Card(name).text()
        if not path.is_file() or path.read_text() != text:
            changes.append(f"write {path.relative_to(ROOT)}")
            if not args.check:
                FOLDER.mkdir(exist_ok=True)
                path.write_text(text)
    for path in FOLDER.glob("*.md"):
        if path.stem not in names:
            changes.append(f"remove {path.relative_to(ROOT)}")
            if not args.check:
                path.unlink()
    print("\n".join(changes) or f"{len(names)} cards are up to date")
    if args.check and changes:
        print(f"the cards are not what the code says; run {COMMAND}", file=sys.stderr)
    return int(args.check and bool(changes))


if __name__ == "__main__":
    sys.exit(main())
