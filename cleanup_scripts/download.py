"""Downloads a Wikipedia dump or MLPerf's published files, checked by size and MD5; a broken
download is resumed.

    python3 cleanup_scripts/download.py --mlperf=text,model
    python3 cleanup_scripts/download.py --mlperf=dump
    python3 cleanup_scripts/download.py --wiki=enwiki --date=20240101
    python3 cleanup_scripts/download.py --wiki=enwiki --date=20200101 \\
        --base_url='https://archive.org/download/{wiki}-{date}'
    python3 cleanup_scripts/download.py --list

--mlperf writes, below --out_dir (download):
    text     results4/part-00000-of-00500 ..., eval.txt, eval.md5 (an archive is kept and unpacked);
             results4.md5, their MD5s
    model    tf1_ckpt/model.ckpt-28252.*, bert_config.json, vocab.txt
    dump     enwiki-20200101-pages-articles-multistream.xml.bz2
A dump by --date goes there too. The last lines printed are the commands to run next.

Run the same command again after any interruption: finished files are verified, partial ones (hidden
.part files) are resumed, what was unpacked is left alone. A file gets its name only when all of it
is there and right. How long it takes is up to the network: the text is about 4 GB packed and 13 GB
unpacked, the model 4 GB, a whole English dump about 20 GB.

MLPerf's files come from MLCommons' storage. Its list of MD5s is fetched at each call, and each file
must match the list, and what MLPerf's README publishes. If MLCommons asks for a log-in, the error
gives MLCommons' own command, which can log in with a browser. --source=drive takes the older copies
on Google Drive instead.

Wikimedia removes a dump some months after its date; its page https://dumps.wikimedia.org/<wiki>/
lists those that are there. MLPerf's dump, enwiki 20200101, was removed long ago. Wherever it comes
from, it is compared with MLPerf's size and MD5. If an address no longer answers, give another with
--url.
"""

import argparse
import os
import re
import sys

import cleanup_io
import mlcommons
import next_commands
from mlperf_files import BY_NAME, GROUPS, TEXT_FOLDER, Wanted, drive_files
from part_file import DownloadError, Refused
from resumable_download import fetch, md5_of
from unpack_text import unpack_archive_of, write_md5_list

DEFAULT_BASE_URL = "https://dumps.wikimedia.org/{wiki}/{date}"
SOURCES = ("mlcommons", "drive")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--wiki",
        default="enwiki",
        metavar="NAME",
        help="which Wikipedia, e.g. enwiki, dewiki (default: %(default)s)",
    )
    add("--date", metavar="YYYYMMDD", help="the date of the dump; leave out for no dump")
    add("--file", default="pages-articles-multistream.xml.bz2", metavar="NAME",
        help="which file of the dump: what follows '<wiki>-<date>-' in its name "
             "(default: %(default)s)")  # fmt: skip
    add("--base_url", default=DEFAULT_BASE_URL, metavar="URL",
        help="folder of the dump on a mirror, with {wiki} and {date} "
             "(default: %(default)s)")  # fmt: skip
    add(
        "--mlperf",
        metavar="GROUPS",
        help=f"MLPerf's files: any of {','.join(GROUPS)}, comma-separated; see --list",
    )
    add("--source", default="mlcommons", metavar="NAME",
        help=f"where MLPerf's files come from: {' or '.join(SOURCES)} "
             "(default: %(default)s)")  # fmt: skip
    add("--metadata_url", default=mlcommons.METADATA_URL, metavar="URL",
        help="folder of MLCommons' .uri and .md5 files, e.g. on a mirror "
             "(default: %(default)s)")  # fmt: skip
    add(
        "--out_dir",
        default="download",
        metavar="FOLDER",
        help="where the files go (default: %(default)s)",
    )
    add(
        "--url",
        action="append",
        default=[],
        metavar="FILE=URL",
        help=(
            "take this file, by its name or by its path in MLCommons' list, from that address; "
            "may be repeated"
        ),
    )
    add("--md5", action="append", default=[], metavar="FILE=HEX",
        help="expect this MD5 of that file, whatever is published; FILE=none: do not check; "
             "may be repeated")  # fmt: skip
    add("--retries", type=int, default=8, metavar="N",
        help="tries in a row that may bring nothing; 0 = give up at the first fault "
             "(default: %(default)s)")  # fmt: skip
    add("--first_wait", type=float, default=1.0, metavar="SECONDS",
        help="before the second try; doubled each time, 60 at most "
             "(default: %(default)s)")  # fmt: skip
    add(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="without a byte, before trying again (default: %(default)s)",
    )
    add(
        "--list",
        action="store_true",
        help="show MLPerf's files with what is known of them, and end",
    )
    return parser.parse_args(argv)


def pairs(items, flag, problems):
    """['a=b', ...] -> {'a': 'b', ...}"""
    for item in items:
        if not re.fullmatch(r"[^=]+=.+", item):
            problems.append(f"--{flag} {item!r}: expected FILE={'URL' if flag == 'url' else 'HEX'}")
    return dict(item.split("=", 1) for item in items if "=" in item)


