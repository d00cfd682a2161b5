"""A page in headless Chromium: what it measures of itself at several widths, and pictures of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
DARK = "--blink-settings=preferredColorScheme=0"
SECONDS = 120

SCRIPT = """
const ask = frame => {
  const page = frame.contentDocument;
  page.querySelectorAll('details').forEach(part => part.open = true);
  const root = page.documentElement, body = frame.contentWindow.getComputedStyle(page.body);
  const outside = [...page.querySelectorAll('body *')].filter(part => !part.closest('.scroll, svg, pre'))
    .filter(part => part.getBoundingClientRect().right > root.clientWidth + 1).map(part => part.className);
  const right = part => { const text = page.createRange(); text.selectNodeContents(part);
                          return text.getBoundingClientRect().right; };
  const cut = [...page.querySelectorAll('caption')].filter(part => right(part) > root.clientWidth + 1)
    .map(part => part.innerText);
  return {client: root.clientWidth, cut, scroll: root.scrollWidth, background: body.backgroundColor, outside,
          requests: frame.contentWindow.performance.getEntriesByType('resource').length,
          charts: page.querySelectorAll('svg').length, text: page.body.innerText.length,
          smallest: [...page.querySelectorAll('body *')].filter(part => !part.closest('svg'))
            .reduce((least, part) => Math.min(least, parseFloat(frame.contentWindow.getComputedStyle(part).fontSize)),
                    Infinity)};
};
onload = () => {
  document.getElementById('found').textContent = JSON.stringify([...document.querySelectorAll('iframe')].map(ask));
};
"""


def chromium() -> str:
    """The browser's path; skips the test where none is installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium is installed")


def measure(pages: Sequence[str], widths: Sequence[int], *, dark: bool = False) -> list[dict[str, Any]]:
    """Lay each page out at each width, with every collapsed part open, and ask it for its sizes."""
    frames = "".join(
        f'<iframe style="width:{w}px;height:900px;border:0" srcdoc="{escape(html)}"></iframe>'
        for html in pages
        for w in widths
    )
    wrapper = f"<!doctype html><meta charset=utf-8>{frames}<pre id=found></pre><script>{SCRIPT}</script>"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "wrapper.html"
        page.write_text(wrapper, encoding="utf-8")
        flags = [*FLAGS, *([DARK] if dark else []), f"--user-data-dir={folder}/profile", "--dump-dom", page.as_uri()]
        done = subprocess.run([chromium(), *flags], capture_output=True, text=True, timeout=SECONDS, check=True)
    found = done.stdout.rpartition('<pre id="found">')[2].partition("</pre>")[0]
    return json.loads(unescape(found))  # type: ignore[no-any-return]
