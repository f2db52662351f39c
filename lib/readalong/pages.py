"""Templates to pages: one Jinja2 environment that escapes everything, one way to write a page, the files all pages share.

A site's folder carries its profile's name; every page opens from disk and loads nothing from outside that folder.
"""

import functools
import shutil
from pathlib import Path
from typing import Any

import jinja2
from inoculation import figures, store

HERE = Path(__file__).parent
NAVIGATION = {"index.html": "Index", "claims.html": "Claims", "samples.html": "Samples", "glossary.html": "Glossary"}


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, with autoescape on for all of them; a fact that a template misses is an error."""
    loader = jinja2.FileSystemLoader(HERE / "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def render(site: Path, name: str, template: str, **facts: Any) -> Path:
    """Write page `name` (as claims/NAME.html) of a site from a template and its facts; returns its path.

    Templates also find `root` (the way from the page to the site's folder), `page`, `navigation`, `profile` and `mark`.
    """
    common = {"root": "../" * name.count("/"), "page": name, "navigation": NAVIGATION}
    common |= {"profile": site.name, "mark": figures.mark(site.name)}
    path = site / name
    store.write_whole(path, environment().get_template(template).render(common | facts))
    return path


def copy_static(site: Path) -> None:
    """Copy the style sheet and the scripts into a site."""
    shutil.copytree(HERE / "static", site / "static", dirs_exist_ok=True)
