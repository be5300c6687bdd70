"""Downloads a Wikipedia dump or MLPerf's published files, and checks size and MD5; an interrupted
download is resumed.

    python3 cleanup_scripts/download.py --mlperf=text,model
    python3 cleanup_scripts/download.py --mlperf=dump
    python3 cleanup_scripts/download.py --wiki=enwiki --date=YYYYMMDD
    python3 cleanup_scripts/download.py --wiki=enwiki --date=20200101 \\
        --base_url='https://archive.org/download/{wiki}-{date}'
    python3 cleanup_scripts/download.py --list

YYYYMMDD: a date that https://dumps.wikimedia.org/enwiki/ lists. Needs only Python 3.10 or later.

--mlperf writes, below --out_dir (download):
    text     results4/part-00000-of-00500 ..., eval.txt, eval.md5 (an archive is kept and unpacked);
             results4.md5, their MD5s; results4.License.txt
    model    tf1_ckpt/model.ckpt-28252.*, bert_config.json, vocab.txt
    dump     enwiki-20200101-pages-articles-multistream.xml.bz2
A dump by --date goes there too. The last lines printed are the commands to run next.

After an interruption, run the same command again: finished files are verified, partial ones (hidden
.part files) are resumed, an unpacked text is left as it is. A file gets its name only when it is
complete and checked. The network decides how long it takes: the text is about 4 GB packed and 13 GB
unpacked, the model 4 GB, a whole English dump about 20 GB.

MLPerf's files come from MLCommons' storage. Its list of MD5s is fetched at each call. Each file
must match this list and the MD5 in MLPerf's README, if it has one; files with an MD5 from there are
recognized by it, whatever the list calls them. If MLCommons asks for a log-in, the error gives
MLCommons' own command, which can log in with a browser. --source=drive takes the older copies on
Google Drive instead.

Wikimedia removes a dump some months after its date; https://dumps.wikimedia.org/<wiki>/ lists the
current ones. MLPerf's dump, enwiki 20200101, was removed long ago. Wherever it comes from, it is
compared with MLPerf's size and MD5. If an address no longer answers, give another with --url.
"""

import argparse
import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Sequence

# Finds `bert` where nothing is installed.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import mlcommons
import next_commands
from mlperf_files import BY_NAME, GROUPS, TEXT_FOLDER, Wanted, drive_files
from part_file import LoginRequired, Refused, Unreachable
from resumable_download import fetch, md5_of
from unpack_text import unpack_archive_of, write_md5_list

from bert.common import cli
from bert.common.files import DataError, FlagError, raise_if_any, remove
from bert.common.path_flags import folder_problems

DEFAULT_BASE_URL = "https://dumps.wikimedia.org/{wiki}/{date}"
SOURCES = ("mlcommons", "drive")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    # fmt: off
    add("--wiki", default="enwiki", metavar="NAME",
        help="which Wikipedia, e.g. enwiki, dewiki (default: %(default)s)")
    add("--date", metavar="YYYYMMDD", help="the date of the dump; leave out for no dump")
    add("--file", default="pages-articles-multistream.xml.bz2", metavar="NAME",
        help="which file of the dump: what follows '<wiki>-<date>-' in its name "
        "(default: %(default)s)")
    add("--base_url", default=DEFAULT_BASE_URL, metavar="URL",
        help="folder of the dump on a mirror, with {wiki} and {date} (default: %(default)s)")
    add("--mlperf", metavar="GROUPS",
        help=f"MLPerf's files: any of {','.join(GROUPS)}, comma-separated; see --list")
    add("--source", default="mlcommons", metavar="NAME",
        help=f"where MLPerf's files come from: {' or '.join(SOURCES)} (default: %(default)s)")
    add("--metadata_url", default=mlcommons.METADATA_URL, metavar="URL",
        help="folder of MLCommons' .uri and .md5 files, e.g. on a mirror (default: %(default)s)")
    add("--out_dir", default="download", metavar="FOLDER",
        help="where the files go (default: %(default)s)")
    add("--url", action="append", default=[], metavar="FILE=URL",
        help="download this file, by its name or by its path in MLCommons' list, from that "
        "address; may be repeated")
    add("--md5", action="append", default=[], metavar="FILE=HEX",
        help="expect this MD5 of that file, whatever is published; FILE=none: do not check; may "
        "be repeated")
    add("--retries", type=int, default=8, metavar="N",
        help="give up after 1 + N failed tries in a row; 0 = do not retry (default: %(default)s)")
    add("--first_wait", type=float, default=1.0, metavar="SECONDS",
        help="before the second try; doubled each time, 60 at most (default: %(default)s)")
    add("--timeout", type=float, default=60.0, metavar="SECONDS",
        help="without a byte, before trying again (default: %(default)s)")
    add("--list", action="store_true",
        help="show MLPerf's files with what is published of them, and exit")
    # fmt: on
    return parser.parse_args(argv)


