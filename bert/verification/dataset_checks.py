"""From reports on single files (bert/verification/file_report.py) to rows of the table: the set as
a whole, and against what MLPerf published.

Nothing here opens a file.
"""

import collections
import os
import re
from collections.abc import Collection, Mapping, Sequence

from bert.verification import published
from bert.verification.check_table import DIFFERS, Row, compared, judged
from bert.verification.example_check import Rules
from bert.verification.file_report import TextReport, TFRecordReport, shared_part

_PART = re.compile(r"part-(\d{5})-of-(\d{5})$")
_KINDS = ("features", "ids", "masks")
_SHARED_TOO_MUCH = 0.05  # of examples; short articles give a few equal examples by chance


def names_row(
    section: str, names: Sequence[str], own_data: bool, others: Collection[str] = ()
) -> Row:
    """Whether no part-XXXXX-of-YYYYY is missing. others: names that may be there too."""
    matches = [_PART.match(name) for name in names]
    parts = [(int(match[1]), int(match[2])) for match in matches if match]
    if not parts and section != "results":
        expected = "not named part-XXXXX-of-YYYYY, so a missing one would not be noticed"
        return judged(section, "files", True, f"{len(names):,}", expected)
    foreign = [name for name, match in zip(names, matches) if not match and name not in others]
    notes = [
        f"{name}: does not belong here, and would be read with the folder; remove it"
        for name in foreign
    ]
    totals = sorted({total for _, total in parts})
    if len(totals) > 1:
        sets = ", ".join(f"-of-{total:05d}" for total in totals)
        notes.append(f"parts of several sets in one folder: {sets}; keep one of them")
    total = totals[-1] if totals else published.NUM_PARTS
    numbers = {number for number, _ in parts}
    end = max(numbers, default=-1) + 1 if own_data else max(total, max(numbers, default=-1) + 1)
    missing = [number for number in range(end) if number not in numbers]
    if missing:
        notes.insert(0, f"missing: {ranges(missing, total)}; make them, or fetch them again")
    notes += [f"{name}: missing" for name in others if name not in names]
    found = f"{len(parts):,} parts" + (f" and {len(foreign):,} others" if foreign else "")
    return judged(section, "files", not notes, found, f"{end:,} parts", notes)


def chosen_files_row(section: str, paths: Sequence[str]) -> Row:
    """Of files that the user listed, none can be missing."""
    return judged(section, "files", True, f"{len(paths):,}", "given one by one or by a pattern")


def ranges(numbers: Sequence[int], total: int) -> str:
    """[3, 4, 5, 9] -> 'part-00003 to part-00005, part-00009 (of 500)'"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(
        f"part-{first:05d}" if first == last else f"part-{first:05d} to part-{last:05d}"
        for first, last in runs[:5]
    )
    more = f" and more, {len(numbers)} in all" if len(runs) > 5 else ""
    return f"{shown}{more} (of {total})"


# --- the text ---


def results_rows(
    reports: Sequence[TextReport], own_data: bool, eval_problem: str | None
) -> list[Row]:
    """Is a results folder whole? eval_problem: of eval.txt with eval.md5, None if they match."""
    names = [os.path.basename(report.path) for report in reports]
    broken = [report.problem for report in reports if report.problem]
    copies = [
        f"the same file: {group}; make or fetch all but one again"
        for group in _equal_files(reports, lambda report: report.num_bytes and report.md5)
    ]
    size = f"{sum(report.num_bytes for report in reports):,} bytes"
    found = f"{len(copies)} groups" if copies else "none"
    of_eval = eval_problem or "matches eval.txt"
    return [
        names_row("results", names, own_data, others=("eval.txt", "eval.md5")),
        judged("results", "whole text", not broken, size, "UTF-8, no file empty or cut", broken),
        judged("results", "copies", not copies, found, "none", copies),
        judged("results", "eval.md5", not eval_problem, of_eval, "the MD5 of each article in it"),
    ]


def published_results_rows(reports: Sequence[TextReport]) -> list[Row]:
    """Compares the files whose size and MD5 MLPerf published."""
    by_name = {os.path.basename(report.path): report for report in reports}
    return [
        _file_row(name, by_name.get(name), size, md5)
        for name, (size, md5) in published.RESULTS.items()
    ]


def listed_results_rows(reports: Sequence[TextReport], md5s: Mapping[str, str]) -> list[Row]:
    """Compares all files with a list of MD5s, {name: MD5}."""
    found = {os.path.basename(report.path): report.md5 for report in reports}
    notes = [
        f"{name}: MD5 {found.get(name, 'missing')}, listed {md5}"
        for name, md5 in md5s.items()
        if found.get(name) != md5
    ]
    equal, files = f"{len(md5s) - len(notes):,} files equal", f"{len(md5s):,} files"
    return [judged("published text", "--md5_list", not notes, equal, files, notes, DIFFERS)]


def _file_row(name, report, size, md5):
    found = "missing" if report is None else f"{report.num_bytes:,} bytes"
    if found != f"{size:,} bytes":
        return compared("published text", name, found, f"{size:,} bytes")
    found += f", MD5 {report.md5}"
    is_right = report.md5 == md5
    return judged("published text", name, is_right, found, f"MD5 {md5}", otherwise=DIFFERS)


# --- the examples ---


def example_rows(section: str, reports: Sequence[TFRecordReport], rules: Rules) -> list[Row]:
    """Rows on the records and examples of TFRecord files, whatever the files' names."""
    problems = [report.broken_at for report in reports if report.broken_at]
    problems += [message for report in reports for message in report.corrupt]
    records = sum(report.num_records for report in reports)
    size = sum(report.num_bytes for report in reports)
    num_checked = sum(report.num_examples for report in reports)
    found, both = f"{records:,} in {size:,} bytes", "both checksums of each right"
    rows = [judged(section, "records", not problems, found, both, problems)]
    expected = {
        "features": f"the seven, {rules.max_seq_length} and {rules.max_predictions_per_seq} values",
        "ids": f"below {rules.vocab_size:,}, [CLS] A [SEP] B [SEP]",
        "masks": "counts, positions and padding right",
    }
    cut_short = [
        f"{report.path}: checking stopped after {len(report.problems)} wrong examples"
        for report in reports
        if not report.is_all_checked
    ]
    for kind in _KINDS:
        bad = [
            [problem.text for problem in report.problems if problem.kind == kind]
            for report in reports
        ]
        count = sum(map(len, bad))
        if count:
            # One of each file, so that the few that are shown say how many files are concerned.
            notes = [texts[0] for texts in bad if texts]
            found = f"wrong in {count:,} examples of {len(notes):,} files"
            rows.append(judged(section, kind, False, found, expected[kind], notes + cut_short))
        else:
            found = _found(kind, reports, num_checked)
            rows.append(judged(section, kind, num_checked > 0, found, expected[kind]))
    return rows


