"""Executed notebooks to pages: prose, folded code and outputs, with everything foreign cleaned in one place.

A page is made in three steps: `blocks` reads the notebook's cells, templates/article.html sets them, `build` tidies the
result (links, headings, tables, glossary terms). Whatever comes as HTML from a cell passes `clean` first: what it does not
name does not exist, so no script, style, handler, frame or picture of an output reaches a page. Pictures are those of
image outputs alone, written as files.
"""

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import bleach
import nbformat
from bs4 import BeautifulSoup, NavigableString, Tag
from inoculation import figures, store
from markupsafe import Markup
from nbconvert.filters import Highlight2HTML, markdown2html, strip_ansi

from readalong import pages

TAGS = {
    *("h1", "h2", "h3", "h4", "p", "div", "span", "br", "hr", "blockquote", "pre", "code", "ul", "ol", "li", "dl", "dt", "dd"),
    *("a", "b", "strong", "i", "em", "sub", "sup", "small", "mark", "abbr", "del", "kbd"),
    *("table", "caption", "colgroup", "col", "thead", "tbody", "tfoot", "tr", "th", "td", "details", "summary"),
}
ATTRIBUTES = {"*": ["class", "id", "title", "data-claim"], "a": ["href"]}
ATTRIBUTES |= dict.fromkeys(["th", "td"], ["colspan", "rowspan", "scope", "headers"])
TOLD = re.compile(
    r"^(?:(\w+): )?(?:what follows is|the trained models are) (yours|reference)(?:[:,] (\d+) runs)?", re.MULTILINE
)
LENGTHS = {"long": 60, "phrase": 20}  # characters from which a table's cell is prose, or wraps badly when it is narrow
HEADINGS = ["h1", "h2", "h3", "h4"]


@dataclass(frozen=True)
class Term:
    """A word of the glossary: what it means, and other spellings."""

    word: str
    short: str
    also: tuple[str, ...]

    @property
    def slug(self) -> str:
        """Its id in glossary.html."""
        return slug(self.word)

    @property
    def spellings(self) -> set[str]:
        """How it may stand in a text: as written, or with a capital at the beginning of a sentence."""
        return {form for word in (self.word, *self.also) for form in (word, word[0].upper() + word[1:])}


def glossary() -> list[Term]:
    """The terms of data/glossary.yaml in their order; raises SettingError where the file is wrong."""
    file = store.read_yaml(store.DATA / "glossary.yaml")
    blocks = {word: file.take(word, store.Block).only("short", "also") for word in file}
    return [Term(word, b.take("short", str), tuple(b.get("also", ()))) for word, b in blocks.items()]


def slug(text: str) -> str:
    """A text as an id: lower case, hyphens between words."""
    return "-".join(re.findall(r"\w+", text.lower()))


@dataclass(frozen=True)
class Book:
    """A notebook, executed or not; `number` is what its name begins with, as 02."""

    name: str
    cells: list[Any]

    @property
    def number(self) -> str:
        """The number at the beginning of its name."""
        return self.name.split("_")[0]

    @cached_property
    def prose(self) -> BeautifulSoup:
        """All its text cells."""
        return markdown("\n\n".join(cell.source for cell in self.cells if cell.cell_type == "markdown"))

    @property
    def title(self) -> str:
        """Its first heading, or its name."""
        return self.prose.h1.get_text() if self.prose.h1 else self.name

    @property
    def question(self) -> str:
        """The paragraph that begins with `Question.`, else the first sentence; nothing where there is no text."""
        told = [paragraph.get_text() for paragraph in self.prose.find_all("p")]
        asked = [text.removeprefix("Question.").strip() for text in told if text.startswith("Question.")]
        return (asked or [sentence(text) for text in told] or [""])[0]

    def uses(self, term: Term) -> bool:
        """Whether a term stands in its text cells."""
        return bool(pattern(term.spellings).search(self.prose.get_text()))

    @property
    def outputs(self) -> list[Any]:
        """The outputs of all cells."""
        return [output for cell in self.cells for output in cell.get("outputs", ())]

    @property
    def failed(self) -> bool:
        """True where a cell ended in an error."""
        return any(output.output_type == "error" for output in self.outputs)

    @property
    def origins(self) -> dict[str, int]:
        """Whose numbers the outputs state (`yours`, `reference`), with how many runs; 0 where they do not say."""
        printed = "\n".join(output.text for output in self.outputs if output.output_type == "stream")
        told = dict.fromkeys(TOLD.findall(printed))
        return {whose: sum(int(n or 0) for _, of, n in told if of == whose) for whose in dict.fromkeys(of for _, of, _ in told)}


def pattern(spellings: Iterable[str]) -> re.Pattern[str]:
    """Whole words of these, the longest first; a line may break between two of them."""
    forms = "|".join(re.escape(form).replace(r"\ ", r"\s+") for form in sorted(spellings, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])({forms})(?![\w-])")


def read(path: Path) -> Book:
    """A notebook from its file; raises SettingError where it cannot be read."""
    try:
        return Book(path.stem, nbformat.read(path, as_version=4).cells)
    except (ValueError, KeyError, AttributeError) as error:
        raise store.SettingError(f"{path.name}: no notebook can be read from it ({error}); execute it again") from error


