"""The whole site of a profile: claims, samples, a page per executed notebook, the glossary and the first page.

A site is built in a folder of its own and takes its place when it is whole, so that nothing of a former one is left and a
crash never leaves half of one.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from inoculation import figures, runs, store
from inoculation.settings import load_profile, load_setting, setting_names
from narrow import plan

from readalong import books, claims, pages, samples

WHOSE = {"yours": "shows your runs", "reference": "shows the reference"}


def folder(profile: str) -> Path:
    """Where a profile's site lies."""
    return store.local() / "site" / profile


def outdated(profile: str, notebooks: Iterable[Path], always: Iterable[str]) -> list[Path]:
    """Those of some notebooks whose executed copy shows what is no more; `always` names those that change with any run.

    So does one that was never executed, one that ended in an error, and one older than its notebook or the reference.
    """
    return [path for path in notebooks if path.stem in always or _is_outdated(profile, path)]


def _is_outdated(profile: str, notebook: Path) -> bool:
    copy, sources = executed(profile) / notebook.name, [notebook, *(store.RESULTS / profile).glob("*.csv")]
    try:
        whole = copy.exists() and not books.read(copy).failed
    except store.SettingError:
        whole = False
    return not whole or copy.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def executed(profile: str) -> Path:
    """Where a profile's executed notebooks lie."""
    return store.local() / "notebooks" / profile


def build(profile: str, say: Callable[[str], None] = print) -> Path:
    """Build a profile's site from what is executed, and put it in the former one's place; returns index.html's path.

    Raises SettingError for an unknown profile or a file that cannot be read; the former site is untouched then.
    """
    load_profile(profile)
    site = folder(profile)
    site.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site.parent, prefix=".building-") as scratch:
        new = Path(scratch) / profile
        say(_write(profile, new))
        if site.exists():
            site.rename(Path(scratch) / "former")
        new.rename(site)
    return site / "index.html"


def _write(profile: str, site: Path) -> str:
    """Write every page into an empty folder; returns a line that says what was written."""
    site.mkdir()
    pages.copy_static(site)
    counts = {"claims": claims.build(profile, site), "responses": samples.build(profile, site)}
    terms, sources = books.glossary(), [books.read(path) for path in sorted(store.NOTEBOOKS.glob("*.ipynb"))]
    paths = {source.name: executed(profile) / f"{source.name}.ipynb" for source in sources}
    shown = {name: books.read(path) for name, path in paths.items() if path.exists()}
    names = list(shown)
    for place, book in enumerate(shown.values()):
        around = {"previous": shown[names[place - 1]] if place else None}
        around |= {"next": shown[names[place + 1]] if place + 1 < len(names) else None}
        books.build(book, site, names, terms, around)
    first = {term.word: next((book for book in shown.values() if book.uses(term)), None) for term in terms}
    pages.render(site, "glossary.html", "glossary.html", terms=terms, first=first)
    listed = [_entry(source, shown.get(source.name), profile) for source in sources]
    pages.render(site, "index.html", "index.html", books=listed, counts=counts, figure=_summary(profile, site))
    return f"site of profile {profile}: {len(names)} of {len(sources)} notebooks, " + ", ".join(
        f"{count} {what}" for what, count in counts.items()
    )


def _entry(source: books.Book, shown: books.Book | None, profile: str) -> dict[str, Any]:
    """What the first page says of a notebook: title, question, status, its page where it has one, and the runs finished."""
    status = "not executed"
    if shown:
        status = ", ".join(WHOSE[whose] for whose in shown.origins) or "executed"
    if shown and shown.failed:
        status = f"{status}; stopped by an error"
    page = f"{shown.name}.html" if shown else ""
    facts = {"number": source.number, "title": source.title, "question": source.question}
    return {**facts, "status": status, "page": page, "runs": _runs(source.name, profile)}


def _runs(name: str, profile: str) -> str:
    """How many of a notebook's own runs are finished; nothing where it has none."""
    own = [setting for setting in setting_names() if load_setting(setting).notebook == name]
    try:
        specs = runs.grid(own, profile) if own else []
        if name == plan.declared()["notebook"]:
            specs = plan.grid(profile)
        done = sum(not spec.missing() for spec in specs)
    except store.SettingError as error:
        return f"runs unknown: {error}"
    return f"{done} of {len(specs)} runs finished" if specs else ""


def _summary(profile: str, site: Path) -> dict[str, Any] | None:
    """The summary figure of a profile, yours before the reference's, copied into the site; None where there is none."""
    folders = (store.local_figures(profile), store.REFERENCE_FIGURES / profile)
    found = next((folder / "summary.png" for folder in folders if (folder / "summary.png").exists()), None)
    if not found:
        return None
    caption = json.loads(found.with_suffix(".json").read_text(encoding="utf-8"))["caption"]
    (site / "images").mkdir(exist_ok=True)
    shutil.copyfile(found, site / "images" / found.name)
    width, height = books.size(found.read_bytes())
    alt = books.sentence(caption.removeprefix(f"{figures.mark(profile)}. "))
    return {"source": f"images/{found.name}", "width": width, "height": height, "alt": alt, "caption": caption}
