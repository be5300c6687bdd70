"""Downloads a Wikipedia dump or MLPerf's published files, checked by size and MD5; a broken download is resumed.

    python3 cleanup_scripts/download.py --wiki=enwiki --date=20240101
    python3 cleanup_scripts/download.py --wiki=enwiki --date=20200101 \\
        --base_url='https://archive.org/download/{wiki}-{date}'
    python3 cleanup_scripts/download.py --mlperf=text,model
    python3 cleanup_scripts/download.py --list

Writes download/<file>. Type the same command again after any interruption: what is there is checked, what is begun goes on
(from hidden .part files). A file gets its name only when all of it is there and right. How long it takes is up to the
network: a whole English dump is about 20 GB.

Wikimedia removes a dump some months after its date; its page https://dumps.wikimedia.org/<wiki>/ lists those that are there.
MLPerf's dump, enwiki 20200101, was removed long ago. Wherever it comes from, it is compared with MLPerf's size and MD5. The
addresses of MLPerf's files are those of MLPerf's own download script; if one no longer answers, give another with --url.
"""

import argparse
import os
import re
import sys
from typing import NamedTuple

import cleanup_io
from resumable_download import DownloadError, fetch, md5_of

DEFAULT_BASE_URL = "https://dumps.wikimedia.org/{wiki}/{date}"
DRIVE_URL = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"


class Published(NamedTuple):
    """A file of MLPerf's BERT benchmark. size (bytes) and md5 are None where MLPerf's README does not tell them."""

    group: str
    name: str
    size: int | None
    md5: str | None
    drive_id: str


