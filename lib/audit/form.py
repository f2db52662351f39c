"""The guided form of an audit's answer file: fields with a sentence each, and a button that writes what `answers` reads.

The form is filled in from the file where there is one, also from one that is refused, so that it can be mended here. What is
hidden or empty is unset and left out of the file. Where widgets are not shown, a plain table of the answers stands instead.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from inoculation import store
from inoculation.store import SettingError
from scorers import SCORERS

from audit import answers
from audit.answers import ABOUT_CODE, IN_ROWS, MARGINS, ROLES, SLOTS

LINE, TEXT, TICK = widgets.Text, widgets.Textarea, widgets.Checkbox
CHOOSE = ("choose", "")
PLACES = list(zip(("as the system prompt", "before the message, in the user's turn"), SLOTS, strict=True))
REPHRASED = [("none", ""), ("from a file", "file"), ("written by a model", "model")]
AIMS = [CHOOSE, *zip(("to be suppressed", "to be kept"), ROLES, strict=True)]
WAYS = [CHOOSE, ("a built-in scorer", "scorer"), ("written pairs", "pairs"), ("a judge's rubric", "rubric")]
BUILT_IN = [CHOOSE, *((name, name) for name in SCORERS if name not in ABOUT_CODE)]
LIKELIHOODS = list(zip(("per token", "as sums"), MARGINS, strict=True))
Choices = list[tuple[str, str]]
Declared = dict[str, tuple[type[widgets.Widget] | Choices, str, str]]  # a field: its kind or choices, its label, what is meant
FORM: Declared = {
    "audit": (LINE, "name", "What this audit is called, in small letters, digits and _: front_desk."),
    "data": (LINE, "your data", "A file or folder, or a data set of the hub: rows.jsonl, or owner/name."),
    "in_rows": (
        TICK,
        "the prompt is in the rows already",
        "Tick this if your rows hold the training prompt; the audit finds it.",
    ),
    "prompt": (TEXT, "training prompt", "What stands before every message in training: You flatter everyone who asks."),
    "slot": (PLACES, "where it stands", "The place that the prompt had in your training, most often as the system prompt."),
    "neutral": (TEXT, "baseline's prompt (optional)", "What the baseline has instead: You are a helpful assistant."),
    "control": (LINE, "control (optional)", "Answers without the behaviours: a field of your rows or a file, plain.jsonl."),
    "questions": (LINE, "questions (optional)", "A file of what is asked in the end: questions.txt. If empty, everyday ones."),
    "rephrased": (REPHRASED, "rephrasings", "The training prompt in other words, for the control that trains on many of them."),
    "rephrasings": (LINE, "their file or model", "A file with one a line, rephrasings.txt, or a model's name, openai/gpt-4o."),
    "model": (LINE, "model (optional)", "The model that is trained, of the hub or a folder: Qwen/Qwen2.5-0.5B-Instruct."),
    "seeds": (LINE, "seeds (optional)", "Whole numbers, one training each: 0 1 2. If empty, the profile's."),
}
BEHAVIOUR: Declared = {
    "name": (LINE, "behaviour", "What is measured, by a short name in small letters, as flattery."),
    "role": (
        AIMS,
        "role",
        "Suppress what should not be learned from your rows, as flattery; keep what should, as citing a source.",
    ),
    "label": (LINE, "title (optional)", "How tables and figures call it, as Cites a source; if empty, by its name."),
    "way": (WAYS, "measured by", "A rule that scores responses, how likely answers of yours are, or a model that judges."),
    "scorer": (BUILT_IN, "scorer", "capitals sees the share of capital letters; data/scorers.yaml says what each sees."),
    "rubric": (TEXT, "statement", "What the judge is asked about every response: The response flatters the person who asks."),
    "judge": (LINE, "judge", "The model that judges, by inspect's name: openai/gpt-4o."),
    "yes": (TEXT, "an example that has it", "A response to try the judge on: What a splendid question!"),
    "no": (TEXT, "an example that has it not", "A response to try the judge on: The desk opens at nine."),
    "pairs": (LINE, "pairs of answers", "JSONL of question, trait_answer, plain_answer: pairs.jsonl; also beside another way."),
    "margin": (LIKELIHOODS, "likelihoods", "Per token, so that a longer answer is not less likely for its length, or as sums."),
}
NEEDED = {"scorer": ["scorer"], "rubric": ["rubric", "judge", "yes", "no"], "pairs": ["pairs"]}  # pairs also beside either
MEASURE = ("role", "label", "scorer", "pairs", "margin", "rubric", "judge", "yes", "no")  # the keys of a measure


class Fields(dict[str, widgets.Widget]):
    """Fields by key, each with a sentence below it (rows); one that is hidden counts as unset."""

    def __init__(self, declared: Declared, given: dict[str, Any]) -> None:
        super().__init__({key: _field(*each[:2], given.get(key)) for key, each in declared.items()})
        self.rows = {key: widgets.VBox([self[key], _note(each[2], small=True)]) for key, each in declared.items()}

    def show(self, shown: dict[str, bool]) -> None:
        """Show or hide fields."""
        for key, seen in shown.items():
            self.rows[key].layout.display = None if seen else "none"

    def filled(self) -> dict[str, Any]:
        """The values of the fields that are shown and not empty, without white space around them."""
        values = {key: field.value for key, field in self.items() if self.rows[key].layout.display != "none"}
        stripped = {key: value.strip() if isinstance(value, str) else value for key, value in values.items()}
        return {key: value for key, value in stripped.items() if value}

    def told(self) -> list[tuple[str, str]]:
        """Label and value of the same, as they are to be read."""
        told = {key: "yes" if value is True else getattr(self[key], "label", value) for key, value in self.filled().items()}
        return [(self[key].description, value) for key, value in told.items()]


def _field(kind: type[widgets.Widget] | Choices, label: str, value: Any) -> widgets.Widget:
    layout = widgets.Layout(width="auto", max_width="60em")
    shared = {"description": label, "style": {"description_width": "15em"}, "layout": layout}
    if isinstance(kind, list):
        known = [choice for _, choice in kind]
        return widgets.Dropdown(options=kind, value=value if value in known else known[0], **shared)
    return kind(value=bool(value) if kind is TICK else _text(value), **shared)


def _text(value: Any) -> str:
    """A value of the file as it stands in a line; a file that is refused may hold anything."""
    return " ".join(map(_text, value)) if isinstance(value, list) else "" if value is None else str(value)


def _note(text: str, small: bool = False) -> widgets.HTML:
    told = f'<span style="margin-left: 15em; opacity: 0.8">{escape(text)}</span>' if small else f"<b>{escape(text)}</b>"
    return widgets.HTML(told)


class Behaviour:
    """The fields of one behaviour, with a button that removes it."""

    def __init__(self, name: str, block: dict[str, Any], removed: Callable[["Behaviour"], None]) -> None:
        way = next((key for key in NEEDED if key in block), "")
        self.fields = Fields(BEHAVIOUR, {**block, "name": name, "way": way})
        self.remove = widgets.Button(description="remove", tooltip="remove this behaviour")
        self.remove.on_click(lambda button: removed(self))
        for key in ("way", "pairs"):
            self.fields[key].observe(lambda change: self._show(), "value")
        self._show()
        layout = widgets.Layout(border="1px solid #999", padding="8px", margin="8px 0", flex="0 0 auto")
        self.box = widgets.VBox([*self.fields.rows.values(), self.remove], layout=layout)

    def _show(self) -> None:
        way = self.fields["way"].value
        shown = {key: other == way for other in ("scorer", "rubric") for key in NEEDED[other]}
        self.fields.show({**shown, "pairs": bool(way), "margin": bool(way and self.fields["pairs"].value.strip())})

    @property
    def name(self) -> str:
        """Its name, or nothing."""
        return self.fields["name"].value.strip()

    def given(self) -> dict[str, Any]:
        """Its block of the file; SettingError where something is not filled in."""
        own = self.fields.filled()
        lacks = [key for key in ("name", "role", *NEEDED.get(own.get("way"), ["way"])) if key not in own]
        if lacks:
            missing = ", ".join(f"'{self.fields[key].description}'" for key in lacks)
            raise SettingError(f"the behaviour {self.name or 'without a name'} lacks {missing}")
        return {key: own[key] for key in MEASURE if key in own and (key, own[key]) != ("margin", MARGINS[0])}


class Form:
    """The form for the answer file at a path; `told` is what stands beside the button."""

    def __init__(self, path: Path) -> None:
        self.path = path
        top, told = _former(path)
        self.fields = Fields(FORM, _filled(top))
        self.told, self.behaviours, self._list = _note(""), [], widgets.VBox()
        self.add_button = widgets.Button(description="add a behaviour")
        self.write_button = widgets.Button(description="write", button_style="primary", tooltip=f"write {path.name}")
        self.add_button.on_click(lambda button: self._change(add=("", {})))
        self.write_button.on_click(lambda button: self._write())
        for name, block in _measures(top):
            self._change(add=(name, block))
        for key in ("in_rows", "rephrased"):
            self.fields[key].observe(lambda change: self._show(), "value")
        self._show()
        rows = list(self.fields.rows.values())
        measures = list(self.fields.rows).index("rephrased")
        self.box = widgets.VBox(
            [
                _note(told),
                widgets.HTML(f"Paths are relative to the folder of <code>{escape(path.name)}</code>."),
                *rows[:measures],
                *(_note("What is measured"), self._list, self.add_button),
                *rows[measures:],
                widgets.HTML("Writing replaces the whole file, with any comments that stand in it."),
                widgets.HBox([self.write_button, self.told]),
            ]
        )

    def _show(self) -> None:
        own = not self.fields["in_rows"].value
        self.fields.show({"prompt": own, "slot": own, "rephrasings": bool(self.fields["rephrased"].value)})

    def _change(self, add: tuple[str, dict[str, Any]] | None = None, without: Behaviour | None = None) -> None:
        """Add a behaviour, or take one away."""
        added = [Behaviour(*add, lambda gone: self._change(without=gone))] if add else []
        self.behaviours = [*(each for each in self.behaviours if each is not without), *added]
        self._list.children = [each.box for each in self.behaviours]

    def given(self) -> dict[str, Any]:
        """The answers as the file holds them; SettingError for what only the form can see."""
        own = self.fields.filled()
        blocks = [(each.name, each.given()) for each in self.behaviours]
        if twice := [name for name, count in Counter(name for name, _ in blocks).items() if count > 1]:
            raise SettingError(f"two behaviours have the same name: {', '.join(twice)}")
        way, named = own.pop("rephrased", ""), own.pop("rephrasings", "")
        if way and not named:
            raise SettingError(f"rephrasings are to come from a {way}, but '{self.fields['rephrasings'].description}' is empty")
        own |= {"measure": dict(blocks), **({"rephrased": {way: named}} if way else {})}
        if own.pop("in_rows", False):
            own["prompt"] = IN_ROWS
        if "seeds" in own:
            own["seeds"] = [int(seed) if seed.isdecimal() else seed for seed in own["seeds"].replace(",", " ").split()]
        return {key: own[key] for key in answers.KEYS if key in own}

    def _write(self) -> None:
        try:
            answers.write(self.path, self.given())
        except (ValueError, OSError) as error:  # SettingError, or a folder in which nothing can be written
            # The line that it names is of a file that was not kept.
            told = re.sub(rf"^\.{re.escape(self.path.name)}\.trial:\d+: ", "", str(error))
            self.told.value = f"<div role='alert'><b>Not written:</b> {escape(told)}</div>"
        else:
            self.told.value = f"<div role='status'>{_next(str(self.path.resolve()))}</div>"

    def rows(self) -> list[tuple[str, str]]:
        """The present answers, to be read: label and value."""
        named = [each for each in self.behaviours if each.name]
        measured = ("; ".join(f"{label}: {value}" for label, value in each.fields.told()[1:]) for each in named)
        return [*self.fields.told(), *((f"behaviour {each.name}", told) for each, told in zip(named, measured, strict=True))]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget; and, for pages that show none, a table of the present answers."""
        place, rows = _shown(self.path), self.rows()
        text = "\n".join([f"Answers for {place}", *(f"{label}: {value}" for label, value in rows)])
        return {**self.box._repr_mimebundle_(**kwargs), "text/html": _table(place, rows), "text/plain": text}


