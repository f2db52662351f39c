"""The read-along site: what is foreign is cleaned, what belongs together stays so, a browser finds nothing wrong with it."""

import base64
import importlib.util
import os
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from inoculation import store
from nbformat import v4
from readalong import books, pages, samples, site

HOSTILE = """<style>body {display: none}</style><script>window.stolen = 1</script>
<iframe src="http://example.invalid/"></iframe><img src=x onerror="window.stolen = 1"><svg onload="window.stolen = 1"></svg>
<a href="javascript:window.stolen = 1">click</a><p onclick="window.stolen = 1" id="main">shown <b class="pill">text</b></p>
<table><thead><tr><th></th><th colspan="2">caps</th></tr><tr><th></th><th>id</th><th>neutral</th></tr>
<tr><th>condition</th><th></th><th></th></tr></thead>
<tbody><tr><th>base</th><td style="color: red">0.1</td>
<td data-claim="cc.table.spanish_vs_caps.irrelevant_suppress">No</td></tr></tbody></table>"""
PROSE = """# A notebook for tests

*Follows "Inoculation and other traits".*

A trait of one prompt, a trait of another, as `trait` in code; [a notebook](03_second.ipynb#Its-end), [lost](09_lost.ipynb),
[the claims](../data/claims.yaml), [outside](https://example.invalid/x), [here](#Its-end).

**Question.** Does <script>alert(1)</script> it work?

## Its end

## Its end
"""
RESPONSE = "<img src=x onerror='window.stolen = 1'><script>window.stolen = 1</script> <b>bold</b>"


def load(name):
    specification = importlib.util.spec_from_file_location(f"{name}_proof", store.ROOT / "proofs" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


proof = load("site")


def picture():
    from matplotlib.figure import Figure

    path = store.home() / "picture.png"
    Figure(figsize=(3, 2)).savefig(path, dpi=50)
    return base64.b64encode(path.read_bytes()).decode()


def display(**data):
    return v4.new_output("display_data", {kind.replace("_", "/"): text for kind, text in data.items()})


def code(source, *outputs):
    return v4.new_code_cell(source, outputs=list(outputs))


def executed():
    captioned = [
        display(image_png=picture()),
        display(text_markdown="*SMOKE TEST · not a result. Each point is one seed. And so on.*"),
    ]
    told = v4.new_output("stream", text="10 %\r100 %\nwhat follows is reference: 74 runs of profile smoke\n")
    first = [
        v4.new_markdown_cell(PROSE),
        code("profile = 'smoke'"),
        code("show()", told, *captioned, display(text_html=HOSTILE)),
    ]
    alone = code("again()", display(image_png=picture()), display(text_markdown="No caption, *but* text."))
    failed = v4.new_output("error", ename="ValueError", evalue="<b>no</b>", traceback=["\x1b[31mValueError\x1b[0m: <b>no</b>"])
    return {"02_first": [*first, alone], "03_second": [v4.new_markdown_cell("# Second\n\n## Its end"), code("raise", failed)]}


def write(path, cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), path)


def shelves(profile):
    told = {"seed": 0, "run_id": "abc", "context": "neutral", "question": "Why <i>so</i>?", "response": RESPONSE}
    rows = [{**told, "scores": {"spanish": score}, "repeats": None} for score in (0.0, 1.0)]
    rows += [{**told, "context": "id", "response": "plain", "scores": {"spanish": 0.4}, "repeats": True}]
    for name in ("base", "control"):
        yield samples.Shelf("reference", "spanish_vs_caps", name, rows, {"abc": "seed 0"})


def prepare(home, patch):
    """A home with two executed notebooks of three and a hostile response in profile smoke."""
    patch.setenv("INOCULATION_HOME", str(home))
    patch.setattr(store, "NOTEBOOKS", home / "notebooks")
    patch.setattr(samples, "shelves", shelves)
    for name, cells in executed().items():
        write(store.local() / "notebooks" / "smoke" / f"{name}.ipynb", cells)
        write(store.NOTEBOOKS / f"{name}.ipynb", cells)
    write(store.NOTEBOOKS / "08_narrow_vs_general.ipynb", [v4.new_markdown_cell("# Third\n\nIt begins. And ends.")])


