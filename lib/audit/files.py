"""Data files of several kinds, read record by record: JSONL, JSON lists, CSV, parquet, and data sets of the hub.

Text is decoded line by line or file by file, by its byte-order mark or as UTF-8, else as Windows-1252 or Latin-1. What cannot
be read is a remark with file and line in the record's place, and one broken record never costs another; of a file that breaks
off, what came before is read. This module knows nothing of what a record holds.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from inoculation.store import SettingError

NAMED, REASON = 5, 200  # how many skipped files are named; characters of an error that are shown
CHUNK, LONGEST_FIELD = 1 << 13, 2**31 - 1
NAMES = {"utf-8": "UTF-8", "cp1252": "Windows-1252", "latin-1": "Latin-1", "utf-16": "UTF-16", "utf-32": "UTF-32"}
MARKS = {  # UTF-32 first: its little-endian mark begins as that of UTF-16 does
    **dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
}
WIDE, SINGLE_BYTE = ("utf-16", "utf-32"), ("cp1252", "latin-1")
MARK = "byte-order mark: dropped"
READ_AS = {
    **{name: f"not UTF-8: read as {NAMES[name]}" for name in SINGLE_BYTE},
    **{name: f"{NAMES[name]}: read by its byte-order mark" for name in WIDE},
}
ENCODINGS = (MARK, *READ_AS.values())
BROKEN_OFF = "the file cannot be read, or breaks off: what came before is kept"
NUL = "a NUL byte inside"
FIELDS = "not as many fields as the first line has"
BROKEN = (OSError, EOFError, zlib.error)
BEFORE, BETWEEN = re.compile(r"\s*\[?\s*"), re.compile(r"[\s,\]]*")
HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:]*))?(?::(.*))?")


@dataclass(frozen=True, slots=True)
class Record:
    """One record: where it stands, its value, how it looks there, and what helped to read it (of ENCODINGS)."""

    where: str
    value: Any
    seen: Any
    odd: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about a place: what it is, how the place looks, a detail. lost: a record was there and cannot be read."""

    where: str
    why: str
    seen: str = ""
    detail: str = ""
    lost: bool = True


Entries = Iterator[Record | Remark]


def opened(source: str) -> Iterator[tuple[str, Entries | None]]:
    """For each file of a source a sentence (name, size, encoding) and its entries; None for files that are skipped.

    source: a file, a folder, or `owner/name` or `owner/name:config:split` on the hub. SettingError: it is none of these, or
    cannot be had.
    """
    path, hub = Path(os.path.expanduser(source)), HUB.fullmatch(source)
    if source.strip() and os.path.exists(path):
        if path.is_dir():
            yield from _folder(path)
        elif reader(path):
            yield _file(path, path.name)
        else:
            raise SettingError(f"{path.name}: expected a file that ends in {', '.join(READERS)}, or a folder of such files")
    elif hub and not reader(path):
        yield f"{source}: from the hub", _hub(source, *hub.groups())
    else:
        raise SettingError(f"there is no file or folder {source!r} (looked for {os.path.abspath(path)})")


def _folder(folder: Path) -> Iterator[tuple[str, Entries | None]]:
    """All data files of a folder and of the folders in it, by name, then those that are skipped."""
    inside = [Path(top, name).relative_to(folder) for top, _, names in os.walk(folder) for name in names]
    others = []
    for path in sorted(path for path in inside if not any(part.startswith(".") for part in path.parts)):
        if reader(path) and (folder / path).is_file():
            yield _file(folder / path, path.as_posix())
        else:
            others.append(path.as_posix())
    if others:
        more = f" and {len(others) - NAMED:,} more" if len(others) > NAMED else ""
        yield f"skipped, as no data files: {', '.join(others[:NAMED])}{more}", None


def _file(path: Path, name: str) -> tuple[str, Entries]:
    size, read = path.stat().st_size, reader(path)
    about = f"{name}: {size / 1e6:,.1f} MB" if size >= 1e5 else f"{name}: {size / 1e3:,.1f} kB"
    if read is _parquet:
        return f"{about}, parquet", _parquet(path, name)
    encoding, line = _encoding(path)
    mixed = read is _lines and encoding in SINGLE_BYTE
    remarks = [Remark(f"{name}:{line}", READ_AS[encoding], lost=False)] if encoding in READ_AS and not mixed else []
    return f"{about}, {'UTF-8 and ' * mixed}{NAMES[encoding]}", _whole(remarks, read(path, name, encoding), name)


