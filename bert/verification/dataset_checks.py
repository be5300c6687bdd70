"""From reports on single files (bert/verification/file_report.py) to rows of the table: the set as
a whole, and against what MLPerf published.

Nothing here opens a file.
"""

import collections
import os
import re
from collections.abc import Collection, Mapping, Sequence

from bert.verification import published
from bert.verification.check_table import DIFFERS, Row, judged
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
        return judged(
            section,
            "files",
            True,
            f"{len(names):,}",
            "not named part-XXXXX-of-YYYYY: a missing one would not show",
        )
    foreign = [name for name, match in zip(names, matches) if not match and name not in others]
    notes = [
        f"{name}: does not belong here, whoever reads the folder reads it too; remove it"
        for name in foreign
    ]
    totals = sorted({total for _, total in parts})
    if len(totals) > 1:
        notes.append(
            "parts of several sets in one folder: "
            f"{', '.join(f'-of-{total:05d}' for total in totals)}; keep one of them"
        )
    total = totals[-1] if totals else published.NUM_PARTS
    numbers = {number for number, _ in parts}
    end = max(numbers, default=-1) + 1 if own_data else max(total, max(numbers, default=-1) + 1)
    missing = [number for number in range(end) if number not in numbers]
    if missing:
        notes.insert(0, f"missing: {ranges(missing, total)}; make them, or fetch them again")
    for name in others:
        if name not in names:
            notes.append(f"{name}: missing")
    found = f"{len(parts):,} parts" + (f" and {len(foreign):,} others" if foreign else "")
    return judged(section, "files", not notes, found, f"{end:,} parts", notes)


def chosen_files_row(section: str, paths: Sequence[str]) -> Row:
    """Of files that the user named, none can be missing."""
    return judged(section, "files", True, f"{len(paths):,}", "named one by one or by a pattern")


def ranges(numbers: Sequence[int], total: int) -> str:
    """[3, 4, 5, 9] -> 'part-00003 to part-00005, part-00009 (of 500)'"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [
        f"part-{first:05d}" if first == last else f"part-{first:05d} to part-{last:05d}"
        for first, last in runs[:5]
    ]
    return (
        ", ".join(told)
        + (f" and more, {len(numbers)} in all" if len(runs) > 5 else "")
        + f" (of {total})"
    )


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
    total = sum(report.num_bytes for report in reports)
    return [
        names_row("results", names, own_data, others=("eval.txt", "eval.md5")),
        judged(
            "results",
            "whole text",
            not broken,
            f"{total:,} bytes",
            "UTF-8, no file empty or cut",
            broken,
        ),
        judged(
            "results",
            "copies",
            not copies,
            "none" if not copies else f"{len(copies)} groups",
            "none",
            copies,
        ),
        judged(
            "results",
            "eval.md5",
            not eval_problem,
            eval_problem or "fits eval.txt",
            "the MD5 of each article of eval.txt",
        ),
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
    num_equal = len(md5s) - len(notes)
    return [
        judged(
            "published text",
            "--md5_list",
            not notes,
            f"{num_equal:,} files equal",
            f"{len(md5s):,} files",
            notes,
            DIFFERS,
        )
    ]


def _file_row(name, report, size, md5):
    if report is None:
        return Row("published text", name, DIFFERS, "missing", f"{size:,} bytes")
    if report.num_bytes != size:
        return Row(
            "published text", name, DIFFERS, f"{report.num_bytes:,} bytes", f"{size:,} bytes"
        )
    return judged(
        "published text",
        name,
        report.md5 == md5,
        f"{size:,} bytes, MD5 {report.md5}",
        f"MD5 {md5}",
        otherwise=DIFFERS,
    )


# --- the examples ---


def example_rows(section: str, reports: Sequence[TFRecordReport], rules: Rules) -> list[Row]:
    """Rows on the records and examples of TFRecord files, whatever the files' names."""
    broken = [report.broken_at for report in reports if report.broken_at]
    damaged = [message for report in reports for message in report.damaged]
    records, size = (
        sum(report.num_records for report in reports),
        sum(report.num_bytes for report in reports),
    )
    num_checked = sum(report.num_examples for report in reports)
    rows = [
        judged(section, "records", not broken and not damaged, f"{records:,} in {size:,} bytes",
               "both checksums of each right", broken + damaged),
    ]  # fmt: skip
    expected = {
        "features": f"the seven, {rules.max_seq_length} and {rules.max_predictions_per_seq} values",
        "ids": f"below {rules.vocab_size:,}, [CLS] A [SEP] B [SEP]",
        "masks": "counts, positions and padding right",
    }
    cut_short = [f"{report.path}: after {len(report.problems)} bad examples "
                 "the others were not looked at"
                 for report in reports if not report.is_all_checked]  # fmt: skip
    for kind in _KINDS:
        # One of each file, in the order of files, so that the few that are shown tell how far it
        # goes.
        bad = [
            [problem.text for problem in report.problems if problem.kind == kind]
            for report in reports
        ]
        count, firsts = sum(map(len, bad)), [texts[0] for texts in bad if texts]
        found = (
            f"wrong in {count:,} examples of {len(firsts):,} files"
            if count
            else _found(kind, reports, num_checked)
        )
        is_right = not count and num_checked > 0
        rows.append(
            judged(
                section, kind, is_right, found, expected[kind], firsts + cut_short if count else []
            )
        )
    return rows