def wanted_groups(args):
    return [group for group in (args.mlperf or "").split(",") if group]


def check(args):
    """Returns ({file name: URL}, {file name: MD5}) of --url and --md5; ends with all problems told
    if there are any.
    """
    problems = []
    urls, md5s = pairs(args.url, "url", problems), pairs(args.md5, "md5", problems)
    if args.date is None and not wanted_groups(args):
        problems.append(
            "nothing to download: give --date=YYYYMMDD for a dump, or --mlperf=text; "
            "--help shows examples"
        )
    if args.date is not None and not re.fullmatch(r"\d{8}", args.date):
        problems.append(
            f"--date {args.date!r}: expected YYYYMMDD; "
            f"https://dumps.wikimedia.org/{args.wiki}/ lists the dates"
        )
    for group in wanted_groups(args):
        if group not in GROUPS:
            problems.append(f"--mlperf {group}: expected any of {', '.join(GROUPS)}")
    if args.source not in SOURCES:
        problems.append(f"--source {args.source}: expected {' or '.join(SOURCES)}")
    for url in (*urls.values(), args.base_url, args.metadata_url):
        if not re.match(r"https?://", url):
            problems.append(f"{url}: expected an address that begins with http:// or https://")
    for name, md5 in md5s.items():
        if not re.fullmatch(r"[0-9a-fA-F]{32}|none", md5):
            problems.append(f"--md5 {name}={md5}: expected 32 hexadecimal digits, or none")
    # MLCommons' names are known when its lists are here.
    if args.source == "drive" or not wanted_groups(args):
        asked = [
            file.name
            for group in wanted_groups(args)
            if group in GROUPS
            for file in drive_files(group)
        ]
        problems += unknown_names(args, urls.keys() | md5s.keys(), asked)
    if args.retries < 0 or args.first_wait < 0 or args.timeout <= 0:
        problems.append("--retries and --first_wait: expected 0 or more; --timeout: more than 0")
    cleanup_io.exit_if(problems)
    return urls, {name: md5.lower() for name, md5 in md5s.items()}


def unknown_names(args, names, asked):
    """A message for each name of --url or --md5 that is not among the files asked for."""
    asked = sorted({*asked, *([dump_name(args)] if args.date else [])})
    known = {*asked, *map(os.path.basename, asked)}
    told = ", ".join(asked[:10]) + (", ..." if len(asked) > 10 else "")
    return [
        f"{name}, of --url or --md5, is not among the files asked for: {told or 'none'}"
        for name in sorted(names)
        if name not in known
    ]


def dump_name(args):
    return f"{args.wiki}-{args.date}-{args.file}"


class Downloads:
    """The files asked for, one after the other; a failure does not stop those after it."""

    def __init__(self, args, urls, md5s):
        self.out_dir, self._urls, self._md5s = os.path.expanduser(args.out_dir), urls, md5s
        self.how = {"retries": args.retries, "first_wait": args.first_wait, "timeout": args.timeout}
        self.errors, self.got = [], {}  # names; {path: MD5}

    def get(self, file, if_missing="", own_command=""):
        """Downloads one file, or checks the one that is there; prints the result or notes the
        error.
        """
        path = os.path.join(self.out_dir, file.place)
        url, chosen = (self._chosen(flags, file) for flags in (self._urls, self._md5s))
        md5 = file.md5 if chosen is None else None if chosen == "none" else chosen
        size = file.size if chosen is None else None
        try:
            if chosen is None and file.listed_md5 not in (None, md5):
                raise DownloadError(
                    f"{file.name}: MLCommons lists the MD5 {file.listed_md5}, MLPerf's README "
                    f"publishes {md5}: it is another file; "
                    f"to take it all the same: --md5 {file.name}={file.listed_md5}"
                )
            if os.path.exists(path):
                found, done = self._check_present(path, file.name, md5), "was there"
            else:
                found, done = (
                    fetch(url or file.url, path, size, md5, if_missing=if_missing, **self.how),
                    "downloaded",
                )
        except (DownloadError, OSError) as error:
            self.note_error(
                file.name, f"{error}" + (refused_advice(error, own_command) if not url else "")
            )
            return
        unknown = "not checked" if chosen == "none" else "no published one to compare with"
        known = "as expected" if md5 else unknown
        print(f"{path}: {done}, {os.path.getsize(path):,} bytes, MD5 {found} ({known})", flush=True)
        self.got[path] = found

    def note_error(self, name, message):
        print(f"error: {message}", file=sys.stderr, flush=True)
        self.errors.append(name)

    @staticmethod
    def _chosen(flags, file):
        return flags.get(file.name, flags.get(os.path.basename(file.name)))

    def _check_present(self, path, name, md5):
        found = md5_of(path, name)
        if md5 not in (None, found):
            raise DownloadError(
                f"{path}: its MD5 is {found}, expected {md5}; remove it and run again: rm {path}"
            )
        return found

    def md5_from_list(self, name, url, if_missing):
        """The MD5 of a dump's file by the dump's own list; None, with the error noted, if it cannot
        be had.
        """
        list_path = os.path.join(self.out_dir, os.path.basename(url))
        try:
            # Of an unfinished dump, perhaps: it grows until the dump is whole.
            if os.path.exists(list_path):
                os.remove(list_path)
            fetch(url, list_path, if_missing=if_missing, **self.how)
            with open(list_path, encoding="utf-8", errors="replace") as file:
                listed = dict(
                    reversed(line.split(maxsplit=1))
                    for line in file.read().splitlines()
                    if " " in line
                )
            if name in listed:
                return listed[name]
            raise DownloadError(
                f"{url}: lists {len(listed)} files, but no {name}: "
                "the dump is not finished, or --file is wrong"
            )
        except (DownloadError, OSError) as error:
            self.note_error(name, error)
            return None