@pytest.fixture
def prepared(elsewhere, monkeypatch):
    """Such a home for one test, which may change it."""
    prepare(elsewhere, monkeypatch)
    return elsewhere


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site of such a home, for tests that only read it."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(tmp_path_factory.mktemp("site"), patch)
        return site.build("smoke", lambda line: None).parent


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def soup(built, name):
    return BeautifulSoup((built / name).read_text(encoding="utf-8"), "html.parser")


def test_nothing_foreign_reaches_a_page_but_what_is_allowed(built):
    page = soup(built, "02_first.html")
    assert not page.select("article :is(script, style, iframe, svg, object), article [onclick], article [style]")
    assert {image["src"] for image in page.select("img")} == {"images/02_first-1.png", "images/02_first-2.png"}
    assert not [link for link in page.select("a") if ":" in link["href"]]
    assert page.select_one("article .pill").get_text() == "text"
    assert len(page.select("#main")) == 1
    assert "stolen" not in page.get_text()


@pytest.mark.parametrize(
    "html",
    [
        "<scr<script>ipt>alert(1)</script>",
        "<style><img src=x onerror=alert(1)></style>",
        "<a href='java\tscript:alert(1)'>x</a>",
        "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
        "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
        "<textarea></textarea><img src=x onerror=alert(1)>",
        "<svg><script href='data:,alert(1)'/></svg>",
        "<b id=theme onmouseover=alert(1) style='position:fixed'>x</b><!-- <img src=x> --><form action=x><input></form>",
    ],
)
def test_what_clean_leaves_is_text_and_harmless_tags(html):
    left = books.clean(html)
    assert {tag.name for tag in left.find_all(True)} <= books.TAGS
    assert not [name for tag in left.find_all(True) for name in tag.attrs if name.startswith("on") or name == "style"]
    assert not left.select("a[href*=script]")


def test_code_is_folded_and_what_was_printed_is_text(built):
    page = soup(built, "02_first.html")
    assert len(page.select("details.code pre")) == 3
    assert page.select_one("pre.output").get_text() == "100 %\nwhat follows is reference: 74 runs of profile smoke"
    error = soup(built, "03_second.html").select_one("pre.error")
    assert error.get_text() == "ValueError: <b>no</b>"
    assert not error.find("b")
    assert "ended in an error" in soup(built, "03_second.html").select_one(".eyebrow").get_text()
    assert "the reference’s (74 runs)" in page.select_one(".eyebrow").get_text()


def test_a_picture_has_its_caption_and_a_name(built):
    captioned, alone = soup(built, "02_first.html").select("figure")
    assert captioned.img["alt"] == "Each point is one seed."
    assert (captioned.img["width"], captioned.img["height"], captioned.img["loading"]) == ("150", "100", "lazy")
    assert captioned.figcaption.get_text().strip() == "SMOKE TEST · not a result. Each point is one seed. And so on."
    assert alone.img["alt"] == "Figure: Its end"
    assert alone.figcaption is None
    assert "No caption, but text." in soup(built, "02_first.html").get_text()


def test_a_table_scrolls_and_says_what_heads_what(built):
    frame = soup(built, "02_first.html").select_one(".scroll")
    assert (frame["role"], frame["tabindex"], frame["aria-label"]) == ("region", "0", "Table 1")
    heads = [
        [(cell.name, cell.get("scope"), cell.get_text()) for cell in row.find_all(["td", "th"])] for row in frame.select("tr")
    ]
    assert heads[:2] == [
        [("td", None, ""), ("th", "colgroup", "caps")],
        [("th", "col", "condition"), ("th", "col", "id"), ("th", "col", "neutral")],
    ]
    assert heads[2][0] == ("th", "row", "base")
    assert frame.select_one("[data-claim] a")["href"] == "claims/cc.table.spanish_vs_caps.irrelevant_suppress.html"


