"""The comparison with what MLPerf published (bert/verification/published.py), and what a difference
is likely due to.

Nothing here opens a file.
"""

import os
from collections.abc import Mapping, Sequence

from bert.verification import published
from bert.verification.check_table import DIFFERS, Row, compared, judged
from bert.verification.dataset_checks import summed_totals
from bert.verification.example_check import Rules
from bert.verification.file_report import TextReport, TFRecordReport


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