def pairs(items: Sequence[str], flag: str, problems: list[str]) -> dict[str, str]:
    """['a=b', ...] -> {'a': 'b', ...}"""
    for item in items:
        if not re.fullmatch(r"[^=]+=.+", item):
            problems.append(f"--{flag} {item!r}: expected FILE={'URL' if flag == 'url' else 'HEX'}")
    return dict(item.split("=", 1) for item in items if "=" in item)


def wanted_groups(args: argparse.Namespace) -> list[str]:
    return [group for group in (args.mlperf or "").split(",") if group]


def check(args: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """Returns ({file: URL}, {file: MD5}) of --url and --md5; FlagError with all problems."""
    problems: list[str] = []
    urls, md5s = pairs(args.url, "url", problems), pairs(args.md5, "md5", problems)
    if args.date is None and not wanted_groups(args):
        problems.append(
            "nothing to download: give --date=YYYYMMDD for a dump, or --mlperf=text; --help shows "
            "examples"
        )
    if args.date is not None and not re.fullmatch(r"\d{8}", args.date):
        problems.append(
            f"--date {args.date!r}: expected YYYYMMDD, a date that "
            f"https://dumps.wikimedia.org/{args.wiki}/ lists"
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
    problems += [f"--out_dir: {problem}" for problem in folder_problems(args.out_dir)]
    # MLCommons' names are known only when its lists have been fetched.
    if args.source == "drive" or not wanted_groups(args):
        groups = [group for group in wanted_groups(args) if group in GROUPS]
        files = [file for group in groups for file in drive_files(group)]
        problems += unknown_names(args, urls.keys() | md5s.keys(), files)
    if args.retries < 0 or args.first_wait < 0 or args.timeout <= 0:
        problems.append("--retries and --first_wait: expected 0 or more; --timeout: more than 0")
    raise_if_any(problems, FlagError)
    return urls, {name: md5.lower() for name, md5 in md5s.items()}


def unknown_names(
    args: argparse.Namespace, names: Collection[str], files: Sequence[Wanted]
) -> list[str]:
    """A message for each name of --url or --md5 that is none of the files to download."""
    dump = [dump_name(args)] if args.date else []
    known = {*dump, *(name for file in files for name in file.known_as())}
    asked = sorted({*dump, *(file.name for file in files)})
    listed = ", ".join(asked[:10]) + (", ..." if len(asked) > 10 else "")
    return [
        f"{name}, of --url or --md5, is not among the files to download: {listed or 'none'}"
        for name in sorted(names)
        if name not in known
    ]


def dump_name(args: argparse.Namespace) -> str:
    return f"{args.wiki}-{args.date}-{args.file}"


class Downloads:
    """The files to download, one after the other; a failure does not stop those after it."""

    def __init__(
        self, args: argparse.Namespace, urls: dict[str, str], md5s: dict[str, str]
    ) -> None:
        self.out_dir, self._urls, self._md5s = os.path.expanduser(args.out_dir), urls, md5s
        self.fetch = functools.partial(
            fetch, retries=args.retries, first_wait=args.first_wait, timeout=args.timeout
        )
        self.errors: list[str] = []  # names
        self.done: dict[str, str] = {}  # {path: MD5}

    def get(
        self,
        file: Wanted,
        if_missing: str = "",
        advice_after: Callable[[Exception], str] = lambda error: "",
    ) -> None:
        """Downloads one file, or checks the existing one; prints the result or notes the error.

        advice_after: function of the error when the server does not send the file.
        """
        path = os.path.join(self.out_dir, file.place)
        url, chosen = (self._chosen(flags, file) for flags in (self._urls, self._md5s))
        md5 = file.md5 if chosen is None else None if chosen == "none" else chosen
        size = file.size if chosen is None else None
        try:
            if chosen is None and file.listed_md5 not in (None, md5):
                raise DataError(
                    f"{file.name}: MLCommons lists the MD5 {file.listed_md5}, MLPerf's README "
                    f"publishes {md5}: so it is another file; to download it anyway: "
                    f"--md5 {file.name}={file.listed_md5}"
                )
            if os.path.exists(path):
                found, how = self._check_existing(path, file.name, md5), "already downloaded"
            else:
                found = self.fetch(url or file.url, path, size, md5, if_missing=if_missing)
                how = "downloaded"
        except (DataError, OSError) as error:
            advice = advice_after(error) if isinstance(error, Refused) and not url else ""
            self.note_error(f"{error}{advice}", file.name)
            return
        unknown = "not checked" if chosen == "none" else "no published one to compare with"
        known = "as expected" if md5 else unknown
        print(f"{path}: {how}, {os.path.getsize(path):,} bytes, MD5 {found} ({known})", flush=True)
        self.done[path] = found

    def note_error(self, message: object, *names: str) -> None:
        """Prints the error, once; `names` are the files or groups that failed."""
        print(f"error: {message}", file=sys.stderr, flush=True)
        self.errors += names

    @staticmethod
    def _chosen(flags, file):
        """The value of --url or --md5 for a file, None if there is none."""
        return next((flags[name] for name in file.known_as() if name in flags), None)

    def _check_existing(self, path, name, md5):
        found = md5_of(path, name)
        if md5 not in (None, found):
            raise DataError(
                f"{path}: its MD5 is {found}, expected {md5}; remove it and run again: "
                f"rm {shlex.quote(path)}"
            )
        return found

    def md5_from_list(self, name: str, url: str, if_missing: str) -> str | None:
        """The MD5 of a dump's file by the dump's own list; None, and an error noted, if missing."""
        list_path = os.path.join(self.out_dir, os.path.basename(url))
        try:
            remove(list_path)  # it grows until the dump is finished
            self.fetch(url, list_path, if_missing=if_missing)
            with open(list_path, encoding="utf-8", errors="replace") as file:
                # Not by parse_md5_list: while the dump grows, the last line may be half written.
                lines = [line.split(maxsplit=1) for line in file.read().splitlines()]
            listed = {line[1]: line[0] for line in lines if len(line) == 2}
            if name in listed:
                return listed[name]
            raise DataError(
                f"{url}: lists {len(listed)} files, but no {name}: the dump is not finished, or "
                "--file is wrong"
            )
        except (DataError, OSError) as error:
            self.note_error(error, name)
            return None


def get_dump(downloads: Downloads, args: argparse.Namespace, md5s: dict[str, str]) -> None:
    name = dump_name(args)
    folder = args.base_url.replace("{wiki}", args.wiki).replace("{date}", args.date).rstrip("/")
    hint = (
        f"Wikimedia removes old dumps: https://dumps.wikimedia.org/{args.wiki}/ lists the current "
        "ones. An older one may be at archive.org: "
        "--base_url='https://archive.org/download/{wiki}-{date}'"
    )
    size, md5 = BY_NAME[name][2:4] if name in BY_NAME else (None, None)
    if md5 is None and name not in md5s:
        list_url = f"{folder}/{args.wiki}-{args.date}-md5sums.txt"
        list_hint = (
            f"{hint}. If only this list is missing, give the MD5 yourself: --md5 {name}=HEX (or "
            "=none, not to check)"
        )
        md5 = downloads.md5_from_list(name, list_url, list_hint)
        if md5 is None:
            return
    downloads.get(Wanted(name, name, f"{folder}/{name}", size, md5), hint)


def list_mlcommons(downloads: Downloads, args: argparse.Namespace) -> dict[str, list[Wanted]]:
    """{group: files} by MLCommons' lists; groups whose list cannot be fetched become errors."""
    groups_of_uri: dict[str, list[str]] = {}
    files: dict[str, list[Wanted]] = {}
    for group in wanted_groups(args):
        groups_of_uri.setdefault(mlcommons.uri_of(args.metadata_url, group), []).append(group)
    for uri, groups in groups_of_uri.items():
        try:
            data_set = mlcommons.read_data_set(uri, downloads.fetch)
        except (DataError, OSError) as error:
            what = error.fault if isinstance(error, LoginRequired) else error
            advice = mlcommons.advice_after(error, uri, groups, downloads.out_dir)
            if isinstance(error, Unreachable):  # the other lists are on the same server
                seen = {*files, *downloads.errors}
                groups = [group for group in wanted_groups(args) if group not in seen]
                downloads.note_error(f"{what}{advice}", *groups)
                break
            downloads.note_error(f"{what}{advice}", *groups)
            continue
        for group in groups:
            try:
                files[group] = mlcommons.files_of_group(group, data_set)
            except DataError as error:
                downloads.note_error(error, group)
    return files


def get_group(
    downloads: Downloads, args: argparse.Namespace, group: str, files: list[Wanted]
) -> None:
    """Downloads the files of a group; the text is unpacked."""
    from_drive = args.source == "drive"
    uri = mlcommons.uri_of(args.metadata_url, group)

    def advice_after(error):
        return "" if from_drive else mlcommons.advice_after(error, uri, [group], downloads.out_dir)

    errors_before = len(downloads.errors)
    for file in files:
        moved = f"MLPerf may have moved it; give its new address: --url {file.name}=..."
        hint = moved if from_drive else "MLCommons lists it, but does not have it"
        downloads.get(file, hint, advice_after)
    if group == "text" and len(downloads.errors) == errors_before:
        finish_text(downloads, files)


def finish_text(downloads: Downloads, files: list[Wanted]) -> None:
    """Unpacks an archive of the text; writes the list of MD5s that verify_dataset.py reads."""
    try:
        if done := unpack_archive_of(files, downloads.out_dir, downloads.done):
            print(f"{os.path.join(downloads.out_dir, TEXT_FOLDER)}: {done}", flush=True)
        write_md5_list(files, downloads.out_dir)
    except (DataError, OSError) as error:
        downloads.note_error(error, TEXT_FOLDER)


def main(argv: Sequence[str] | None = None) -> int:
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
        all_files = [file for group in files.values() for file in group]
        raise_if_any(unknown_names(args, urls.keys() | md5s.keys(), all_files), FlagError)
    if args.date is not None:
        get_dump(downloads, args, md5s)
    for group in files:
        get_group(downloads, args, group, files[group])
    if downloads.errors:
        failed = f"{len(downloads.errors)} ({', '.join(downloads.errors)})"
        print(f"downloaded {len(downloads.done)}, failed {failed}")
        return 1
    for command in next_commands.after(groups, downloads.done, downloads.out_dir):
        print(f"next: {command}")
    return 0


if __name__ == "__main__":
    cli.run(main)
