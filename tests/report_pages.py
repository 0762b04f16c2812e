"""Pages of reports, the elements in them, and data whose names must not run as a script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd.data import BoxDataset, open_dataset

EVIL = "<script>alert(1)</script>"
NAMES = (EVIL, "\"><img src=x onerror='alert(2)'>", "{{ 7 * 7 }}", "\u2028</style>&amp;\\")
# The report shows the folder and the name, joined by a slash: this is a whole element.
PICTURE = "\"'<script>alert(3)<", "script><b onclick=alert(4)>&.png"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = ("meta", "input", "br", "link", "img")
RATIO = 2  # width of a picture divided by its height
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")


class Page(HTMLParser):
    """The elements of a page: each with its attributes and the text directly in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        assert not self.open, "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.elements[self.open[-1]][2].append(data)

    def all(self, tag: str, kind: str = "") -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements with a tag, and a class if one is given."""
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and (not kind or kind in (attributes.get("class") or "").split())
        ]


def write_data(root: Path, n: int = 8) -> BoxDataset:
    """Pictures whose folder, names and classes have characters that are special in HTML."""
    (root / PICTURE[0]).mkdir(parents=True)
    images = []
    for i in range(n):
        name = f"{PICTURE[0]}/{i}{PICTURE[1]}"
        blocks = np.random.default_rng(i).integers(0, 255, (4, 4 * RATIO, 3), np.uint8)
        Image.fromarray(blocks.repeat(100, 0).repeat(100, 1)).save(root / name)
        images.append({"id": i, "file_name": name, "width": 400 * RATIO, "height": 400})
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    rows = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9]}]
    content = {"images": images, "categories": categories, "annotations": rows}
    (root / "truth.json").write_text(json.dumps(content))
    return open_dataset(root)


def assert_nothing_runs(text: str) -> Page:
    """Asserts that a page has only its own script, whatever the data is called, and returns the page."""
    page = Page(text)
    scripts = page.all("script")
    assert [attributes for attributes, _ in scripts] == [{"type": "application/json", "id": "metrics"}, {}]
    for name in (EVIL, "<img", "<b ", "alert(3)<script", "</style>&"):
        assert name not in text
    assert not [key for _, attributes, _ in page.elements for key in attributes if key.startswith("on")]
    assert {tag for tag, _, _ in page.elements}.isdisjoint({"img", "b", "iframe", "object", "embed", "link"})
    assert not re.search("[<>&]", scripts[0][1])
    policy = next(a["content"] or "" for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy  # and no other script
    return page


def assert_needs_no_other_file(text: str) -> None:
    """Asserts that a page refers to nothing outside of it."""
    assert not re.search(r"https?:|url\(|@import|//[\w-]+\.\w", text)
    for tag, attributes, _ in Page(text).elements:
        for key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/jpeg;base64,")), (tag, key)


def in_browser(path: Path, profile: Path) -> Page:
    """The page after its script has run in a browser."""
    options = "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"
    done = subprocess.run([str(BROWSER), *options, path.as_uri()], capture_output=True, text=True, timeout=120)
    return Page(done.stdout.partition("<html")[1] + done.stdout.partition("<html")[2])
