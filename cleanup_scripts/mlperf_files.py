"""The files of MLPerf's BERT benchmark: what is published of them, and where download.py puts them.

Imported by download.py and the modules that it uses, never run.
"""

import os
import re
from typing import NamedTuple

DRIVE_URL = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
# Below --out_dir, whatever the source calls it: the 500 parts, eval.txt and eval.md5.
TEXT_FOLDER = "results4"
TEXT_MD5_LIST = f"{TEXT_FOLDER}.md5"  # the MD5s of these, as the source lists them
TEXT_LICENCE = f"{TEXT_FOLDER}.License.txt"  # the model has another file called License.txt
CHECKPOINT_FOLDER = "tf1_ckpt"
PART = re.compile(r"part-\d{5}-of-\d{5}")
TEXT_FILE = re.compile(rf"{PART.pattern}|eval\.txt|eval\.md5")
ARCHIVE = re.compile(r".*\.(tar|tar\.gz|tgz|tar\.bz2|tar\.xz)")
MD5_LIST = re.compile(r".*md5.*\.txt|.*\.md5(sum)?")
LICENCE = re.compile(r"licen[cs]e(\..*)?", re.IGNORECASE)
DUMP = re.compile(r".*-pages-articles.*\.xml(\.bz2)?")
CHECKPOINT = re.compile(r"model\.ckpt-\d+\.(index|meta|data-\d{5}-of-\d{5})")


class Published(NamedTuple):
    """A file of MLPerf's benchmark. size (bytes), md5: None where its README has none."""

    group: str
    name: str
    size: int | None
    md5: str | None
    drive_id: str


class Wanted(NamedTuple):
    """A file to download: `name` is its path at the source, `place` its path below --out_dir."""

    name: str
    place: str
    url: str
    size: int | None = None
    md5: str | None = None
    listed_md5: str | None = None  # by the source's own list; must equal md5

    def known_as(self) -> tuple[str, ...]:
        """The names by which --url and --md5 may call it."""
        return self.name, os.path.basename(self.name), os.path.basename(self.place)


# Sizes, MD5s and addresses: MLCommons, training repository, language_model/tensorflow/bert:
# README.md and cleanup_scripts/download_and_uncompress.sh. Addresses of the text: the scripts of
# several submissions use these.
# fmt: off
PUBLISHED = (
    Published("text", "results_text.tar.gz", None, None,
              "14xV2OUGSQDG_yDBrmbSdcDC-QGeqpfs_"),
    Published("text", "bert_reference_results_text_md5.txt", None, None,
              "1tmMgLwoBvbEJEHXh77sqrXYw5RpqT8R_"),
    Published("model", "bert_config.json", 314,
              "7f59165e21b7d566db610ff6756c926b", "1fbGClQMi2CoMv7fwrwTC5YYPooQBdcFW"),
    Published("model", "vocab.txt", 231508,
              "64800d5d8528ce344256daf115d4965e", "1USK108J6hMM_d27xCHi738qBL8_BT1u1"),
    Published("model", "model.ckpt-28252.data-00000-of-00001", 4034713312,
              "50797acd537880bfb5a7ade80d976129", "1chiTBljF0Eh1U5pKs6ureVHgSbtU8OG_"),
    Published("model", "model.ckpt-28252.index", 17371,
              "f97de3ae180eb8d479555c939d50d048", "1Q47V3K3jFRkbJ2zGCrKkKk-n0fvMZsa0"),
    Published("model", "model.ckpt-28252.meta", 24740228,
              "dbd16c731e8a8113bc08eeed0326b8e7", "1vAcVmXSLsLeQ1q7gvHnQUSth5W_f_pwv"),
    Published("dump", "enwiki-20200101-pages-articles-multistream.xml.bz2", 17751214669,
              "00d47075e0f583fb7c0791fac1c57cb3", "18K1rrNJ_0lSR9bsLaoP3PkQeSFO-9LE7"),
)
# fmt: on
GROUPS = {
    "text": "the 500 parts and eval.txt",
    "model": "vocabulary and first checkpoint",
    "dump": "the dump of 2020-01-01",
}
BY_NAME = {file.name: file for file in PUBLISHED}
BY_MD5 = {file.md5: file for file in PUBLISHED if file.md5 is not None}


def place_of(group: str, path: str) -> str:
    """Where below --out_dir a file of this group belongs, by its path at the source."""
    name = os.path.basename(path)
    if group == "text":
        if LICENCE.fullmatch(name):
            return TEXT_LICENCE
        return f"{TEXT_FOLDER}/{name}" if TEXT_FILE.fullmatch(name) else path
    return f"{CHECKPOINT_FOLDER}/{name}" if CHECKPOINT.fullmatch(name) else name


CHECKPOINT_PLACES = tuple(
    place_of("model", file.name) for file in PUBLISHED if CHECKPOINT.fullmatch(file.name)
)


def drive_files(group: str) -> list[Wanted]:
    """The files of a group on MLPerf's Google Drive."""
    return [
        Wanted(
            file.name,
            place_of(group, file.name),
            DRIVE_URL.format(file.drive_id),
            file.size,
            file.md5,
        )
        for file in PUBLISHED
        if file.group == group
    ]