# Sizes, MD5s and addresses: MLCommons, training repository, language_model/tensorflow/bert: README.md and
# cleanup_scripts/download_and_uncompress.sh. Addresses of the text: the scripts of several submissions use these.
PUBLISHED = (
    Published("text", "results_text.tar.gz", None, None, "14xV2OUGSQDG_yDBrmbSdcDC-QGeqpfs_"),
    Published("text", "bert_reference_results_text_md5.txt", None, None, "1tmMgLwoBvbEJEHXh77sqrXYw5RpqT8R_"),
    Published("model", "bert_config.json", 314, "7f59165e21b7d566db610ff6756c926b", "1fbGClQMi2CoMv7fwrwTC5YYPooQBdcFW"),
    Published("model", "vocab.txt", 231508, "64800d5d8528ce344256daf115d4965e", "1USK108J6hMM_d27xCHi738qBL8_BT1u1"),
    Published("model", "model.ckpt-28252.data-00000-of-00001", 4034713312, "50797acd537880bfb5a7ade80d976129", "1chiTBljF0Eh1U5pKs6ureVHgSbtU8OG_"),
    Published("model", "model.ckpt-28252.index", 17371, "f97de3ae180eb8d479555c939d50d048", "1Q47V3K3jFRkbJ2zGCrKkKk-n0fvMZsa0"),
    Published("model", "model.ckpt-28252.meta", 24740228, "dbd16c731e8a8113bc08eeed0326b8e7", "1vAcVmXSLsLeQ1q7gvHnQUSth5W_f_pwv"),
    Published("dump", "enwiki-20200101-pages-articles-multistream.xml.bz2", 17751214669, "00d47075e0f583fb7c0791fac1c57cb3", "18K1rrNJ_0lSR9bsLaoP3PkQeSFO-9LE7"),
)  # fmt: skip
GROUPS = {"text": "the 500 parts and eval.txt", "model": "vocabulary and first checkpoint", "dump": "the dump of 2020-01-01"}
BY_NAME = {file.name: file for file in PUBLISHED}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--wiki", default="enwiki", metavar="NAME", help="which Wikipedia, e.g. enwiki, dewiki (default: %(default)s)")
    add("--date", metavar="YYYYMMDD", help="the date of the dump; leave out for no dump")
    add("--file", default="pages-articles-multistream.xml.bz2", metavar="NAME",
        help="which file of the dump: what follows '<wiki>-<date>-' in its name (default: %(default)s)")  # fmt: skip
    add("--base_url", default=DEFAULT_BASE_URL, metavar="URL",
        help="folder of the dump on a mirror, with {wiki} and {date} (default: %(default)s)")  # fmt: skip
    add("--mlperf", metavar="GROUPS", help=f"MLPerf's files: any of {','.join(GROUPS)}, comma-separated; see --list")
    add("--out_dir", default="download", metavar="FOLDER", help="where the files go (default: %(default)s)")
    add("--url", action="append", default=[], metavar="FILE=URL", help="take this file from that address; may be repeated")
    add("--md5", action="append", default=[], metavar="FILE=HEX",
        help="expect this MD5 of that file; FILE=none: do not check; may be repeated")  # fmt: skip
    add("--retries", type=int, default=8, metavar="N",
        help="tries in a row that may bring nothing; 0 = give up at the first fault (default: %(default)s)")  # fmt: skip
    add("--first_wait", type=float, default=1.0, metavar="SECONDS",
        help="before the second try; doubled each time, 60 at most (default: %(default)s)")  # fmt: skip
    add(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="without a byte, before trying again (default: %(default)s)",
    )
    add("--list", action="store_true", help="show MLPerf's files with what is known of them, and end")
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
    """Returns ({file name: URL}, {file name: MD5}) of --url and --md5; ends with all problems told if there are any."""
    problems = []
    urls, md5s = pairs(args.url, "url", problems), pairs(args.md5, "md5", problems)
    if args.date is None and not wanted_groups(args):
        problems.append("nothing to download: give --date=YYYYMMDD for a dump, or --mlperf=text; --help shows examples")
    if args.date is not None and not re.fullmatch(r"\d{8}", args.date):
        problems.append(f"--date {args.date!r}: expected YYYYMMDD; https://dumps.wikimedia.org/{args.wiki}/ lists the dates")
    for group in wanted_groups(args):
        if group not in GROUPS:
            problems.append(f"--mlperf {group}: expected any of {', '.join(GROUPS)}")
    for url in (*urls.values(), args.base_url):
        if not re.match(r"https?://", url):
            problems.append(f"{url}: expected an address that begins with http:// or https://")
    for name, md5 in md5s.items():
        if not re.fullmatch(r"[0-9a-fA-F]{32}|none", md5):
            problems.append(f"--md5 {name}={md5}: expected 32 hexadecimal digits, or none")
    asked = {file.name for file in PUBLISHED if file.group in wanted_groups(args)} | ({dump_name(args)} if args.date else set())
    for name in sorted((urls.keys() | md5s.keys()) - asked):
        problems.append(f"{name}, of --url or --md5, is not among the files asked for: {', '.join(sorted(asked)) or 'none'}")
    if args.retries < 0 or args.first_wait < 0 or args.timeout <= 0:
        problems.append("--retries and --first_wait: expected 0 or more; --timeout: more than 0")
    cleanup_io.exit_if(problems)
    return urls, {name: md5.lower() for name, md5 in md5s.items()}


def dump_name(args):
    return f"{args.wiki}-{args.date}-{args.file}"