def _found(kind, reports, num_checked):
    if num_checked == 0:
        return "no example to check"
    tokens, unknown, masked, shown_as_mask, random_next, largest = summed_totals(reports)
    return {
        "features": f"{100 * random_next / num_checked:.1f} % random next",
        "ids": f"0 to {largest:,}, {100 * unknown / tokens:.2f} % [UNK]",
        "masks": (
            f"{masked / num_checked:.1f} a record, "
            f"{100 * shown_as_mask / max(1, masked):.1f} % [MASK]"
        ),
    }[kind]


def summed_totals(reports: Sequence[TFRecordReport]) -> list[int]:
    columns = list(zip(*(report.totals for report in reports)))
    return [sum(column) for column in columns[:-1]] + [max(columns[-1])]


def copies_row(section: str, reports: Sequence[TFRecordReport]) -> Row:
    """No two files with the same examples, in any order, and no file with many of its own twice."""
    notes, by_hash = [], collections.defaultdict(list)
    for number, report in enumerate(reports):
        if report.num_repeated > _SHARED_TOO_MUCH * report.num_records:
            notes.append(
                f"{os.path.basename(report.path)}: {report.num_repeated:,} of its "
                f"{report.num_records:,} examples are repeated; make it again"
            )
        for value in report.sketch.tolist():
            by_hash[value].append(number)
    notes += [
        f"the same examples: {group}; make all but one again"
        for group in _equal_files(reports, _examples_of)
    ]
    pairs = {
        (a, b) for owners in by_hash.values() for i, a in enumerate(owners) for b in owners[i + 1 :]
    }
    for a, b in sorted(pairs):
        part = shared_part(reports[a].sketch, reports[b].sketch)
        if part > _SHARED_TOO_MUCH and _examples_of(reports[a]) != _examples_of(reports[b]):
            names = " and ".join(os.path.basename(reports[number].path) for number in (a, b))
            notes.append(
                f"{names} share about {100 * part:.0f} % of the smaller one's examples; "
                "make them again"
            )
    found = f"{len(notes)} found" if notes else "none"
    return judged(section, "copies", not notes, found, "no examples in two files", notes)


def _examples_of(report):
    """Equal for two files that have, as far as their sketches show, the same examples."""
    return report.num_examples and (report.num_examples, report.sketch.tobytes())


def _equal_files(reports, key):
    """Returns, in words, each group of files with equal `key`; a false key is in no group."""
    groups = collections.defaultdict(list)
    for report in reports:
        groups[key(report)].append(os.path.basename(report.path))
    return [", ".join(names) for value, names in groups.items() if value and len(names) > 1]


def published_tfrecord_rows(reports: Sequence[TFRecordReport], vocab_md5: str) -> list[Row]:
    section = "published examples"
    sizes = {os.path.basename(report.path): report.num_bytes for report in reports}
    records = sum(report.num_records for report in reports)
    published_counts = published.TFRECORD_RECORDS.items()
    counts = ", ".join(f"{count:,} ({source})" for source, count in published_counts)
    sources = [f" ({source}'s count)" for source, count in published_counts if count == records]
    found, size = f"{records:,}{''.join(sources)}", f"{sum(sizes.values()):,}"
    return [
        compared(section, "files", str(len(sizes)), str(published.NUM_PARTS)),
        compared(section, "bytes", size, f"{published.TFRECORD_BYTES:,}"),
        judged(section, "records", bool(sources), found, f"one of {counts}", otherwise=DIFFERS),
        compared(section, "vocabulary", f"MD5 {vocab_md5}", f"MD5 {published.VOCAB_MD5}"),
        *(
            compared(
                section,
                name,
                f"{sizes[name]:,} bytes" if name in sizes else "missing",
                f"{expected:,} bytes",
            )
            for name, expected in published.TFRECORD_PART_BYTES.items()
        ),
    ]


