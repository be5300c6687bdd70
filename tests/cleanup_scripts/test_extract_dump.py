"""The extraction of multistream dumps: equal to one WikiExtractor's, whatever the workers; borders,
damage, resuming, older versions.

    python3 -m pytest tests/cleanup_scripts/test_extract_dump.py

Real Wikipedia text is the quick start's excerpt, which the gensim package carries; the tests that
need it are skipped where the package index cannot be reached.
"""

import bz2
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from itertools import accumulate

import pytest
from conftest import ROOT

SCRIPTS = ROOT / "cleanup_scripts"
sys.path.insert(0, str(SCRIPTS))

import dump_slices
import multistream

EXCERPT = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
HEADER = """<mediawiki>
  <siteinfo>
    <base>https://en.wikipedia.org/wiki/Main_Page</base>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="10" case="first-letter">Template</namespace>
      <namespace key="828" case="first-letter">Module</namespace>
    </namespaces>
  </siteinfo>
"""
PAGE = """  <page>
    <title>{title}</title>
    <ns>{ns}</ns>
    <id>{id}</id>
    <revision>
      <id>{id}</id>
      <comment>two
lines</comment>
      <text xml:space="preserve">{text}</text>
      <sha1>0</sha1>
    </revision>
  </page>
"""


def page(number, title=None, text=None, ns=0):
    title = title or f"Title {number}"
    return PAGE.format(
        title=title, ns=ns, id=number, text=text or f"Text {number}.\nMore."
    ).encode()


def template(number, name, text):
    return page(number, f"Template:{name}", text, ns=10)


def write_dump(path, pages, pages_per_stream=1, header=HEADER.encode(), footer=b"</mediawiki>\n"):
    """Writes pages as Wikimedia does; returns where each stream begins, and the end."""
    groups = [
        b"".join(pages[start : start + pages_per_stream])
        for start in range(0, len(pages), pages_per_stream)
    ]
    streams = [bz2.compress(text) for text in (header, *groups, footer) if text]
    path.write_bytes(b"".join(streams))
    return list(accumulate(map(len, streams), initial=0))


def extract(folder, *flags, check=True):
    """Runs the script in a folder that has dump.bz2."""
    command = [sys.executable, str(SCRIPTS / "extract_dump.py"), "--dump", "dump.bz2"]
    process = subprocess.run(
        [*command, *map(str, flags)], cwd=folder, capture_output=True, text=True
    )
    assert not check or process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    return process