def _found(kind, reports, num_checked):
    if num_checked == 0:
        return "no example to look at"
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
    return judged(
        section,
        "copies",
        not notes,
        "none" if not notes else f"{len(notes)} found",
        "no examples in two files",
        notes,
    )


def _examples_of(report):
    """Equal for two files that have, as far as their sketches tell, the same examples."""
    return report.num_examples and (report.num_examples, report.sketch.tobytes())


def _equal_files(reports, key):
    """Returns, in words, each group of files with equal `key`; a false key is in no group."""
    groups = collections.defaultdict(list)
    for report in reports:
        groups[key(report)].append(os.path.basename(report.path))
    return [", ".join(names) for value, names in groups.items() if value and len(names) > 1]


def published_tfrecord_rows(reports: Sequence[TFRecordReport], vocab_md5: str) -> list[Row]:
    section, sizes = (
        "published examples",
        {os.path.basename(report.path): report.num_bytes for report in reports},
    )
    records, size = sum(report.num_records for report in reports), sum(sizes.values())
    sources = [source for source, count in published.TFRECORD_RECORDS.items() if count == records]
    counts = ", ".join(
        f"{count:,} ({source})" for source, count in published.TFRECORD_RECORDS.items()
    )
    rows = [
        judged(section, "files", len(sizes) == published.NUM_PARTS, len(sizes), published.NUM_PARTS,
               otherwise=DIFFERS),
        judged(section, "bytes", size == published.TFRECORD_BYTES, f"{size:,}",
               f"{published.TFRECORD_BYTES:,}", otherwise=DIFFERS),
        judged(section, "records", bool(sources),
               f"{records:,}" + "".join(f" ({source}'s count)" for source in sources),
               f"one of {counts}", otherwise=DIFFERS),
        judged(section, "vocabulary", vocab_md5 == published.VOCAB_MD5, f"MD5 {vocab_md5}",
               f"MD5 {published.VOCAB_MD5}", otherwise=DIFFERS),
    ]  # fmt: skip
    for name, expected in published.TFRECORD_PART_BYTES.items():
        found = f"{sizes[name]:,} bytes" if name in sizes else "missing"
        rows.append(
            judged(
                section,
                name,
                sizes.get(name) == expected,
                found,
                f"{expected:,} bytes",
                otherwise=DIFFERS,
            )
        )
    return rows


def published_eval_rows(report: TFRecordReport, digest: str | None) -> list[Row]:
    """digest: bert.verification.file_report.eval_digest, None if the file is too broken for one."""
    section = "published evaluation set"
    size_right = report.num_bytes == published.EVAL_10K_BYTES
    note = []
    if digest != published.EVAL_10K_DIGEST:
        note.append(
            "the bytes are right: likely other examples of the same lengths in another order; "
            "nothing published tells more"
            if size_right
            else (
                "the input_ids are other ones: other text, vocabulary, flags or seed, "
                "or not picked by pick_eval_samples.py"
            )
        )
    elif not size_right:
        note.append(
            "the input_ids are the published ones; "
            "the digest does not cover the other six features, compare those"
        )
    return [
        judged(section, "records", report.num_records == published.EVAL_10K_RECORDS,
               f"{report.num_records:,}", f"{published.EVAL_10K_RECORDS:,}", otherwise=DIFFERS),
        judged(section, "bytes", size_right, f"{report.num_bytes:,}",
               f"{published.EVAL_10K_BYTES:,}", otherwise=DIFFERS),
        judged(section, "digest of input_ids", digest == published.EVAL_10K_DIGEST,
               digest or "not computed", published.EVAL_10K_DIGEST, note, DIFFERS),
    ]  # fmt: skip


def likely_causes(reports: Sequence[TFRecordReport], rules: Rules) -> list[str]:
    """What the figures of a training set that differs from the published one point to, in words."""
    causes = []
    if len(reports) < published.NUM_PARTS:
        causes.append(
            f"{published.NUM_PARTS - len(reports):,} of the {published.NUM_PARTS} files are not "
            "there, so the totals cannot match"
        )
    sizes = {os.path.basename(report.path): report.num_bytes for report in reports}
    compared = {name: size for name, size in published.TFRECORD_PART_BYTES.items() if name in sizes}
    if len(sizes) == published.NUM_PARTS:
        ratio, what = sum(sizes.values()) / published.TFRECORD_BYTES, "all files together"
    elif compared:
        ratio, what = (
            sum(sizes[name] for name in compared) / sum(compared.values()),
            " and ".join(compared),
        )
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
    # One masked token in ten shows a random one, any of the vocabulary: so many leave out the last
    # ones by chance never.
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
        return (
            f"{percent}: --max_seq_length is {rules.max_seq_length}, "
            f"published {published.MAX_SEQ_LENGTH}"
        )
    if abs(ratio - 1) < 0.01:
        return (
            f"{percent}: close, not equal: another --random_seed than 12345, "
            "or text that differs a little (extracted anew)"
        )
    if (
        copies >= 1
        and copies != published.DUPE_FACTOR
        and abs(ratio * published.DUPE_FACTOR - copies) < 0.1
    ):
        gigabytes = " (365 GiB become 109)" if copies == 3 else ""
        return (
            f"{percent}: about {copies}/10: --dupe_factor={copies} instead of 10 gives "
            f"this{gigabytes}, or a part of the text is missing"
        )
    return (
        f"{percent}: no --dupe_factor gives this ratio: "
        "other text, vocabulary (cased?), --max_seq_length or --short_seq_prob"
    )
