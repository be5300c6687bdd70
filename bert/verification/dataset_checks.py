"""From reports on single files (bert/verification/file_report.py) to rows of the table: the set as
a whole.

Nothing here opens a file.
"""

import collections
import itertools
import os
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from bert.verification.check_table import Row, judged
from bert.verification.example_check import Rules
from bert.verification.file_names import PART, names_row
from bert.verification.file_report import SKETCH_SIZE, TextReport, TFRecordReport, shared_part

_KINDS = ("features", "ids", "masks")
_REPEATED_TOO_MUCH = 0.05  # of a file's examples; short articles give equal ones by chance
# In two files, of the examples or of the bytes of articles. By chance, short ones are equal.
_SHARED_TOO_MUCH = 0.01
_SHARED_BY_CHANCE = 2  # in files so small that one is more than a hundredth
_LEAST_ARTICLE_BYTES = 100  # of one that two parts must not have both


# --- the text ---


def results_rows(
    reports: Sequence[TextReport],
    own_data: bool,
    eval_problem: str | None,
    never_made: Collection[int] = (),
) -> list[Row]:
    """Is a results folder whole? eval_problem: of eval.txt with eval.md5, None if they match;
    never_made: numbers of parts that do_gather.py did not make.
    """
    names = [os.path.basename(report.path) for report in reports]
    broken = [report.problem for report in reports if report.problem]
    copies = [
        f"the same file: {group}; make or fetch all but one again"
        for group in _equal_files(reports, lambda report: report.num_bytes and report.md5)
    ]
    parts = [report for report in reports if PART.match(os.path.basename(report.path))]
    copies += _shared_articles({(part.num_bytes, part.md5): part for part in parts}.values())
    held_out = [
        _held_out_row(report, parts)
        for report in reports
        if os.path.basename(report.path) == "eval.txt"
    ]
    size = f"{sum(report.num_bytes for report in reports):,} bytes"
    found = f"{len(copies)} found" if copies else "none"
    of_eval = eval_problem or "matches eval.txt"
    return [
        names_row("results", names, own_data, ("eval.txt", "eval.md5"), may_lack=never_made),
        judged("results", "whole text", not broken, size, "UTF-8, no file empty or cut", broken),
        judged("results", "copies", not copies, found, "none", copies),
        judged("results", "eval.md5", not eval_problem, of_eval, "the MD5 of each article in it"),
        *held_out,
    ]


def _shared_articles(parts):
    """Returns messages on the pairs of parts (TextReports) that have many articles in common."""
    parts = list(parts)
    kept = [
        np.unique(part.articles[part.articles["bytes"] >= _LEAST_ARTICLE_BYTES]) for part in parts
    ]
    sizes: dict[int, int] = {}
    for articles in kept:
        sizes.update(zip(articles["hash"].tolist(), articles["bytes"].tolist()))
    pairs: dict = collections.defaultdict(list)
    for value, owners in _in_two_or_more([np.unique(articles["hash"]) for articles in kept]):
        for pair in itertools.combinations(owners, 2):
            pairs[pair].append(sizes[value])
    notes = []
    for pair, shared in sorted(pairs.items()):
        smaller = min(int(kept[number]["bytes"].sum()) for number in pair)
        if len(shared) > _SHARED_BY_CHANCE and sum(shared) > _SHARED_TOO_MUCH * smaller:
            names = " and ".join(os.path.basename(parts[number].path) for number in pair)
            percent = f"{100 * sum(shared) / smaller:.0f} %"
            notes.append(
                f"{names} have {len(shared):,} articles in common, {percent} of the smaller one; "
                "make or fetch them again"
            )
    return notes


def _held_out_row(evaluation, parts):
    """Whether the articles of eval.txt are not in the parts (TextReports)."""
    articles = np.unique(evaluation.articles)
    found, notes = np.zeros(len(articles), bool), []
    for part in parts:
        is_in = np.isin(articles["hash"], part.articles["hash"])
        found |= is_in
        if is_in.any():
            name = os.path.basename(part.path)
            notes.append(f"{name}: has {np.count_nonzero(is_in):,} articles of eval.txt")
    total = int(articles["bytes"].sum())
    is_right = int(articles["bytes"][found].sum()) <= _SHARED_TOO_MUCH * total
    notes = [] if is_right else [*notes, "take them out: cleanup_scripts/separate_test_set.py"]
    count = f"{np.count_nonzero(found):,} of {len(articles):,} articles in the parts"
    return judged("results", "held out", is_right, count, "eval.txt is not in the parts", notes)