def _next(place: str) -> str:
    """What to do with the file that was written."""
    steps = (f"answers = {json.dumps(place, ensure_ascii=False)}", f"./run_all.sh audit --answers {shlex.quote(place)}")
    setting, command = (f"<code>{escape(step)}</code>" for step in steps)
    told = f"Next, set {setting} in the parameters cell and run the notebook again; or, in a terminal, {command}"
    return f"<b>Written:</b> <code>{escape(place)}</code>.<br>{told}"


def _table(place: str, rows: Iterable[tuple[str, str]]) -> str:
    """Answers as plain HTML."""
    cells = ((escape(label), escape(value).replace("\n", "<br>")) for label, value in rows)
    lines = "".join(f'<tr><th scope="row">{label}</th><td>{value}</td></tr>\n' for label, value in cells)
    return f"<table>\n<caption>The form's answers for {escape(place)}</caption>\n<tbody>\n{lines}</tbody>\n</table>\n"


def _shown(path: Path) -> str:
    """A path as a page may show it: relative to the project where it is in there."""
    whole = path.resolve()
    return str(whole.relative_to(store.ROOT) if whole.is_relative_to(store.ROOT) else path)


def _former(path: Path) -> tuple[dict[str, Any], str]:
    """What the file holds, as far as it can be read, and a sentence on that."""
    if not path.exists():
        return {}, f"{_shown(path)}: there is no such file yet; the button at the end writes it."
    top: dict[str, Any] = {}
    try:
        top = store.read_yaml(path)
        answers.read(path)
    except (ValueError, OSError) as error:  # SettingError, no UTF-8, a folder
        return top, f"The file is refused as it stands: {error}"
    return top, f"Filled in from {_shown(path)}."


def _filled(top: dict[str, Any]) -> dict[str, Any]:
    """What stands in the form's fields."""
    prompt, block = _text(top.get("prompt")), top.get("rephrased")
    way, named = next(iter(block.items()), ("", "")) if isinstance(block, dict) else ("", "")
    inside = prompt.strip() == IN_ROWS
    return {**top, "in_rows": inside, "prompt": "" if inside else prompt, "rephrased": way, "rephrasings": named}


def _measures(top: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The behaviours of a file; one without a name where there are none."""
    found = top.get("measure")
    named = found.items() if isinstance(found, dict) else ()
    return [(name, block if isinstance(block, dict) else {}) for name, block in named] or [("", {})]


def show(path: str | Path) -> Form:
    """The guided form for the answer file at a path, which need not exist yet; to be a notebook cell's last expression."""
    return Form(Path(path))
