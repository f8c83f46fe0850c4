"""A page in a real browser, headless: what it says on its console, and how it is laid out."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"),
)
MEASURE = """
window.onload = () => {
  document.getElementById("found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const size = element => { const box = element.getBoundingClientRect(); return [box.width, box.height]; };
    return {
      width: frame.contentWindow.innerWidth,
      overflow: root.scrollWidth - frame.contentWindow.innerWidth,
      pictures: [...page.querySelectorAll("figure svg")].map(size),
      rasters: [...page.querySelectorAll("figure svg image")].map(size),
      labels: [...page.querySelectorAll("figure svg text")].map(text =>
        parseFloat(page.defaultView.getComputedStyle(text).fontSize) * Math.hypot(text.getCTM().a, text.getCTM().b)),
      words: page.body.innerText,
    };
  }));
};
"""


def look(page: Path, widths: tuple[int, ...], scratch: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What the page is like at each width, and the lines on the console."""
    assert CHROMIUM
    text = html.escape(page.read_text(encoding="utf-8"))
    frames = "".join(f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{text}"></iframe>' for width in widths)
    outer = scratch / "outer.html"
    outer.write_text(f'<!doctype html><meta charset="utf-8">{frames}<pre id="found"></pre><script>{MEASURE}</script>', "utf-8")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={scratch / 'profile'}", "--dump-dom", f"file://{outer}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found and found[1], result.stderr
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console
