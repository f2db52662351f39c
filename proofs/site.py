"""Does the read-along site open from disk, whole and for everyone? Writes proofs/site.csv (dated in its first column).

The site is built (`./run_all.sh site`) and every page of it opened in headless Chromium, in the light and the dark theme, on a
wide screen and on a phone's, with everything refused that does not lie in the site. A fault is what asks for such a thing,
fails, overflows, has no name, leads nowhere or breaks a serious rule of axe-core. Of the claims' pages, which are alike, three
are opened in every look, the others in one.
"""

import contextlib
import datetime
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
from bs4 import BeautifulSoup
from inoculation import store

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
LOOKS = [("light", WIDE), ("dark", PHONE), ("dark", WIDE), ("light", PHONE)]
EXAMINED = LOOKS[:2]  # the looks that axe-core sees: both themes, both screens
AXE = {"resultTypes": ["violations"], "preload": False}  # to preload is to fetch, which a page that opens from disk may not
SEVERE = ("serious", "critical")
LIMITS = {"bytes of the first page": 1_000_000, "seconds until the first page is there": 1.0, "pixels past the edge": 0}
TABLE = Path(__file__).with_suffix(".csv")
SHOWN = {  # what README shows of the site: a page, scrolled to an element, in a look
    "light": ("index.html", "h1", LOOKS[0]),
    "dark": ("10_summary.html", "table.summary caption", LOOKS[2]),
    "phone": ("claims/cc.spanish_vs_caps.restores_negative.html", "main", LOOKS[1]),
}

MARKUP = ".sample :is(img, script, iframe, svg, object, style, a, form), .sample .response *"  # nothing that a sample may hold
TEXTS = "all => all.map((one) => one.textContent)"
SOURCES = "all => all.map((one) => one.outerHTML)"

# Shows everything a page holds, waits for its pictures, and says what is wrong with them and how far the page is too wide.
EVERYTHING = """async () => {
  document.querySelectorAll("details").forEach((part) => (part.open = true));
  const pictures = [...document.images];
  pictures.forEach((picture) => (picture.loading = "eager"));
  await Promise.all(pictures.map((picture) => picture.decode().catch(() => null)));
  const root = document.documentElement;
  return {
    broken: pictures.filter((picture) => !picture.naturalWidth).map((picture) => picture.src),
    nameless: pictures.filter((picture) => !picture.alt.trim()).map((picture) => picture.src),
    past: Math.max(0, root.scrollWidth - innerWidth),
  };
}"""


ON_PAPER = """() => {
  dispatchEvent(new Event("beforeprint"));
  const away = [...document.querySelectorAll("header.site, nav, details.code, button")].filter((one) => one.checkVisibility());
  const folded = [...document.querySelectorAll("details:not(.code, .toc)")].filter((one) => !one.open);
  const dark = getComputedStyle(document.documentElement).colorScheme !== "light" ? ["dark"] : [];
  return [...away.map((one) => `${one.tagName} is printed`), ...folded.map(() => "something is folded"), ...dark];
}"""


@dataclass(frozen=True)
class Finding:
    """What one check found on one page: a fault in words, or none; value: what a limit of LIMITS is set for."""

    check: str
    page: str
    fault: str = ""
    value: float | None = None


