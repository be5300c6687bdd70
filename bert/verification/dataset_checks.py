"""From reports on single files (bert/verification/file_report.py) to rows of the table: the set as
a whole, and against what MLPerf published.

Nothing here opens a file.
"""

import collections
import itertools
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from bert.verification import published
from bert.verification.check_table import DIFFERS, Row, compared, judged
from bert.verification.example_check import Rules
from bert.verification.file_report import SKETCH_SIZE, TextReport, TFRecordReport, shared_part

_PART = re.compile(r"part-(\d{5})-of-(\d{5})$")
_KINDS = ("features", "ids", "masks")
_REPEATED_TOO_MUCH = 0.05  # of a file's examples; short articles give equal ones by chance
# In two files, of the examples or of the bytes of articles. By chance, short ones are equal.
_SHARED_TOO_MUCH = 0.01
_SHARED_BY_CHANCE = 2  # in files so small that one is more than a hundredth
_LEAST_ARTICLE_BYTES = 100  # of one that two parts must not have both


def names_row(
    section: str,
    names: Sequence[str],
    own_data: bool,
    others: Collection[str] = (),
    written: Collection[str] = (),
    may_lack: Collection[int] = (),
) -> Row:
    """Whether no part-XXXXX-of-YYYYY is missing. others: names that may be there too; written:
    those that have a manifest or a text; may_lack: numbers of parts that were never made.

    Of data of one's own, YYYYY = 500 says nothing: it is the default of do_gather.py.
    """
    matches = [_PART.match(name) for name in names]
    parts = [(int(match[1]), int(match[2])) for match in matches if match]
    if not parts and section != "results":
        notes = [
            f"{name}: missing, its manifest or its text is there; make it again"
            for name in sorted(set(written) - set(names))
        ]
        expected = "not named part-XXXXX-of-YYYYY"
        return judged(section, "files", not notes, f"{len(names):,}", expected, notes)
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
    end = max(numbers, default=-1) + 1
    if not (own_data and total == published.NUM_PARTS):
        end = max(total, end)
    missing = [number for number in range(end) if number not in numbers | set(may_lack)]
    if missing:
        hint = "make them, or fetch them again"
        if own_data and missing[0] > max(numbers, default=-1):
            hint += "; if there never were more, give the parts by a pattern"
        notes.insert(0, f"missing: {ranges(missing, total)}; {hint}")
    notes += [f"{name}: missing" for name in others if name not in names]
    notes += [
        f"{name}: missing, its manifest or its text is there; make it again"
        for name in sorted(written)
        if name not in names and not (_PART.match(name) and int(name[5:10]) in missing)
    ]
    found = f"{len(parts):,} parts" + (f" and {len(foreign):,} others" if foreign else "")
    return judged(
        section,
        "files",
        not notes,
        found,
        f"{end - len(set(may_lack) & set(range(end))):,} parts",
        notes,
    )


def may_lack_the_last(names: Sequence[str], written: Collection[str]) -> bool:
    """Whether names and manifests say nothing of a last file that is missing."""
    totals = [int(match[2]) for name in names if (match := _PART.match(name))]
    return not written and (not totals or max(totals) == published.NUM_PARTS)


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
    parts = [report for report in reports if _PART.match(os.path.basename(report.path))]
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
    elif digest is None:
        notes = ["examples could not be read, see above: mend those first"]
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


def flags_unlike_published(settings: Sequence[Mapping]) -> list[str]:
    """Causes, by the flags that manifests and instance files say they were made with."""
    causes = []
    for name, expected in published.SETTINGS.items():
        values = sorted({str(each[name]) for each in settings if name in each} - {str(expected)})
        if values:
            found = " and ".join(f"--{name}={value}" for value in values)
            causes.append(f"made with {found}, by its own record; published: {expected}")
    return causes


def likely_causes(
    reports: Sequence[TFRecordReport], rules: Rules, flags_differ: Sequence[str] = ()
) -> list[str]:
    """What the figures of a training set that differs from the published one point to, in words.

    flags_differ: what `flags_unlike_published` returned.
    """
    causes: list[str] = []
    if len(reports) < published.NUM_PARTS:
        causes.append(
            f"{published.NUM_PARTS - len(reports):,} of the {published.NUM_PARTS} files are "
            "missing, so the totals cannot match"
        )
    sizes = {os.path.basename(report.path): report.num_bytes for report in reports}
    ratios = {
        name: sizes[name] / size
        for name, size in published.TFRECORD_PART_BYTES.items()
        if name in sizes
    }
    if len(sizes) == published.NUM_PARTS:
        ratios["all files together"] = sum(sizes.values()) / published.TFRECORD_BYTES
    if flags_differ:
        causes += flags_differ
    elif any(ratio != 1.0 for ratio in ratios.values()):
        causes.append(_cause_by_ratios(ratios, rules))
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


def _cause_by_ratios(ratios: Mapping[str, float], rules: Rules) -> str:
    """ratios: {file or what: its share of the published bytes}, one of them not 1."""
    shown = ", ".join(f"{what} {100 * ratio:.1f} %" for what, ratio in ratios.items())
    percent = f"of the published bytes: {shown}"
    least, most = min(ratios.values()), max(ratios.values())
    copies = round(most * published.DUPE_FACTOR)
    if rules.max_seq_length != published.MAX_SEQ_LENGTH:
        flag = f"--max_seq_length is {rules.max_seq_length}"
        return f"{percent}: {flag}, published {published.MAX_SEQ_LENGTH}"
    if most == 1.0:  # not chance: the flags and the text are the published ones
        short = ", ".join(what for what, ratio in ratios.items() if ratio != 1.0)
        return f"{percent}: the flags are right, as far as seen, and files truncated: {short}"
    if most - least > 0.02 * most:
        short = ", ".join(what for what, ratio in ratios.items() if ratio < 0.98 * most)
        return f"{percent}: truncated, or made of other text: {short}"
    if abs(most - 1) < 0.01:
        return (
            f"{percent}: close, not equal: another --random_seed than 12345, "
            "or text that differs a little (extracted again)"
        )
    is_near = abs(most * published.DUPE_FACTOR - copies) < 0.1
    if copies >= 1 and copies != published.DUPE_FACTOR and is_near:
        gigabytes = " (391 GB become 117)" if copies == 3 else ""
        return (
            f"{percent}: about {copies}/10: --dupe_factor={copies} instead of 10 gives "
            f"this{gigabytes}, or a part of the text is missing"
        )
    return (
        f"{percent}: no --dupe_factor gives this ratio: files truncated, "
        "other text, vocabulary (cased?), --max_seq_length or --short_seq_prob; "
        "--results with the text tells more"
    )