def _in_two_or_more(arrays: Sequence[np.ndarray]) -> Iterator[tuple[int, list[int]]]:
    """Yields (value, numbers of the arrays that have it) of each value of two arrays or more.

    arrays: uint64 [K] each, distinct values.
    """
    values = np.concatenate([np.empty(0, np.uint64), *arrays])
    owners = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    starts = np.flatnonzero(np.diff(values, prepend=~values[:1]))
    ends = np.append(starts[1:], len(values))
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1]):
        yield int(values[start]), owners[start:end].tolist()


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
    notes = [
        f"{os.path.basename(report.path)}: {report.num_repeated:,} of its "
        f"{report.num_records:,} examples are repeated; make it again"
        for report in reports
        if report.num_repeated > _REPEATED_TOO_MUCH * report.num_records
    ]
    notes += [
        f"the same examples: {group}; make all but one again"
        for group in _equal_files(reports, _examples_of)
    ]
    different = list({_examples_of(report): report for report in reports}.values())
    sketches = [report.sketch for report in different]
    shared: collections.Counter = collections.Counter()
    for _, owners in _in_two_or_more(sketches):
        shared.update(itertools.combinations(owners, 2))
    for a, b in sorted(pair for pair, count in shared.items() if count > _SHARED_BY_CHANCE):
        part = shared_part(sketches[a], sketches[b])
        if part > _SHARED_TOO_MUCH:
            names = " and ".join(os.path.basename(different[number].path) for number in (a, b))
            notes.append(
                f"{names} share about {100 * part:.0f} % of the smaller one's examples; "
                "make them again"
            )
    if not notes:
        notes += _spread_copies(sketches)
    found = f"{len(notes)} found" if notes else "none"
    return judged(section, "copies", not notes, found, "no examples in two files", notes)


def _spread_copies(sketches):
    """A message if many examples are in two files, few of each pair: of the part of all hashes of
    which every sketch has all.
    """
    limits = [sketch[-1] for sketch in sketches if len(sketch) == SKETCH_SIZE]
    if limits:
        sketches = [sketch[sketch <= min(limits)] for sketch in sketches]
    total = sum(map(len, sketches))
    copies = sum(len(owners) - 1 for _, owners in _in_two_or_more(sketches))
    if copies <= max(_SHARED_BY_CHANCE, _SHARED_TOO_MUCH * total):
        return []
    return [f"about {100 * copies / total:.0f} % of all examples are in two files; make them again"]


def held_out_row(reports: Sequence[TFRecordReport], evaluation: TFRecordReport) -> Row:
    """Whether the examples of the evaluation set are not among the training examples."""
    total = len(np.unique(evaluation.hashes))
    found = {os.path.basename(report.path): report.num_in_eval for report in reports}
    count = sum(found.values())
    is_right = count <= _SHARED_TOO_MUCH * total
    notes = [f"{name}: has {number:,} of them" for name, number in found.items() if number]
    notes.append("pick the evaluation set from examples of eval.txt, which no part has")
    words = f"{count:,} of {total:,} in --tfrecord"
    expected = "not among the training examples"
    return judged(
        "evaluation set", "held out", is_right, words, expected, () if is_right else notes
    )


def _examples_of(report):
    """Equal for two files that have, as far as their sketches show, the same examples."""
    return report.num_examples and (report.num_examples, report.sketch.tobytes())


def _equal_files(reports, key):
    """Returns, in words, each group of files with equal `key`; a false key is in no group."""
    groups = collections.defaultdict(list)
    for report in reports:
        groups[key(report)].append(os.path.basename(report.path))
    return [", ".join(names) for value, names in groups.items() if value and len(names) > 1]