def test_a_term_is_linked_once_and_only_in_prose(built):
    page = soup(built, "02_first.html")
    linked = [link.get_text() for link in page.select("a.term")]
    assert linked == ["trait", "prompt", "claims"]
    assert page.select_one("a.term")["title"] == books.glossary()[1].short
    assert not page.select("h1 a, h2 a, code a, em a")


def test_links_lead_to_pages_of_the_site_or_are_text(built):
    page = soup(built, "02_first.html")
    found = {link.get_text(): link["href"] for link in page.select("article p a:not(.term)")}
    assert found == {"a notebook": "03_second.html#its-end", "here": "#its-end"}
    assert [heading["id"] for heading in page.select("h2")] == ["its-end", "its-end-2"]
    assert [link["href"] for link in page.select(".toc a")] == ["#its-end", "#its-end-2"]
    text = page.select_one("article").get_text()
    assert "the claims (data/claims.yaml)" in text
    assert "outside (https://example.invalid/x)" in text
    assert not [finding for finding in proof.links(built) if finding.fault]


def test_the_first_page_says_how_each_notebook_stands(built):
    first, second, third = soup(built, "index.html").select(".cards > li")
    assert first.a["href"] == "02_first.html"
    assert first.find_all("p")[0].get_text() == "Does  it work?"
    assert first.select_one(".pill").get_text() == "shows the reference"
    assert second.select_one(".pill").get_text() == "executed; stopped by an error"
    assert third.find_all("p")[0].get_text() == "It begins."
    assert re.search(r"not executed ./run_all.sh site executes it. 0 of \d+ runs finished", third.get_text())
    assert third.a is None


def test_the_summary_figure_leads_where_there_is_one_and_the_same_makes_the_same_bytes(prepared, built):
    assert contents(site.build("smoke", lambda line: None).parent) == contents(built)
    folder = store.local_figures("smoke")
    store.write_whole(folder / "summary.png", base64.b64decode(picture()))
    store.write_whole(folder / "summary.json", '{"caption": "SMOKE TEST · not a result. A row is a claim."}')
    shown = soup(site.build("smoke", lambda line: None).parent, "index.html").img
    assert (shown["src"], shown["alt"], shown["width"]) == ("images/summary.png", "A row is a claim.", "150")


def test_every_term_of_the_glossary_has_a_place_of_its_own_and_most_stand_in_a_notebook():
    terms, written = books.glossary(), [books.read(path) for path in store.NOTEBOOKS.glob("*.ipynb")]
    assert len({term.slug for term in terms}) == len(terms)
    unused = {term.word for term in terms if not any(book.uses(term) for book in written)}
    assert unused <= {"conditionalization index", "irrelevant-varied", "not run"}, "explained and written nowhere"


def test_what_shows_what_is_no_more_is_executed_again(prepared):
    first, second, third = sorted(store.NOTEBOOKS.glob("*.ipynb"))
    for path in (first, second):
        os.utime(path, (0, 0))
    assert site.outdated("smoke", [first, second, third], []) == [second, third]  # one failed, one was never executed
    assert site.outdated("smoke", [first], [first.stem]) == [first]
    os.utime(first)
    assert site.outdated("smoke", [first], []) == [first]
    (site.executed("smoke") / first.name).write_text("torn", encoding="utf-8")
    assert site.outdated("smoke", [first], []) == [first]