def _whole(remarks: list[Remark], entries: Entries, name: str) -> Entries:
    """Remarks and entries, and a remark where the file breaks off."""
    yield from remarks
    try:
        yield from entries
    except BROKEN as error:
        yield Remark(name, BROKEN_OFF, detail=str(error)[:REASON])


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _text(raw: BinaryIO, encoding: str, newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(raw, encoding, errors="replace", newline=newline)


def _encoding(path: Path) -> tuple[str, int]:
    """The encoding in which all of a text file can be read, and the first line that shows it where that is not UTF-8."""
    encoding, first = "utf-8", 0
    with contextlib.suppress(*BROKEN), _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and (wide := next((name for mark, name in MARKS.items() if line.startswith(mark)), "")):
                return wide, 1
            own = _decoded(line)[1]
            first = first or number * (own != "utf-8")
            encoding = max(encoding, own, key=list(NAMES).index)
    return encoding, first


def _decoded(line: bytes) -> tuple[str, str]:
    """A line's text and the encoding that it is read in."""
    for encoding in ("utf-8", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            return line.decode(encoding), encoding
    return line.decode("latin-1"), "latin-1"


def _unmarked(text: str) -> tuple[str, tuple[str, ...]]:
    """A text without the byte-order mark that it may begin with, and what there is to say of it."""
    return (text[1:], (MARK,)) if text.startswith("\ufeff") else (text, ())


def _lines(path: Path, name: str, encoding: str) -> Entries:
    """The records of a file with one JSON object a line."""
    with _open(path) as raw:
        wide = encoding in WIDE
        for number, line in enumerate(_text(raw, encoding, "\n") if wide else raw, 1):
            text, own = (line, "") if wide else _decoded(line)
            text, odd = _unmarked(text)
            if text := text.strip():
                yield _parsed(f"{name}:{number}", text, odd + ((READ_AS[own],) if own in SINGLE_BYTE else ()))


def _parsed(where: str, text: str, odd: tuple[str, ...]) -> Record | Remark:
    """A line of JSON as a record."""
    if "\0" in text:
        return Remark(where, NUL, text)
    try:
        return Record(where, json.loads(text), text, odd)
    except (ValueError, RecursionError) as error:
        return _fault(where, text, error)


def _fault(where: str, text: str, error: Exception) -> Remark:
    """What is wrong with JSON that cannot be read."""
    if isinstance(error, json.JSONDecodeError):
        return Remark(where, "not JSON", text, error.msg)
    return Remark(where, "nested too deeply" if isinstance(error, RecursionError) else "a number that is too long", text)


def _json(path: Path, name: str, encoding: str) -> Entries:
    """The records of a JSON list; after a broken one it goes on where a line begins as the first record's does."""
    parts, broken = [], None
    try:
        with _open(path) as raw, _text(raw, encoding) as file:
            for part in iter(lambda: file.read(CHUNK), ""):
                parts.append(part)
    except BROKEN as error:
        broken = error
    text, odd = _unmarked("".join(parts))
    parts.clear()
    yield from (Remark(name, why, lost=False) for why in odd)
    yield from _items(text, name)
    if broken:
        raise broken


def _items(text: str, name: str) -> Entries:
    """The values of a JSON list, or of a text that has one after another."""
    place, number = BEFORE.match(text).end(), 0
    begins = (text[text.rindex("\n", 0, place) : place] if "\n" in text[:place] else "\n") + "{"
    decode = json.JSONDecoder().raw_decode
    while (place := BETWEEN.match(text, place).end()) < len(text):
        number += 1
        where, seen = f"{name} row {number}", text[place : place + REASON]
        try:
            value, place = decode(text, place)
        except (ValueError, RecursionError) as error:
            place = text.find(begins, place + 1)
            yield _fault(where, seen, error) if place >= 0 else Remark(where, "not JSON, up to the end of the file", seen)
            place = len(text) if place < 0 else place
        else:
            yield Record(where, value, seen)


def _table(path: Path, name: str, encoding: str) -> Entries:
    """The records of a CSV file, whose first line names the fields and shows what parts them."""
    csv.field_size_limit(LONGEST_FIELD)
    with _open(path) as raw, _text(raw, encoding, "") as file:
        first, odd = _unmarked(next(file, ""))
        yield from (Remark(f"{name}:1", why, lost=False) for why in odd)
        header: list[str] = []
        for line, fields, seen in _split(first, file, max(",;\t", key=first.count)):
            where = f"{name}:{line}"
            if isinstance(fields, csv.Error):
                yield Remark(where, "not CSV", seen, str(fields))
            elif any("\0" in text for text in fields):
                yield Remark(where, NUL, seen)
            elif not header:
                header = fields
            elif fields and len(fields) != len(header):
                yield Remark(where, FIELDS, seen, f"{len(fields)}, not {len(header)}")
            elif fields:
                yield Record(where, dict(zip(header, fields, strict=True)), seen)


def _split(first: str, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error, str]]:
    """Of each record the line where it begins, its fields or the fault, and that line; a fault costs no other line."""
    number, ahead = 1, deque([first])
    while True:
        taken: list[str] = []
        try:
            fields: Any = next(csv.reader(_noted(ahead, lines, taken), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            fields = error
            ahead.extendleft(reversed(taken[1:]))
            del taken[1:]
        if fields is None:
            return
        yield number, fields, taken[0].strip()
        number += len(taken)


def _noted(ahead: deque[str], lines: Iterator[str], taken: list[str]) -> Iterator[str]:
    """The lines that are waiting and then the others, each noted as taken."""
    while line := ahead.popleft() if ahead else next(lines, ""):
        taken.append(line)
        yield line


def _parquet(path: Path, name: str) -> Entries:
    """The records of a parquet file."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            records = (record for batch in file.iter_batches(1000) for record in batch.to_pylist())
            for number, record in enumerate(records, 1):
                yield Record(f"{name} row {number}", record, record)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        yield Remark(name, BROKEN_OFF, detail=str(error)[:REASON])


def _hub(source: str, name: str, config: str | None, split: str | None) -> Entries:
    """The records of one split of a data set of the hub; SettingError where it cannot be had."""
    try:
        import datasets

        for number, record in enumerate(datasets.load_dataset(name, config or None, split=split or "train"), 1):
            yield Record(f"{source} row {number}", record, record)
    except Exception as error:  # gated, offline, renamed, no such split: whatever it is, the way to the data is the same
        reason = " ".join(str(error).split())[:REASON]
        way = "log in and accept its licence, or download it where there is network and pass the files"
        raise SettingError(f"'{source}' is no file here, and cannot be had from the hub ({reason}): {way}") from error


READERS = {".jsonl": _lines, ".ndjson": _lines, ".json": _json, ".csv": _table, ".tsv": _table, ".parquet": _parquet}


def reader(path: Path) -> Callable[..., Entries] | None:
    """What reads a file, by how its name ends; None for one that is not read here."""
    return READERS.get(Path(path.name.lower().removesuffix(".gz")).suffix)
