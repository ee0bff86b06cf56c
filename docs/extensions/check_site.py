"""Sphinx extension that checks the built site. Broken links, and files that a page loads from the network, are warnings."""

import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


class Page(HTMLParser):
    """A page's anchors, its links, and the files that a browser loads to show it."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.loaded = {""}, set[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if "href" in values:
            (self.loaded if tag == "link" else self.links).add(values["href"])
        if "src" in values:
            self.loaded.add(values["src"])


def problems(folder: Path) -> list[str]:
    """One line per link to a missing file or anchor, and per file that a page loads from the network."""
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        for link in sorted(page.links | page.loaded):
            url = urlsplit(link)
            if url.scheme == "data":
                continue
            if url.scheme or url.netloc:  # an external link is not checked: that would need a network
                found += [f"{name} loads {link}; the site must work offline"] * (link in page.loaded)
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.is_file():
                found.append(f"{name} links to {link}, which does not exist")
            elif target in pages and unquote(url.fragment) not in pages[target].anchors:
                found.append(f"{name} links to {link}, but there is no such anchor")
    return found


def check(app: Sphinx, error: Exception | None) -> None:
    """Copy the home page to index.html, which browsers and servers open first, and report the site's problems."""
    if error is None and app.builder.name == "html":
        site = Path(app.outdir).resolve()
        shutil.copy(site / f"{app.config.root_doc}.html", site / "index.html")
        for problem in problems(site):
            logger.warning(problem, type="site")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True}
