"""What a file of examples was when it was written, and what it was made of: by the manifest that
bert/generation/shards.py writes beside it, or by the header of an instance file.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bert.common.files import read_bytes
from bert.verification.check_table import Row, judged
from bert.verification.file_report import TextReport, TFRecordReport


class Origin(NamedTuple):
    file: dict  # {"bytes": size, "crc32c": 8 hexadecimal digits} when written; {}: not known
    text: dict  # the same of its text
    text_name: str  # "": not known
    settings: dict  # {flag: value}


def read_manifests(folder: str) -> tuple[dict[str, Origin], list[str]]:
    """Returns ({name of a file: Origin}, messages on manifests that cannot be read) of a folder of
    manifests; nothing where there is no such folder.
    """
    origins, problems = {}, []
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    for name in names:
        if not name.endswith(".json") or name.startswith("."):
            continue
        path = os.path.join(folder, name)
        try:
            manifest = json.loads(read_bytes(path))
            text, output = manifest["input"], manifest["output"]
            origins[name.removesuffix(".json")] = Origin(
                _fingerprint(output), _fingerprint(text), os.path.basename(text["path"]),
                dict(manifest["settings"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{path}: cannot be read; make the part again")
    return origins, problems


def _fingerprint(values):
    return {"bytes": values["bytes"], "crc32c": values["crc32c"]}


def origins_by_headers(reports: Iterable[TFRecordReport]) -> dict[str, Origin]:
    """Returns {name: Origin} of the instance files that were made of one text."""
    origins = {}
    for report in reports:
        made_of = json.loads(report.made_of or "{}")
        if len(made_of.get("texts", ())) == 1 and "picked" not in made_of:
            text = _fingerprint(made_of["texts"][0])
            origins[os.path.basename(report.path)] = Origin({}, text, "", made_of["settings"])
    return origins


def as_written_row(
    section: str, reports: Sequence[TFRecordReport], origins: Mapping[str, Origin],
    problems: Sequence[str],
) -> tuple[Row | None, set[str]]:  # fmt: skip
    """Compares files with their manifests. Returns (row, None without manifests; names of the files
    that are what was written).
    """
    notes, right = list(problems), set()
    names = {tuple(origin.file.values()): name for name, origin in origins.items() if origin.file}
    count = 0
    for report in reports:
        name = os.path.basename(report.path)
        origin = origins.get(name)
        if origin is None or not origin.file:
            continue
        count += 1
        if origin.text_name != name:
            notes.append(
                f"{name}: its manifest is that of {origin.text_name}: swapped; rename both again"
            )
        elif not report.fingerprint:
            notes.append(f"{name}: not read to its end")
        elif report.fingerprint != origin.file:
            notes.append(f"{name}: {_change(report, origin, names)}")
        else:
            right.add(name)
    if not count and not notes:
        return None, right
    found = f"{len(right):,} of {count:,} files"
    return judged(
        section, "as written", not notes, found, "size, CRC32C by .manifest", notes
    ), right


def _change(report, origin, names):
    found, written = report.fingerprint, origin.file
    sizes = f"{found['bytes']:,} bytes, {written['bytes']:,} were written"
    other = names.get(tuple(found.values()))
    if other:
        return f"it has the contents of {other}: swapped; rename both"
    if found["bytes"] < written["bytes"]:
        return f"{sizes}: truncated; make it again"
    if found["bytes"] > written["bytes"]:
        return f"{sizes}: added to; make it again"
    return "size as written, other contents: records in another order, or changed; make it again"


def texts_row(
    section: str, texts: Mapping[str, TextReport], origins: Mapping[str, Origin]
) -> tuple[Row | None, set[str]]:
    """Compares texts, {name: report}, with what the files of the same names were made of. Returns
    (row, None if nothing is known; names of the texts that are right).
    """
    known = {name: origins[name] for name in texts if name in origins}
    names = {(text.num_bytes, text.crc32c): name for name, text in texts.items()}
    notes, right = [], set()
    for name, origin in known.items():
        found, made_of = (texts[name].num_bytes, texts[name].crc32c), tuple(origin.text.values())
        if found == made_of:
            right.add(name)
        elif other := names.get(made_of):
            notes.append(
                f"{name}: the examples of this name were made of {other}: swapped; rename both"
            )
        else:
            what = f"{found[0]:,} bytes, {made_of[0]:,} when the examples were made"
            if found[0] == made_of[0]:
                what = "size as when the examples were made, other contents"
            notes.append(
                f"{name}: {what}: the text was truncated, swapped or changed; fetch it, or make "
                "the examples again"
            )
    if not known:
        return None, right
    found_row = f"{len(right):,} of {len(known):,} files"
    expected = "the texts that the examples were made of"
    return judged(section, "texts", not notes, found_row, expected, notes), right