def published_eval_rows(report: TFRecordReport, digest: str | None) -> list[Row]:
    """digest: bert.verification.file_report.eval_digest, None if the file is corrupt."""
    section = "published evaluation set"
    size_right = report.num_bytes == published.EVAL_10K_BYTES
    notes = []
    if digest == published.EVAL_10K_DIGEST and not size_right:
        notes = [
            "the input_ids are the published ones; "
            "the digest does not cover the other six features, compare those"
        ]
    elif digest != published.EVAL_10K_DIGEST and size_right:
        notes = [
            "the bytes are right: likely other examples of the same lengths in another order; "
            "nothing published says more"
        ]
    elif digest != published.EVAL_10K_DIGEST:
        notes = [
            "the input_ids differ: other text, vocabulary, flags or seed, "
            "or not picked by pick_eval_samples.py"
        ]
    found, expected = digest or "not computed", published.EVAL_10K_DIGEST
    records, size = f"{report.num_records:,}", f"{report.num_bytes:,}"
    return [
        compared(section, "records", records, f"{published.EVAL_10K_RECORDS:,}"),
        compared(section, "bytes", size, f"{published.EVAL_10K_BYTES:,}"),
        compared(section, "digest of input_ids", found, expected, notes),
    ]


def likely_causes(reports: Sequence[TFRecordReport], rules: Rules) -> list[str]:
    """What the figures of a training set that differs from the published one point to, in words."""
    causes = []
    if len(reports) < published.NUM_PARTS:
        causes.append(
            f"{published.NUM_PARTS - len(reports):,} of the {published.NUM_PARTS} files are "
            "missing, so the totals cannot match"
        )
    sizes = {os.path.basename(report.path): report.num_bytes for report in reports}
    known = {name: size for name, size in published.TFRECORD_PART_BYTES.items() if name in sizes}
    if len(sizes) == published.NUM_PARTS:
        ratio, what = sum(sizes.values()) / published.TFRECORD_BYTES, "all files together"
    elif known:
        ratio = sum(sizes[name] for name in known) / sum(known.values())
        what = " and ".join(known)
    else:
        ratio = None
    if ratio is not None and ratio != 1.0:
        causes.append(_cause_by_ratio(ratio, what, rules))
    tokens, unknown, masked, shown_as_mask, _, largest = summed_totals(reports)
    if unknown > 0.03 * tokens:
        causes.append(
            f"{100 * unknown / tokens:.0f} % of the tokens are [UNK]: made with "
            "--do_lower_case=False from text with capitals and an uncased vocabulary, "
            "or with another vocabulary than the text's language needs"
        )
    # One masked token in ten shows a random one: among so many, each id of the vocabulary occurs.
    if masked > 1000 * rules.vocab_size and largest < rules.vocab_size - 1:
        cased = " (BERT's cased one has 28,996)" if largest == 28_995 else ""
        causes.append(
            f"no id over {largest:,} occurs: made with a vocabulary of {largest + 1:,} "
            f"tokens{cased}; give it as --vocab_file"
        )
    if masked > 1000 and not 0.7 < shown_as_mask / masked < 0.9:
        causes.append(
            f"{100 * shown_as_mask / masked:.0f} % of the masked tokens show [MASK], "
            "expected 80 %: another vocabulary, or other masking"
        )
    return causes


def _cause_by_ratio(ratio, what, rules):
    percent = f"{what}: {100 * ratio:.1f} % of the published bytes"
    copies = round(ratio * published.DUPE_FACTOR)
    if rules.max_seq_length != published.MAX_SEQ_LENGTH:
        flag = f"--max_seq_length is {rules.max_seq_length}"
        return f"{percent}: {flag}, published {published.MAX_SEQ_LENGTH}"
    if abs(ratio - 1) < 0.01:
        return (
            f"{percent}: close, not equal: another --random_seed than 12345, "
            "or text that differs a little (extracted again)"
        )
    is_near = abs(ratio * published.DUPE_FACTOR - copies) < 0.1
    if copies >= 1 and copies != published.DUPE_FACTOR and is_near:
        gigabytes = " (365 GiB become 109)" if copies == 3 else ""
        return (
            f"{percent}: about {copies}/10: --dupe_factor={copies} instead of 10 gives "
            f"this{gigabytes}, or a part of the text is missing"
        )
    return (
        f"{percent}: no --dupe_factor gives this ratio: "
        "other text, vocabulary (cased?), --max_seq_length or --short_seq_prob"
    )