def refused_advice(error, own_command):
    """What to do when MLCommons' server does not give a file: MLCommons' own command."""
    if not own_command or not isinstance(error, Refused):
        return ""
    return f"\n  MLCommons' own downloader, which can log in, may get it: {own_command}"


def get_dump(downloads, args, md5s):
    name = dump_name(args)
    folder = args.base_url.replace("{wiki}", args.wiki).replace("{date}", args.date).rstrip("/")
    hint = (
        f"Wikimedia removes old dumps: https://dumps.wikimedia.org/{args.wiki}/ lists those that "
        "are there. An older one may be at "
        "archive.org: --base_url='https://archive.org/download/{wiki}-{date}'"
    )
    size, md5 = BY_NAME[name][2:4] if name in BY_NAME else (None, None)
    if md5 is None and name not in md5s:
        list_hint = (
            f"{hint}. If only this list is missing, give the MD5 yourself: "
            f"--md5 {name}=HEX (or =none, not to check)"
        )
        md5 = downloads.md5_from_list(
            name, f"{folder}/{args.wiki}-{args.date}-md5sums.txt", list_hint
        )
        if md5 is None:
            return
    downloads.get(Wanted(name, name, f"{folder}/{name}", size, md5), hint)


def list_mlcommons(downloads, args):
    """{group: files} by MLCommons' lists; a group whose list cannot be had is noted as an error."""
    files, data_sets = {}, {}
    for group in wanted_groups(args):
        uri = mlcommons.uri_of(args.metadata_url, group)
        try:
            if uri not in data_sets:
                data_sets[uri] = mlcommons.read_data_set(uri, args.out_dir, downloads.how)
            files[group] = mlcommons.files_of_group(group, data_sets[uri])
        except (DownloadError, OSError) as error:
            downloads.note_error(group, error)
    return files


def get_group(downloads, args, group, files):
    if args.source == "drive":
        hints = [
            f"MLPerf may have moved it; name where it is now: --url {file.name}=..."
            for file in files
        ]
        command = ""
    else:
        hints = ["MLCommons lists it, but does not have it"] * len(files)
        command = mlcommons.own_command(mlcommons.uri_of(args.metadata_url, group), args.out_dir)
    errors_before = len(downloads.errors)
    for file, hint in zip(files, hints):
        downloads.get(file, hint, command)
    if group == "text" and len(downloads.errors) == errors_before:
        finish_text(downloads, files)


def finish_text(downloads, files):
    """Unpacks the text if it came as an archive, and writes the list of its MD5s that
    verify_dataset.py reads.
    """
    try:
        if done := unpack_archive_of(files, downloads.out_dir, downloads.got):
            print(f"{os.path.join(downloads.out_dir, TEXT_FOLDER)}: {done}", flush=True)
        write_md5_list(files, downloads.out_dir)
    except (DownloadError, OSError) as error:
        downloads.note_error(TEXT_FOLDER, error)


def main(argv=None):
    args = parse_args(argv)
    if args.list:
        mlcommons.print_list(args.metadata_url)
        return 0
    urls, md5s = check(args)
    downloads, groups = Downloads(args, urls, md5s), wanted_groups(args)
    if args.source == "drive":
        files = {group: drive_files(group) for group in groups}
    else:
        files = list_mlcommons(downloads, args)
    if not downloads.errors:
        cleanup_io.exit_if(
            unknown_names(
                args, urls.keys() | md5s.keys(), [f.name for group in files.values() for f in group]
            )
        )
    if args.date is not None:
        get_dump(downloads, args, md5s)
    for group in files:
        get_group(downloads, args, group, files[group])
    if downloads.errors:
        print(
            f"there: {len(downloads.got)}, FAILED: {len(downloads.errors)} "
            f"({', '.join(downloads.errors)})"
        )
        return 1
    for command in next_commands.after(groups, downloads.got, downloads.out_dir):
        print(f"next: {command}")
    return 0


if __name__ == "__main__":
    cleanup_io.run(main)