def origin(book: Book) -> str:
    """Whose numbers a notebook shows, in words; nothing where it does not say."""
    words = {"yours": "yours", "reference": "the reference’s"}
    told = [words[whose] + f" ({runs} runs)" * bool(runs) for whose, runs in book.origins.items()]
    return f"The numbers on this page are {' and '.join(told)}." if told else ""


def clean(html: str) -> BeautifulSoup:
    """Foreign HTML with nothing left but TAGS and ATTRIBUTES."""
    without = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", "", html)
    allowed = {"tags": TAGS, "attributes": ATTRIBUTES, "strip": True, "strip_comments": True}
    return BeautifulSoup(bleach.clean(without, **allowed), "html.parser")


def markdown(source: str) -> BeautifulSoup:
    """Markdown as clean HTML."""
    soup = clean(markdown2html(source))
    for anchor in soup.select("a.anchor-link"):
        anchor.decompose()
    return soup


def sentence(text: str) -> str:
    """The first sentence of a text."""
    return re.split(r"(?<=[.?!])\s", text.strip(), maxsplit=1)[0]


def blocks(book: Book, site: Path) -> Iterator[dict[str, Any]]:
    """What a page shows, in order, one `kind` each (prose, code, text, figure); writes the pictures into `images/`."""
    highlight = Highlight2HTML()
    heading, pictures = book.title, 0
    for cell in book.cells:
        if cell.cell_type == "markdown":
            prose = markdown(cell.source)
            heading = next((found.get_text() for found in reversed(prose.find_all(HEADINGS))), heading)
            yield {"kind": "prose", "html": _markup(prose)}
        elif cell.cell_type == "code":
            if cell.source.strip():
                yield {"kind": "code", "html": Markup(highlight(cell.source)), "lines": cell.source.count("\n") + 1}
            for before, output, after in zip([None, *cell.outputs], cell.outputs, [*cell.outputs[1:], None], strict=False):
                if picture := _picture(output):
                    pictures += 1
                    yield _figure(picture, _caption(after), heading, site, f"{book.name}-{pictures}")
                elif not (_picture(before) and _caption(output)):
                    yield _shown(output)


def _picture(output: Any) -> str:
    return output.get("data", {}).get("image/png", "") if output else ""


def _caption(output: Any) -> str:
    text = output.get("data", {}).get("text/markdown", "").strip() if output else ""
    return text[1:-1] if text.startswith("*") and text.endswith("*") else ""


def size(png: bytes) -> tuple[int, int]:
    """A PNG's width and height in pixels."""
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def _markup(soup: BeautifulSoup) -> Markup:
    return Markup(str(soup))


def _shown(output: Any) -> dict[str, Any]:
    """An output that is no picture as a block: HTML or Markdown cleaned, anything else as text."""
    data = output.get("data", {})
    if "text/html" in data:
        return {"kind": "prose", "html": _markup(clean(data["text/html"]))}
    if "text/markdown" in data:
        return {"kind": "prose", "html": _markup(markdown(data["text/markdown"]))}
    if output.output_type == "error":
        return {"kind": "text", "error": True, "text": strip_ansi("\n".join(output.traceback)) or output.evalue}
    printed = strip_ansi(output.get("text", data.get("text/plain", ""))).rstrip()
    # A progress bar overwrites its own line; what stands there in the end is what was shown.
    return {"kind": "text", "error": False, "text": re.sub(r"(?m)^.*\r(?=.)", "", printed)}


def _figure(picture: str, caption: str, heading: str, site: Path, name: str) -> dict[str, Any]:
    """A picture with its caption, whose first sentence describes it; without one it is named by the heading above it."""
    content = base64.b64decode(picture)
    store.write_whole(site / "images" / f"{name}.png", content)
    width, height = size(content)
    told = markdown(caption)
    if told.p:
        told.p.unwrap()
    alt = sentence(told.get_text().strip().removeprefix(f"{figures.mark(site.name)}. ")) or f"Figure: {heading}"
    facts = {"source": f"images/{name}.png", "width": width, "height": height, "alt": alt}
    return {"kind": "figure", **facts, "caption": _markup(told)}


def build(book: Book, site: Path, books: Iterable[str], terms: list[Term], around: dict[str, Book | None]) -> Path:
    """Write the page of an executed notebook into a site that has its claims already; returns its path.

    books: the names of all notebooks that have a page; around: the ones before and after this (`previous`, `next`).
    """
    article = pages.environment().get_template("article.html").render(blocks=blocks(book, site))
    soup = BeautifulSoup(article, "html.parser")
    own = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} | set(pages.NAVIGATION)
    _identify(soup)
    _link(soup, own | {f"{name}.html" for name in books})
    _link_claims(soup, own)
    _tidy_tables(soup)
    _link_terms(soup, terms)
    contents = [(heading["id"], heading.get_text()) for heading in soup.find_all("h2")]
    facts = {"book": book, "origin": origin(book), "contents": contents, "body": _markup(soup), **around}
    return pages.render(site, f"{book.name}.html", "book.html", **facts)