def browser_path() -> str | None:
    """A Chromium on this machine, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium that contacts nobody by itself; raises FileNotFoundError where there is none."""
    from playwright.sync_api import sync_playwright

    path = browser_path()
    if path is None:
        raise FileNotFoundError(f"no browser: install one of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


def links(site: Path) -> list[Finding]:
    """Does every link and every file that a page names exist in the site, with the id that it points to, and no id twice?"""
    soups = {path: BeautifulSoup(path.read_bytes(), "html.parser") for path in sorted(site.rglob("*.html"))}
    ids = {path: [tag["id"] for tag in soup.select("[id]")] for path, soup in soups.items()}
    found = []
    for path, soup in soups.items():
        page = path.relative_to(site).as_posix()
        twice = {name for name in ids[path] if ids[path].count(name) > 1}
        found.append(Finding("ids", page, f"twice: {', '.join(sorted(twice))}" * bool(twice)))
        named = [tag.get("href") or tag.get("src") for tag in soup.select("[href], [src]")]
        lost = [address for address in named if not _resolves(address, path, site, ids)]
        found.append(Finding("links", page, ", ".join(lost)))
    return found


def _resolves(address: str, path: Path, site: Path, ids: dict[Path, list[str]]) -> bool:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return address.startswith("data:")
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
    fragment = unquote(parts.fragment)
    # What the sample browser keeps behind the # is a choice and no place.
    known = not fragment or "=" in fragment or fragment in ids.get(target, ())
    return target.is_file() and target.is_relative_to(site.resolve()) and known


@contextlib.contextmanager
def opened(browser: Any, site: Path, name: str, look: tuple[str, dict[str, int]]) -> Iterator[tuple[Any, dict[str, list[str]]]]:
    """A page of a site in a fresh window, and the faults that it makes itself as they come, by check."""
    faults: dict[str, list[str]] = {"messages": [], "requests off the site": [], "failed requests": []}
    base = f"{site.resolve().as_uri()}/"
    with contextlib.closing(browser.new_context(color_scheme=look[0], viewport=look[1])) as context:
        context.route(lambda url: not url.startswith(("file:", "data:")), lambda route: route.abort())
        page = context.new_page()
        page.on("console", lambda said: said.type in ("error", "warning") and faults["messages"].append(said.text))
        page.on("pageerror", lambda error: faults["messages"].append(str(error)))
        page.on("requestfailed", lambda asked: faults["failed requests"].append(asked.url))
        off = faults["requests off the site"]
        page.on("request", lambda asked: not asked.url.startswith((base, "data:")) and off.append(asked.url))
        page.goto(base + name, wait_until="load")
        yield page, faults


def visit(browser: Any, site: Path, name: str, look: tuple[str, dict[str, int]]) -> list[Finding]:
    """Open one page in one look (theme, screen): what it asks for, what it shows and, in EXAMINED, what axe-core says."""
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, site, name, look) as (page, faults):
        shown = page.evaluate(EVERYTHING)
        ruled = Axe().run(page, options=AXE).response["violations"] if look in EXAMINED else []
    found = [Finding(check, name, "; ".join(said)) for check, said in faults.items()]
    found += [Finding("pictures", name, ", ".join(shown["broken"])), Finding("alt texts", name, ", ".join(shown["nameless"]))]
    told = [f"{rule['id']}: {rule['nodes'][0]['html'][:120]}" for rule in ruled if rule["impact"] in SEVERE]
    return [*found, _bounded("pixels past the edge", name, shown["past"]), Finding("axe-core", name, "; ".join(told))]


def _bounded(check: str, page: str, value: float) -> Finding:
    return Finding(check, page, "" if value <= LIMITS[check] else f"{value:g}", value)


def first_page(browser: Any, site: Path) -> list[Finding]:
    """How heavy index.html is with all that it loads, and how long a cold browser takes for it."""
    name, asked = "index.html", []
    context = browser.new_context(viewport=WIDE)
    with contextlib.closing(context):
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith("file:") and asked.append(request.url))
        page.goto((site / name).resolve().as_uri(), wait_until="load")
        page.evaluate(EVERYTHING)
        seconds = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
    weight = sum(Path(unquote(urlsplit(url).path)).stat().st_size for url in dict.fromkeys(asked))
    measured = zip(LIMITS, (weight, seconds), strict=False)
    return [_bounded(check, name, value) for check, value in measured]


def theme(browser: Any, site: Path) -> list[Finding]:
    """Does the button change the theme, and does the next page keep it?"""
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    with opened(browser, site, "index.html", LOOKS[0]) as (page, _):
        before = page.evaluate(paper)
        page.click("#theme")
        after = page.evaluate(paper)
        page.goto((site / "glossary.html").resolve().as_uri())
        kept = page.evaluate(paper)
    return [Finding("theme button", "index.html", "" if before != after == kept else f"{before}, {after}, then {kept}")]


def printed(browser: Any, site: Path, names: Iterable[str]) -> list[Finding]:
    """Does paper show the text alone, in the light theme, with its notes open and its code away?"""
    found = []
    for name in names:
        with opened(browser, site, name, LOOKS[2]) as (page, _):
            page.emulate_media(media="print")
            found.append(Finding("print", name, ", ".join(page.evaluate(ON_PAPER))))
    return found


def samples(browser: Any, site: Path) -> list[Finding]:
    """Does the sample browser filter by condition, text and score, and is HTML in a response shown as text?"""
    name, faults, markup = "samples.html", [], []
    with opened(browser, site, name, LOOKS[0]) as (page, said):
        for setting in page.eval_on_selector_all("#setting option", "all => all.map((one) => one.value).filter(Boolean)"):
            page.select_option("#setting", setting)
            _unveil(page)
            faults += _filtered(page, setting)
            page.fill("#text", "<")
            page.wait_for_timeout(50)
            markup += page.eval_on_selector_all(MARKUP, SOURCES)
            page.fill("#text", "")
    faults += [message for messages in said.values() for message in messages]
    return [Finding("sample filter", name, "; ".join(faults)), Finding("responses as text", name, "; ".join(markup)[:200])]