def text_of(folder):
    """{file: contents} of an extraction."""
    paths = sorted(folder.glob("*/wiki_*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def joined(folder):
    return b"".join(text_of(folder).values())


def done_before(process, step="extract_slices"):
    found = re.search(rf"^{step}: .*; (\d+) were done before", process.stdout, re.MULTILINE)
    return int(found[1]) if found else 0


# ---------------------------------------------------------------------------- real Wikipedia text


@pytest.fixture(scope="module")
def wikipedia(tmp_path_factory):
    """A folder with dump.bz2, 424 streams of a page each, and one/, one WikiExtractor's text."""
    folder = tmp_path_factory.mktemp("wikipedia")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    fetched = subprocess.run(
        [*command, "--only-binary=:all:", "gensim==4.4.0"], capture_output=True, text=True
    )
    if "from versions: none" in fetched.stderr:
        pytest.skip("the package index, which carries the dump excerpt, cannot be reached")
    wheel = next(folder.glob("gensim-*.whl"))
    xml = bz2.decompress(zipfile.ZipFile(wheel).read(f"gensim/test/test_data/{EXCERPT}"))
    wheel.unlink()
    pages = re.findall(rb"  <page>.*?</page>\n", xml, re.DOTALL)
    # Templates that the articles use; one is defined three times, one is a redirect.
    templates = [
        template(900_001, "Lang", "{{{2}}} ({{{1}}})&lt;noinclude&gt;a note&lt;/noinclude&gt;"),
        template(900_002, "Convert", "{{{1}}} {{{2}}}\nand a second line"),
        template(900_003, "Lang", "the second {{{2}}}"),
        template(900_004, "IPA-en", "#REDIRECT [[Template:Lang]]"),
        template(900_005, "Lang", "the third {{{2}}}"),
        page(900_006, "Module:Lang", "return {}", ns=828),
    ]
    for number, added in enumerate(templates):
        pages.insert(20 + 30 * number, added)
    header = xml[: xml.index(b"  <page>")]
    borders = write_dump(folder / "dump.bz2", pages * 2, header=header)
    assert len(borders) == 1 + 424 + 2
    command = [sys.executable, "-m", "wikiextractor.WikiExtractor", "--quiet", "--processes", "1"]
    subprocess.run([*command, "-o", "one", "dump.bz2"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def extracted(wikipedia):
    """The text that slices of 64 KB give, with {workers}."""
    for num_workers in (1, 5):  # one WikiExtractor with 1 process, two with 3
        flags = ["--slice_size=64K", "--file_size=256K", f"--num_workers={num_workers}"]
        extract(wikipedia, *flags, f"--out_dir={num_workers}")
    return {num_workers: text_of(wikipedia / str(num_workers)) for num_workers in (1, 5)}


@pytest.mark.slow
def test_equals_one_wikiextractor(wikipedia, extracted):
    one = joined(wikipedia / "one")
    assert b"the third " in one or b"the second " in one  # templates matter
    assert hashlib.md5(b"".join(extracted[1].values())).digest() == hashlib.md5(one).digest()
    assert len({name.split("/")[0] for name in extracted[1]}) > 50  # slices


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(extracted):
    assert extracted[1] == extracted[5]


@pytest.mark.slow
def test_files_have_the_size_asked_for(extracted):
    sizes = {name: len(data) for name, data in extracted[1].items()}
    articles = {name: data.count(b"\n</doc>\n") for name, data in extracted[1].items()}
    assert all(size <= 256 * 1024 or articles[name] == 1 for name, size in sizes.items())
    assert all(name.startswith("slice_") for name in sizes) and len(sizes) > 50


@pytest.mark.slow
def test_larger_slices_and_streams_of_many_pages_give_the_same_text(wikipedia, tmp_path):
    xml = bz2.open(wikipedia / "dump.bz2").read()
    pages = re.findall(rb"  <page>.*?</page>\n", xml, re.DOTALL)
    write_dump(tmp_path / "dump.bz2", pages, 100, header=xml[: xml.index(b"  <page>")])
    extract(tmp_path, "--slice_size=1M")
    assert joined(tmp_path / "extracted") == joined(wikipedia / "one")


# ------------------------------------------------------------------------------- streams and slices


def test_a_start_of_a_stream_inside_a_stream_is_no_border(tmp_path):
    path = tmp_path / "dump.bz2"
    borders = write_dump(path, [page(n) for n in range(5)])
    data = bytearray(path.read_bytes())
    # The known ten bytes, then what is no block; and a whole stream that begins with no page.
    fake = b"BZh91AY&SY" + bytes(40) + bz2.compress(b"<text>")
    data[borders[3] : borders[3]] = fake
    path.write_bytes(data)
    end = len(data)
    assert multistream.find_border(str(path), borders[2] + 1, end) == borders[3] + len(fake)
    assert multistream.find_border(str(path), borders[2], end) == borders[2]
    assert multistream.find_border(str(path), end - 1, end) == end


def test_a_border_is_found_where_a_block_of_reading_ends(tmp_path, monkeypatch):
    path = tmp_path / "dump.bz2"
    borders = write_dump(path, [page(n) for n in range(3)])
    for size in range(10, 40):
        monkeypatch.setattr(multistream, "BUFFER_SIZE", size)
        found = multistream.find_border(str(path), borders[1] + 1, borders[-1])
        assert found == borders[2]
        assert multistream.find_border(str(path), borders[1] + 1, borders[2]) == borders[2]


@pytest.mark.parametrize("slice_size", [1, 300, 1000, 10**9])
def test_slices_are_whole_streams_and_cover_the_dump(tmp_path, slice_size):
    path = tmp_path / "dump.bz2"
    borders = write_dump(path, [page(n) for n in range(12)])
    slices = dump_slices.slice_borders(str(path), borders[1], slice_size, 2)
    assert [slices[0][0], *(end for _, end in slices)] == sorted(
        {borders[1], *(end for _, end in slices)}
    )
    assert slices[-1][1] == borders[-1] and {start for start, _ in slices} <= set(borders)
    positions = range(borders[1] + slice_size, borders[-1], slice_size)
    starts = {min(border for border in borders if border >= place) for place in positions}
    assert {start for start, _ in slices} == {borders[1], *starts} - {borders[-1]}
    assert len(slices) == {1: 13, 10**9: 1}.get(slice_size, len(slices))


@pytest.mark.parametrize(
    "content",
    [
        HEADER.encode() + page(1) + b"</mediawiki>\n",
        bz2.compress(HEADER.encode() + page(1) + b"</mediawiki>\n"),
        # bzip2 in pieces, as pbzip2 makes them: streams, but not of pages
        bz2.compress(HEADER.encode() + page(1)[:30]) + bz2.compress(page(1)[30:]),
        bz2.compress(b"<mediawiki>\n") + bz2.compress(page(1)),
        b"",
    ],
)
def test_other_dumps_are_no_multistream_dumps(tmp_path, content):
    (tmp_path / "dump").write_bytes(content)
    assert multistream.read_header(str(tmp_path / "dump")) is None


def test_a_stream_of_more_text_than_100_pages_have_is_not_read_into_memory(tmp_path, monkeypatch):
    write_dump(tmp_path / "dump.bz2", [page(1) * 1000])
    assert multistream.read_header(str(tmp_path / "dump.bz2")) is not None
    monkeypatch.setattr(multistream, "STREAM_LIMIT", 10_000)
    monkeypatch.setattr(multistream._read_stream, "__defaults__", (10_000,))
    assert multistream.read_header(str(tmp_path / "dump.bz2")) is None


def test_a_dump_of_one_stream_goes_to_one_wikiextractor(tmp_path):
    xml = HEADER.encode() + page(1) + page(2) + b"</mediawiki>\n"
    (tmp_path / "dump.bz2").write_bytes(bz2.compress(xml))
    process = extract(tmp_path)
    assert "--output extracted dump.bz2" in process.stdout
    assert list(text_of(tmp_path / "extracted")) == ["AA/wiki_00"]


# ---------------------------------------------------------------------------------------- templates


def test_templates_of(tmp_path):
    xml = (
        page(1) + template(2, "A", "a\nb") + template(3, "B", "&lt;page&gt;") + page(4, "Template")
    )
    without_text = b"  <page>\n    <title>Template:C</title>\n    <ns>10</ns>\n  </page>\n"
    found = dump_slices.templates_of(xml + without_text + page(5), b"Template:")
    assert found.decode() == (
        "<page>\n    <title>Template:A</title>\n"
        '<text xml:space="preserve">a\nb</text>\n      <sha1>0</sha1>\n    </revision>\n  </page>\n'
        "<page>\n    <title>Template:B</title>\n"
        '<text xml:space="preserve">&lt;page&gt;</text>\n      <sha1>0</sha1>\n'
        "    </revision>\n  </page>\n"
    )


def test_a_template_reaches_the_pages_before_it(tmp_path):
    pages = [page(n, text="Text {{T}}.") for n in range(1, 900)]
    write_dump(tmp_path / "dump.bz2", [*pages, template(1000, "T", "from the template")])
    extract(tmp_path, "--slice_size=64K")
    assert len(os.listdir(tmp_path / "extracted" / ".templates")) > 2
    assert joined(tmp_path / "extracted").count(b"\nText from the template.\n") == 899


# ------------------------------------------------------------------------------------------- damage


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def test_damage_is_reported_and_loses_only_its_stream(tmp_path):
    path = tmp_path / "dump.bz2"
    borders = write_dump(path, [page(n) for n in range(1000)], pages_per_stream=2)
    for place in (borders[10] + 40, borders[400] + 2, borders[402] - 3):
        flip(path, place)
    process = extract(tmp_path, "--slice_size=64K", check=False)
    assert process.returncode == 1
    for number, end, slice_number in ((10, 11, 0), (400, 402, 1)):
        assert f"slice_{slice_number:05d}, byte {borders[number]:,}: a stream" in process.stderr
        assert f"up to byte {borders[end]:,}, are left out" in process.stderr
    assert "in or after page 'Title 17' (id 17)" in process.stderr
    text = joined(tmp_path / "extracted")
    lost = {18, 19, 798, 799, 800, 801}
    assert [int(n) for n in re.findall(rb"^Text (\d+)\.$", text, re.MULTILINE)] == [
        n for n in range(1000) if n not in lost
    ]
    # Nothing is done again, and it is not forgotten.
    again = extract(tmp_path, "--slice_size=64K", check=False)
    assert again.returncode == 1 and again.stderr == process.stderr
    assert done_before(again) == len(os.listdir(tmp_path / "extracted" / ".templates")) - 1


@pytest.mark.parametrize(
    "damaged, found",
    [
        (bz2.compress(page(7, text="caf\xe9").decode().encode("latin-1")), "is not UTF-8"),
        (bytes(100), "not bzip2 data"),
        (bz2.compress(page(7))[:-9], "not bzip2 data"),
    ],
)
def test_kinds_of_damage(tmp_path, damaged, found):
    path = tmp_path / "dump.bz2"
    borders = write_dump(path, [page(1), page(2)])
    data = path.read_bytes()
    path.write_bytes(data[: borders[2]] + damaged + data[borders[2] :])
    texts = list(multistream.read_streams(str(path), borders[1], path.stat().st_size))
    assert [bool(damage) for _, damage in texts] == [False, True, False, False]
    assert found in texts[1][1] and f"byte {borders[2]}: " in texts[1][1]
    assert f"up to byte {borders[2] + len(damaged):,}," in texts[1][1]


def test_the_page_is_the_last_one_that_can_be_read(tmp_path):
    noise = [os.urandom(300_000).hex() for _ in range(3)]  # a block of bzip2 has 900,000 bytes
    path = tmp_path / "dump.bz2"
    borders = write_dump(path, [page(n, text=noise[n]) for n in range(3)], pages_per_stream=3)
    flip(path, borders[2] - 1000)
    ((_, damage), _) = multistream.read_streams(str(path), borders[1], borders[-1])
    assert "in or after page 'Title 1' (id 1)" in damage


def test_a_truncated_dump(tmp_path):
    path = tmp_path / "dump.bz2"
    borders = write_dump(path, [page(n) for n in range(5)])
    path.write_bytes(path.read_bytes()[: borders[5] + 30])
    process = extract(tmp_path, check=False)
    assert process.returncode == 1
    assert f"byte {borders[5]:,}: a stream of pages is damaged (the file ends" in process.stderr
    assert joined(tmp_path / "extracted").count(b"\n</doc>\n") == 4
    # At a border nothing is damaged; an excerpt looks the same.
    path.write_bytes(path.read_bytes()[: borders[5]])
    assert "dump.bz2 does not end in </mediawiki>: it is truncated" in extract(tmp_path).stderr


# ------------------------------------------------------- another WikiExtractor, and how it can fail

# Writes the titles of pages, and the text of some; what it was given goes to a log.
STAND_IN = """
import os, re, sys, time
if "--help" in sys.argv:
    sys.exit()
print(*sys.argv[1:], file=open("arguments", "a"))
page = []
for line in open(sys.argv[-1]):
    page.append(line)
    if "</page>" not in line:
        continue
    title = re.search("<title>(.*)</title>", "".join(page))[1]
    page = []
    print(title, file=open("log", "a"))
    # HERE
    print(f'<doc id="1" url="u" title="{title}">\\n{title}\\n\\n</doc>')
"""


def write_stand_in(folder, code="pass"):
    (folder / "WikiExtractor.py").write_text(STAND_IN.replace("# HERE", code))
    return "--wikiextractor=WikiExtractor.py"


def test_an_older_wikiextractor_gets_the_pages_without_templates(tmp_path):
    write_dump(tmp_path / "dump.bz2", [page(1), template(2, "T", "x"), page(3)])
    extract(tmp_path, write_stand_in(tmp_path), "--num_workers=1")
    assert (tmp_path / "arguments").read_text() == "--quiet --processes 1 --output - /dev/stdin\n"
    log = (tmp_path / "log").read_text().split("\n")
    assert log[:3] == ["Title 1", "Template:T", "Title 3"] and "extract-dump-" in log[3]
    assert joined(tmp_path / "extracted").count(b"</doc>\n") == 3
    assert b"extract-dump-" not in joined(tmp_path / "extracted")


def test_a_wikiextractor_that_does_not_run(tmp_path):
    write_dump(tmp_path / "dump.bz2", [page(1)])
    (tmp_path / "WikiExtractor.py").write_text("import re; re.compile('a(?i)b')")
    process = extract(tmp_path, "--wikiextractor=WikiExtractor.py", check=False)
    assert process.returncode == 2
    assert "WikiExtractor.py does not run" in process.stderr
    assert "--wikiextractor_python=<Python 3.10 or older>" in process.stderr
    assert not (tmp_path / "extracted").exists()


@pytest.mark.parametrize(
    "code, found",
    [
        ("if title == 'Title 700': raise ValueError('no such luck')", "ValueError: no such luck"),
        # as multiprocessing does when one of several processes dies; the others wait for ever
        (
            "if title == 'Title 700':\n"
            "        print('Process Process-2:\\nTraceback (most recent call last):\\n  F\\n'\n"
            "              'KeyError: 7', file=sys.stderr, flush=True)\n"
            "        time.sleep(1e6)",
            "KeyError: 7",
        ),
        ("if title == 'Title 700': os._exit(3)", "it did not say why (exit code 3)"),
    ],
)
def test_a_slice_that_fails_stops_no_other(tmp_path, code, found):
    write_dump(tmp_path / "dump.bz2", [page(n) for n in range(1000)])
    flags = (write_stand_in(tmp_path, code), "--slice_size=64K", "--num_workers=1")
    process = extract(tmp_path, *flags, check=False)
    assert process.returncode == 1
    assert "WikiExtractor ended after article 'Title 699' of this slice: " in process.stderr
    assert found in process.stderr
    folders = sorted(path.name for path in (tmp_path / "extracted").glob("slice_*"))
    failed = re.search(r"slice_\d+", process.stderr)[0]
    assert failed not in folders and len(folders) == 2
    # Repaired, it does the rest.
    write_stand_in(tmp_path)
    os.utime(tmp_path / "WikiExtractor.py", (1, 1))
    process = extract(tmp_path, *flags)
    assert len(text_of(tmp_path / "extracted")) == len(folders) + 1
    assert joined(tmp_path / "extracted").count(b"</doc>\n") == 1000


def test_a_page_that_the_older_wikiextractor_drops_is_no_failure(tmp_path):
    write_dump(tmp_path / "dump.bz2", [page(n) for n in range(3)])
    code = (
        "if title == 'Title 1':\n"
        "        print('ERROR: Processing page: 1 A\\nTraceback (most recent call last):\\n'\n"
        "              '  File\\nKeyError: 7', file=sys.stderr, flush=True)\n"
        "        continue"
    )
    extract(tmp_path, write_stand_in(tmp_path, code))
    assert re.findall(rb'title="(.*)"', joined(tmp_path / "extracted")) == [b"Title 0", b"Title 2"]


# ----------------------------------------------------------------------------------------- resuming


def test_a_killed_extraction_does_only_the_rest(tmp_path):
    write_dump(tmp_path / "dump.bz2", [page(n) for n in range(1000)])
    (tmp_path / "extracted").mkdir()
    for name in (".extract_dump", ".extract_slices.journal"):
        (tmp_path / "extracted" / name).touch()
    # kills the script itself, the parent of the worker that started it
    code = (
        "if title == 'Title 700' and not os.path.exists('killed'):\n"
        "        open('killed', 'w')\n"
        "        while ']' not in open('extracted/.extract_slices.journal').read():\n"
        "            time.sleep(0.01)\n"
        "        stat = open(f'/proc/{os.getppid()}/stat').read()\n"
        "        os.kill(int(stat.rsplit(')', 1)[1].split()[1]), 9)\n"
        "        time.sleep(1e6)"
    )
    flags = (write_stand_in(tmp_path, code), "--slice_size=64K", "--num_workers=1")
    killed = extract(tmp_path, *flags, check=False)
    assert killed.returncode == -signal.SIGKILL
    journal = (tmp_path / "extracted/.extract_slices.journal").read_text()
    finished = {json.loads(line)[0] for line in journal.split("\n") if line}
    assert finished and "wiki" not in str(finished)
    log = (tmp_path / "log").read_text().count("Title 0\n")
    assert log == 1
    process = extract(tmp_path, *flags)
    assert done_before(process) == len(finished)
    titles = (tmp_path / "log").read_text().split("\n")
    assert titles.count("Title 0") == 1 and titles.count("Title 700") == 2
    assert re.findall(rb'title="Title (\d+)"', joined(tmp_path / "extracted")) == [
        str(n).encode() for n in range(1000)
    ]
    assert not list((tmp_path / "extracted").glob(".*.tmp"))


def test_what_no_longer_belongs_to_its_settings_is_made_again(tmp_path):
    write_dump(tmp_path / "dump.bz2", [page(n) for n in range(1000)])
    stand_in = write_stand_in(tmp_path)
    extract(tmp_path, stand_in, "--slice_size=64K")
    num_slices = len(list((tmp_path / "extracted").glob("slice_*")))
    assert num_slices > 2
    for flags, kept in (
        ((), num_slices),
        (("--restart",), 0),
        (("--file_size=64K",), 0),
    ):
        assert done_before(extract(tmp_path, stand_in, "--slice_size=64K", *flags)) == kept
    os.utime(tmp_path / "dump.bz2", (1, 1))
    assert done_before(extract(tmp_path, stand_in, "--slice_size=64K", "--file_size=64K")) == 0
    assert done_before(extract(tmp_path, stand_in, "--slice_size=128K")) == 0
    assert joined(tmp_path / "extracted").count(b"</doc>\n") == 1000  # none from other slices


def test_process_wiki_extracts_slices_and_resumes(tmp_path):
    pages = [page(n, text=f"Article {n} is short. It ends here.") for n in range(1000)]
    borders = write_dump(tmp_path / "dump.bz2", pages)
    command = [SCRIPTS / "process_wiki.sh", "dump.bz2", "out"]
    settings = {"PYTHON": sys.executable, "SLICE_SIZE": "64K", "NUM_TEST_ARTICLES": "0"}

    def process_wiki(**more):
        environment = {**os.environ, **settings, **more}
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=environment
        )

    flip(tmp_path / "dump.bz2", borders[5] + 40)
    damaged = process_wiki()
    assert damaged.returncode == 1 and "in or after page 'Title 3'" in damaged.stderr
    assert os.listdir(tmp_path / "out") == ["extracted.partial"]
    flip(tmp_path / "dump.bz2", borders[5] + 40)
    process = process_wiki()
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "out/extracted").glob("slice_*"))) == 4
    assert not (tmp_path / "out/extracted/.templates").exists()
    text = b"".join(path.read_bytes() for path in sorted((tmp_path / "out/results").glob("part-*")))
    assert text.count(b"is short.\nIt ends here.\n") == 1000
    assert "out/extracted: extracted before" in process_wiki().stdout
    for more in ({"SLICE_SIZE": ""}, {"WIKIEXTRACTOR": "WikiExtractor.py"}):
        other = process_wiki(**more)
        assert other.returncode == 2 and "SLICE_SIZE or WIKIEXTRACTOR (" in other.stderr