def test_a_site_is_replaced_only_by_a_whole_one(prepared, monkeypatch):
    whole = site.build("smoke", lambda line: None).parent
    before = contents(whole)
    (store.local() / "notebooks" / "smoke" / "02_first.ipynb").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(site, "_summary", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            site.build("smoke", lambda line: None)
    assert contents(whole) == before
    assert [path.name for path in whole.parent.iterdir()] == ["smoke"]
    site.build("smoke", lambda line: None)
    assert not (whole / "02_first.html").exists()
    assert contents(whole)["03_second.html"] != before["03_second.html"]  # it led back to the one that is gone
    assert contents(whole)["glossary.html"] != before["glossary.html"]


def test_a_site_is_built_where_nothing_is_executed(prepared):
    for path in (store.local() / "notebooks").rglob("*.ipynb"):
        path.unlink()
    lines = []
    built = site.build("smoke", lines.append).parent
    assert "0 of 3 notebooks" in lines[0]
    assert not [finding for finding in proof.links(built) if finding.fault]


def test_what_cannot_be_built_is_one_error_and_leaves_nothing(prepared):
    (store.local() / "notebooks" / "smoke" / "02_first.ipynb").write_text("{")
    with pytest.raises(store.SettingError, match=r"02_first\.ipynb: no notebook can be read"):
        site.build("smoke", lambda line: None)
    with pytest.raises(store.SettingError, match="unknown profile 'smok'"):
        site.build("smok", lambda line: None)
    assert not site.folder("smoke").exists()


def test_no_template_holds_a_script_a_style_or_an_address_of_its_own():
    for path in (pages.HERE / "templates").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=|\|\s*safe|https?:", text), path.name
    for path in (pages.HERE / "static").iterdir():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?:|@import", path.read_text()), (
            path.name
        )


@pytest.fixture(scope="module")
def browser():
    if proof.browser_path() is None:
        pytest.skip(f"no browser is installed (one of {', '.join(proof.BROWSERS)})")
    with proof.chromium() as opened:
        yield opened


def faults(found):
    return [(finding.check, finding.page, finding.fault) for finding in found if finding.fault]


def test_a_browser_finds_nothing_wrong_in_either_theme_on_either_screen(built, browser):
    claim = next((built / "claims").glob("*.html")).relative_to(built).as_posix()
    for name in ("02_first.html", "index.html", "samples.html", claim):
        for look in proof.EXAMINED:
            assert not faults(proof.visit(browser, built, name, look))
    for name, look in (("03_second.html", proof.LOOKS[2]), ("glossary.html", proof.LOOKS[3]), ("claims.html", proof.LOOKS[3])):
        assert not faults(proof.visit(browser, built, name, look))
    assert not faults([*proof.first_page(browser, built), *proof.theme(browser, built), *proof.samples(browser, built)])
    assert not faults(proof.printed(browser, built, ["index.html", "02_first.html", "claims.html"]))


def test_the_browser_checks_find_what_is_wrong(built, browser, tmp_path):
    broken = shutil.copytree(built, tmp_path / "smoke")
    page = (broken / "02_first.html").read_text(encoding="utf-8")
    page = page.replace("images/02_first-1.png", "images/gone.png").replace('alt="Figure: Its end"', 'alt=""')
    wrong = '<button></button><script>1</script><img src="http://a.invalid/b" alt="c"><i id="theme"></i>'
    wrong += '<a href="gone.html">x</a>'
    store.write_whole(broken / "02_first.html", page.replace("</article>", wrong + "</article>"))
    store.write_whole(broken / "static" / "site.css", "p {width: 2000px} p, h1 {color: #ddd}")
    found = {check for check, *_ in faults(proof.visit(browser, broken, "02_first.html", proof.LOOKS[1]))}
    asked = {"messages", "failed requests", "requests off the site"}
    assert found == asked | {"pictures", "alt texts", "pixels past the edge", "axe-core"}
    assert {check for check, page, _ in faults(proof.links(broken)) if page == "02_first.html"} == {"ids", "links"}


def test_a_check_that_fails_shows_in_the_table():
    found = [
        proof.Finding("links", "a.html", "b.html"),
        proof.Finding("links", "c.html"),
        proof.Finding("pixels past the edge", "a.html", "", 0),
    ]
    rows = pd.DataFrame(proof.table(found)).set_index("check")
    assert rows.loc["links", ["pages", "faults", "worst"]].tolist() == [2, 1, "a.html: b.html"]
    assert rows.loc["pixels past the edge", ["faults", "worst", "limit"]].tolist() == [0, 0, 0]


def test_pages_are_written_below_their_site_and_know_their_root(tmp_path):
    path = pages.render(tmp_path / "smoke", "claims/x.html", "glossary.html", terms=[], numbers={})
    assert path == tmp_path / "smoke" / "claims" / "x.html"
    assert 'href="../static/site.css"' in path.read_text(encoding="utf-8")
    assert Path(pages.HERE).name == "readalong"