def _unveil(page: Any) -> None:
    page.locator("#count", has_text=re.compile(" of ")).wait_for()
    if page.is_visible("#note"):
        page.click("#show")
    page.wait_for_selector(".sample")


def _count(page: Any) -> int:
    page.wait_for_timeout(50)
    return int(re.match(r"[\d,]+", page.inner_text("#count"))[0].replace(",", ""))


def _filtered(page: Any, setting: str) -> list[str]:
    """The filters of one setting that do not narrow the list down to what they ask for."""
    every, faults = _count(page), []
    for control in ("condition", "context", "run"):
        value = page.eval_on_selector(f"#{control}", "one => one.options[1]?.value")
        page.select_option(f"#{control}", value)
        shown = page.eval_on_selector_all(".sample", TEXTS)
        own = [text for text in shown if value in text]
        faults += [f"{setting}: {control}"] * (not 0 < _count(page) <= every or len(own) < len(shown))
        page.select_option(f"#{control}", "")
    word = re.findall(r"\w+", page.inner_text(".sample .response"))[0]
    page.fill("#text", word)
    lacking = [text for text in page.eval_on_selector_all(".sample", TEXTS) if word.lower() not in text.lower()]
    faults += [f"{setting}: text"] * (not 0 < _count(page) <= every or bool(lacking))
    page.fill("#text", "")
    if page.is_enabled("#trait"):
        page.select_option("#trait", index=1)
        page.fill("#least", "0.5")
        upper = _count(page)
        page.fill("#least", "")
        page.fill("#most", "0.4999")
        faults += [f"{setting}: score"] * (upper + _count(page) > every or upper == every == _count(page))
        page.fill("#most", "")
        page.select_option("#trait", "")
    return faults


def photograph(browser: Any, site: Path, folder: Path) -> None:
    """Pictures of the pages of SHOWN, as folder/NAME.png."""
    folder.mkdir(exist_ok=True)
    for name, (page_name, element, look) in SHOWN.items():
        with opened(browser, site, page_name, look) as (page, _):
            page.locator(element).first.evaluate("one => one.scrollIntoView()")
            page.screenshot(path=folder / f"{name}.png")


def tried(site: Path) -> list[tuple[str, tuple[str, dict[str, int]]]]:
    """Every page with every look that it is opened in; of the claims' pages the first, middle and last in all of them."""
    names = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    apart = [name for name in names if name.startswith("claims/")]
    few = {apart[0], apart[len(apart) // 2], apart[-1]} if apart else set()
    alike = set(apart) - few
    return [(name, look) for name in names for look in (LOOKS[:1] if name in alike else LOOKS)]


def examine(site: Path) -> list[Finding]:
    """All checks on a built site; takes the pictures that README shows on the way."""
    found = links(site)
    with chromium() as browser:
        photograph(browser, site, store.REFERENCE_FIGURES / "site")
        found += first_page(browser, site)
        found += theme(browser, site)
        found += samples(browser, site)
        found += printed(browser, site, sorted(path.name for path in site.glob("*.html")))
        for name, look in tried(site):
            found += visit(browser, site, name, look)
    return found


def table(found: Iterable[Finding]) -> pd.DataFrame:
    """One row per check: its pages, its faults, the worst (a value, or the first fault) and the limit."""
    rows = []
    for check, own in pd.DataFrame([vars(each) for each in found]).groupby("check", sort=False):
        faulty = own[own.fault != ""]
        worst = (
            own.value.max() if own.value.notna().any() else "; ".join(f"{f.page}: {f.fault}" for f in faulty[:1].itertuples())
        )
        row = {"date": datetime.date.today().isoformat(), "check": check, "pages": own.page.nunique()}
        rows.append({**row, "faults": len(faulty), "worst": worst, "limit": LIMITS.get(check, "")})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    profile = sys.argv[1] if len(sys.argv) > 1 else "mini"
    place = store.local() / "site" / profile
    subprocess.run([sys.executable, "-m", "inoculation", "site", "--profile", profile], check=True)
    every = examine(place)
    whole = table(every)
    store.write_csv(TABLE, whole)
    print(whole.to_string(index=False))
    wrong = [each for each in every if each.fault]
    print("\n".join(f"{each.check}, {each.page}: {each.fault}" for each in wrong))
    sys.exit(1 if wrong else 0)