def test_process_wiki_with_an_older_wikiextractor(tmp_path):
    write_dump(tmp_path / "dump.bz2", [page(n) for n in range(3)])
    write_stand_in(tmp_path, "title = 'STAND-IN ' + title if 'Title' in title else title")
    settings = {"WIKIEXTRACTOR": "WikiExtractor.py", "WIKIEXTRACTOR_PYTHON": sys.executable}
    process = subprocess.run(
        [SCRIPTS / "process_wiki.sh", "dump.bz2", "out"], cwd=tmp_path, capture_output=True,
        text=True,
        env={**os.environ, **settings, "PYTHON": sys.executable, "NUM_TEST_ARTICLES": "0"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert joined(tmp_path / "out/extracted").count(b'title="STAND-IN Title') == 3


# -------------------------------------------------------------------------------------------- flags


def test_flags_are_checked_together(tmp_path):
    flags = ("--file_size=x", "--slice_size=1K", "--num_workers=0", "--wikiextractor=missing")
    process = extract(tmp_path, *flags, check=False)
    assert process.returncode == 2
    for words in (
        "--dump dump.bz2: no such file",
        "--wikiextractor missing: no such file",
        "--file_size x: expected a size like 256K or 64M, at least 0",
        "--slice_size 1K: expected a size like 256K or 64M, at least 64K",
        "--num_workers 0: expected at least 1",
    ):
        assert words in process.stderr


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    write_dump(tmp_path / "dump.bz2", [page(1)])
    process = extract(tmp_path, "--out_dir=.", check=False)
    assert process.returncode == 2 and "--out_dir .: holds other files" in process.stderr
    assert (tmp_path / "dump.bz2").exists()
