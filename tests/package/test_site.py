"""The built site loads nothing from other hosts, and its links lead somewhere."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
ZENSICAL = shutil.which("zensical", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
# Attributes by which a page loads something, unlike a link that a reader follows.
LOADING = {**dict.fromkeys(("script", "img", "iframe", "source", "video", "audio"), "src"), "object": "data"}

pytestmark = [
    pytest.mark.tenth,
    pytest.mark.skipif(ZENSICAL is None, reason="needs the extra `docs`"),
]


class Page(HTMLParser):
    """What a page loads, the links that it offers, and the ids that links can name."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        self.classes |= set(values.get("class", "").split())
        if tag in LOADING and LOADING[tag] in values:
            self.loads.append(values[LOADING[tag]])
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values["href"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, in a temporary folder."""
    folder = tmp_path_factory.mktemp("site")
    program = f"import generate, pathlib; generate.write_site(pathlib.Path({str(folder / 'docs')!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT / "docs", check=True)
    settings = (ROOT / "zensical.toml").read_text()
    settings = settings.replace('"build/docs"', '"docs"').replace('"build/site"', '"site"')
    settings = settings.replace('"src"', f'"{ROOT / "src"}"').replace('"docs/api_', f'"{ROOT / "docs" / "api_"}')
    (folder / "zensical.toml").write_text(settings)
    assert ZENSICAL
    done = subprocess.run([ZENSICAL, "build", "--strict"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_pages_load_nothing_from_another_host(site: Path, pages: dict[Path, Page]):
    assert len(pages) > 50
    foreign = {load for page in pages.values() for load in page.loads if urlsplit(load).netloc}
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        foreign |= set(re.findall(r"""(?:url\(|@import\s)["']?(https?:)?//[^"')]+""", text))
    assert not foreign


def test_no_page_makes_the_script_fetch_a_library(pages: dict[Path, Page]):
    """The theme's script fetches libraries from another host for pages with these classes."""
    assert not {name for page in pages.values() for name in page.classes & {"mermaid", "glightbox", "pyodide"}}


def test_every_internal_link_leads_to_a_page_and_a_heading(site: Path, pages: dict[Path, Page]):
    broken: list[str] = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            is_missing = not target.exists()
            fragment = unquote(parts.fragment)
            if is_missing or (fragment and target in pages and fragment not in pages[target].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_the_references_are_complete(site: Path):
    cli = (site / "reference" / "cli.html").read_text()
    settings = (site / "reference" / "settings.html").read_text()
    api = (site / "reference" / "api.html").read_text()
    assert "puna raise" in cli and "--strict-fields" in cli
    assert "optim.lr" in settings and "≤" in settings
    assert "LocalCompleter" in api and "run_recipe" in api
