"""Write `docs/merging.md`: the page's text from `merging.md` beside this script, the rules from their table.

Usage: python docs/scripts/merge_rules.py [--check]     --check writes nothing and exits 1 where the page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from pages import ROOT, put

from holdfast.methods.merging.rules import RULES

PAGE = ROOT / "docs" / "merging.md"
TEXT = Path(__file__).with_name("merging.md")


def page() -> str:
    """The page as it should be."""
    lines = [f"| `{rule.name}` | {rule.summary} | {rule.paper} |" for rule in RULES.values()]
    made = "<!-- Written by docs/scripts/merge_rules.py; the text is in docs/scripts/merging.md. -->"
    return f"{made}\n{TEXT.read_text(encoding='utf-8').replace('{rules}', chr(10).join(lines))}"


if __name__ == "__main__":
    sys.exit(put(PAGE, page()))
