"""The documentation as a site: it builds without warnings, its links lead somewhere, and it needs no network."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.documents import DOCUMENTS, ROOT

LOADED = {"src", "srcset", "poster", "data", "action", "background"}
"""Attributes whose address a browser requests by itself; that of a link to a style sheet is also requested."""


def slugs(markdown: str) -> set[str]:
    """The names of all headings, as a forge derives them: lower case, hyphens for spaces, no punctuation."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_the_documents_lead_to_files_and_headings(path: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if not urlsplit(target).scheme:
            linked = (path.parent / file) if file else path
            assert linked.exists(), target
            assert not anchor or anchor in slugs(linked.read_text()), target


class Page(HTMLParser):
    """Collects what a page of the site links to, what a browser loads with it, and the names of its elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        self.loaded += [value for name, value in values.items() if name in LOADED]
        if tag in {"link", "use"}:
            self.loaded.append(values.get("href", ""))
        elif "href" in values:
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason="needs pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stderr) == (0, "")
    return out


def pages(site: Path) -> Iterator[tuple[Path, Page]]:
    """Yield all pages; a search page and a list of names are among them."""
    paths = sorted(site.rglob("*.html"))
    assert len(paths) > 15
    yield from ((path, Page(path)) for path in paths if "_downloads" not in path.parts)


@pytest.mark.documents
def test_the_site_has_every_document(site: Path) -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert (site / "docs" / f"{path.stem}.html").is_file(), path


@pytest.mark.documents
def test_links_within_the_site_lead_to_pages_and_headings(site: Path) -> None:
    found = dict(pages(site))
    for path, page in found.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or not link:
                continue
            linked = (path.parent / unquote(address.path)).resolve() if address.path else path
            assert linked.is_file(), f"{path}: {link}"
            if linked in found:
                assert unquote(address.fragment) in found[linked].ids, f"{path}: {link}"


@pytest.mark.documents
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for path, page in pages(site):
        for address in page.loaded:
            assert not urlsplit(address).netloc, f"{path}: {address}"
    for path in site.rglob("*.css"):
        for address in re.findall(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", path.read_text()):
            assert not urlsplit("".join(address)).netloc, f"{path}: {address}"


@pytest.mark.documents
def test_the_python_reference_has_every_public_name(site: Path) -> None:
    import cnnjob

    ids = Page(site / "docs" / "python-api.html").ids
    assert {f"cnnjob.{name}" for name in cnnjob.__all__} - ids == set()