def _identify(soup: BeautifulSoup) -> None:
    """Give every heading an id, leave other ids only where something refers to them, and none twice."""
    wanted = {anchor["href"][1:] for anchor in soup.select('a[href^="#"]')}
    wanted |= {name for cell in soup.select("[headers]") for name in cell["headers"]}
    taken = {"", "main", "theme"}
    for tag in soup.find_all(True):
        name = tag.get("id") if tag.get("id") in wanted else ""
        if tag.name in HEADINGS:
            name = slug(tag.get_text())
            name = next(free for free in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if free not in taken)
        del tag["id"]
        if name not in taken:
            tag["id"] = name
            taken.add(name)


def _link(soup: BeautifulSoup, own: set[str]) -> None:
    """Point links between notebooks to their pages; what leads out of the site becomes text with the address beside it."""
    ids = {tag["id"] for tag in soup.select("[id]")}
    for anchor in soup.find_all("a"):
        address = unquote(anchor.get("href", ""))
        target, _, fragment = address.partition("#")
        page, part = target, fragment
        if target.endswith(".ipynb"):
            page, part = f"{Path(target).stem}.html", slug(fragment)
        if page in own:
            anchor["href"] = f"{page}#{part}" if part else page
        elif not target and {fragment, slug(fragment)} & ids:
            anchor["href"] = f"#{fragment if fragment in ids else slug(fragment)}"
        else:
            _unlink(anchor, address)


def _unlink(anchor: Tag, address: str) -> None:
    path = address.removeprefix("../")
    if re.match(r"https?:|[\w./-]+$", path) and path not in anchor.get_text():
        code = Tag(name="code")
        code.string = path
        anchor.insert_after(" (", code, ")")
    anchor.unwrap()


def _link_claims(soup: BeautifulSoup, own: set[str]) -> None:
    """Lead from whatever is marked with a claim's name to the page of this claim."""
    for tag in soup.select("[data-claim]"):
        page = f"claims/{tag['data-claim']}.html"
        if page in own and not tag.find("a"):
            link = Tag(name="a", attrs={"href": page})
            link.extend(list(tag.contents))
            tag.append(link)


def _tidy_tables(soup: BeautifulSoup) -> None:
    """Say which cells head what, mark cells of prose, and put every table into a frame that scrolls."""
    for number, table in enumerate(soup.find_all("table"), 1):
        _lift_names(table)
        for cell in table.find_all("th"):
            across, down = cell.get("colspan", "1"), cell.get("rowspan", "1")
            scope = "col" + "group" * (across != "1") if cell.find_parent("thead") else "row" + "group" * (down != "1")
            cell["scope"] = cell.get("scope", scope)
            if not cell.get_text(strip=True):
                cell.name = "td"
                del cell["scope"]
        for cell in table.find_all("td"):
            fitting = [name for name, least in LENGTHS.items() if len(cell.get_text()) > least]
            cell["class"] = [*cell.get("class", ()), *fitting[:1]]
        framed = table.parent if "scroll" in table.parent.get("class", ()) else table.wrap(Tag(name="div"))
        frame = {"class": "scroll", "role": "region", "tabindex": "0", "aria-label": f"Table {number}"}
        framed.attrs |= frame


def _lift_names(table: Tag) -> None:
    """Put the names that pandas writes in a row of their own, below the columns' names, into the empty cells above them."""
    rows = [row.find_all(["th", "td"]) for row in table.select("thead > tr")[-2:]]
    if len(rows) < 2 or len(rows[0]) != len(rows[1]):
        return
    texts = [[cell.get_text(strip=True) for cell in row] for row in rows]
    if not any(upper and lower for upper, lower in zip(*texts, strict=True)):
        for cell, upper, lower in zip(rows[0], *texts, strict=True):
            cell.string = upper or lower
        rows[1][0].parent.decompose()


def _link_terms(soup: BeautifulSoup, terms: list[Term]) -> None:
    """Link the first use of every term in the prose to the glossary; of two that begin alike, the longer one is meant."""
    left = {spelling: term for term in terms for spelling in term.spellings}
    known = pattern(left)
    for text in soup.find_all(string=known):
        if not _is_prose(text):
            continue
        pieces: list[str | Tag] = []
        for place, piece in enumerate(known.split(text)):
            term = left.get(" ".join(piece.split())) if place % 2 else None
            pieces.append(_term(term, piece) if term else piece)
            left = {form: other for form, other in left.items() if other is not term}
        text.replace_with(*pieces)


def _is_prose(text: NavigableString) -> bool:
    """True for a text of a paragraph or a list but in links, code, headings and lines in italics, which name a source."""
    around = text.find_parent(["p", "li"])
    aside = around and around.em and around.em.get_text() == around.get_text()
    return bool(around) and not aside and not text.find_parent(["a", "code", "pre", "figcaption", "td", *HEADINGS])


def _term(term: Term, text: str) -> Tag:
    link = Tag(name="a", attrs={"class": "term", "href": f"glossary.html#{term.slug}", "title": term.short})
    link.string = text
    return link