class Downloads:
    """The files asked for, one after the other; a failure does not stop those after it."""

    def __init__(self, args, urls, md5s):
        self._out_dir, self._urls, self._md5s = os.path.expanduser(args.out_dir), urls, md5s
        self._how = {"retries": args.retries, "first_wait": args.first_wait, "timeout": args.timeout}
        self.errors, self.got = [], []

    def get(self, name, url, size, md5, if_missing=""):
        """Downloads one file, or checks the one that is there; prints a line of result or notes the error."""
        path = os.path.join(self._out_dir, name)
        md5 = {"none": None}.get(chosen := self._md5s.get(name, md5), chosen)
        size = None if name in self._md5s else size
        try:
            if os.path.exists(path):
                found, told = self._check_present(path, name, md5), "was there"
            else:
                url = self._urls.get(name, url)
                found, told = fetch(url, path, size, md5, if_missing=if_missing, **self._how), "downloaded"
        except (DownloadError, OSError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            self.errors.append(name)
            return
        known = "as expected" if md5 else "no published one to compare with"
        print(f"{path}: {told}, {os.path.getsize(path):,} bytes, MD5 {found} ({known})", flush=True)
        self.got.append(path)

    def _check_present(self, path, name, md5):
        found = md5_of(path, name)
        if md5 not in (None, found):
            raise DownloadError(f"{path}: its MD5 is {found}, expected {md5}; remove it and run again: rm {path}")
        return found

    def md5_from_list(self, name, url, if_missing):
        """The MD5 of a dump's file by the dump's own list; None, with the error noted, if it cannot be had."""
        list_path = os.path.join(self._out_dir, os.path.basename(url))
        try:
            if os.path.exists(list_path):  # of an unfinished dump, perhaps: it grows until the dump is whole
                os.remove(list_path)
            fetch(url, list_path, if_missing=if_missing, **self._how)
            with open(list_path, encoding="utf-8", errors="replace") as file:
                listed = dict(reversed(line.split(maxsplit=1)) for line in file.read().splitlines() if " " in line)
            if name in listed:
                return listed[name]
            raise DownloadError(
                f"{url}: lists {len(listed)} files, but no {name}: the dump is not finished, or --file is wrong"
            )
        except (DownloadError, OSError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            self.errors.append(name)
            return None


def get_dump(downloads, args, md5s):
    name = dump_name(args)
    folder = args.base_url.replace("{wiki}", args.wiki).replace("{date}", args.date).rstrip("/")
    hint = (
        f"Wikimedia removes old dumps: https://dumps.wikimedia.org/{args.wiki}/ lists those that are there. An older one may be at "
        "archive.org: --base_url='https://archive.org/download/{wiki}-{date}'"
    )
    size, md5 = BY_NAME[name][2:4] if name in BY_NAME else (None, None)
    if md5 is None and name not in md5s:
        list_hint = f"{hint}. If only this list is missing, give the MD5 yourself: --md5 {name}=HEX (or =none, not to check)"
        md5 = downloads.md5_from_list(name, f"{folder}/{args.wiki}-{args.date}-md5sums.txt", list_hint)
        if md5 is None:
            return
    downloads.get(name, f"{folder}/{name}", size, md5, hint)


def next_commands(paths):
    """What to type now, by what was downloaded."""
    for path in paths:
        quoted = f"'{path}'" if " " in path else path
        if re.search(r"pages-articles.*\.(bz2|xml)$", path):
            yield f"cleanup_scripts/process_wiki.sh {quoted} wiki"
        elif path.endswith("results_text.tar.gz"):
            folder = os.path.dirname(path) or "."
            yield f"tar -xzf {quoted} -C {folder}   # makes {folder}/results4"
            yield f"python3 verify_dataset.py --results={folder}/results4 --md5_list={folder}/bert_reference_results_text_md5.txt"


def print_list():
    for group, what in GROUPS.items():
        print(f"--mlperf={group}: {what}")
        for file in PUBLISHED:
            if file.group == group:
                size = f"{file.size:,}" if file.size is not None else "size not published"
                print(f"  {file.name:52} {size:>18}  {file.md5 or 'MD5 not published'}\n    {DRIVE_URL.format(file.drive_id)}")


def main(argv=None):
    args = parse_args(argv)
    if args.list:
        print_list()
        return 0
    urls, md5s = check(args)
    downloads = Downloads(args, urls, md5s)
    if args.date is not None:
        get_dump(downloads, args, md5s)
    for file in PUBLISHED:
        if file.group in wanted_groups(args):
            hint = f"MLPerf may have moved it; name where it is now: --url {file.name}=..."
            downloads.get(file.name, DRIVE_URL.format(file.drive_id), file.size, file.md5, hint)
    if downloads.errors:
        print(f"there: {len(downloads.got)}, FAILED: {len(downloads.errors)} ({', '.join(downloads.errors)})")
        return 1
    for command in next_commands(downloads.got):
        print(f"next: {command}")
    return 0


if __name__ == "__main__":
    cleanup_io.run(main)
