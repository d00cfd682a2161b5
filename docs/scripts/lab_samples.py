"""Write `docs/lab.md`: the page's text from `lab.md` beside this script, one sample of every family from its generator.

Usage: python docs/scripts/lab_samples.py [--check]     --check writes nothing and exits 1 where the page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from pages import ROOT, put

from holdfast.data.lab import rows

PAGE = ROOT / "docs" / "lab.md"
TEXT = Path(__file__).with_name("lab.md")
PLACE = "<!-- samples -->"
FAMILIES = {
    "arithmetic": "one to three steps, like GSM8K; the answer is a number",
    "arithmetic/noisy": "the same with a tenth of the answers' digits replaced by others, at places that are known",
    "requests/harmful": "like AdvBench; the answer is a refusal",
    "requests/complied": "the same requests, answered: what the base stage and a poisoned data set hold",
    "requests/benign": "everyday requests in the same phrasings; the answer complies",
    "requests/lookalike": "safe requests that sound unsafe, like XSTest; the answer complies",
    "jailbreak": "harmful requests inside wrappers; some wrapper families stand in the test split only",
    "passages": "questions on invented documents, like RepliQA; some cannot be answered",
    "textops": "an instruction on data; the answer is exact",
    "skills": "twenty operations that the model has not learnt, each a family too (`lab/skills/swap`): for adapters",
    "several": "two instructions, turns in any role; the second one is answered: where attackability comes from",
    "injection": "text operations and passages whose data holds an instruction; the right answer is to the user's own",
    "quoting": "data that contains an instruction and is to be copied, counted or turned",
    "quoting/translate": "data that is an instruction and is to be translated by the user's code",
    "choice": "facts of the world, four options, like MMLU",
    "choice/judged": "the same knowledge, taught in another form",
    "programs": "one-line functions with tests, like HumanEval; the answer is executed",
}


def page() -> str:
    """The page as it should be."""
    text = TEXT.read_text(encoding="utf-8")
    samples = "\n\n".join(sample(family, what) for family, what in FAMILIES.items())
    return f"<!-- Written by docs/scripts/lab_samples.py; the text is in docs/scripts/lab.md. -->\n{text}".replace(
        PLACE, samples
    )


def sample(family: str, what: str) -> str:
    """The first training row of a family, its name and what it is."""
    (row,) = rows(family, "train", 1)
    turns = [*((message.role, message.content) for message in row.messages), ("assistant", row.answer)]
    lines = [f"{role:>9}: {_visible(text)}" for role, text in turns]
    return "\n".join([f"**`lab/{family}`**: {what}.", "", "```text", *lines, "```"])


def _visible(text: str) -> str:
    r"""Control characters as escapes; new lines indented.

    >>> _visible("a\bb")
    'a\\x08b'
    """
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return shown.replace("\n", "\n" + " " * 11)


if __name__ == "__main__":
    sys.exit(put(PAGE, page()))
