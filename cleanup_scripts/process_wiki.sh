#!/usr/bin/env bash
# From a Wikipedia dump to the text files that create_pretraining_data.py reads. Every command is
# echoed before it runs.
usage="usage: [SETTING=value ...] cleanup_scripts/process_wiki.sh \
<dump (.bz2, .xml) or extracted folder> <output folder>

  cleanup_scripts/process_wiki.sh enwiki-20200101-pages-articles-multistream.xml.bz2 wiki
  EXTRACTED_SIZE=256K NUM_TEST_ARTICLES=10 BLOCK_SIZE=0.5 \
cleanup_scripts/process_wiki.sh excerpt.xml.bz2 wiki

writes  <output folder>/extracted/slice_00000/wiki_00000 ...  \
extracted text, and the steps' files .1 to .4 beside it
        <output folder>/results/part-00000-of-00500 ...       training text, one sentence per line
        <output folder>/results/eval.txt, eval.md5            held-out articles and their MD5s
A dump that is no multistream dump gives extracted/AA/wiki_00 ... An extracted folder (of an earlier
extraction) is used where it is.

The same command again resumes where the last one stopped: finished slices of a multistream dump
are kept (the extraction of another dump restarts), and each step makes only what is missing or no
longer belongs to its input or settings. To start from scratch: rm -r <output folder>

settings (environment variables), with MLPerf's values as defaults:
  EXTRACTED_SIZE=1M         size of an extracted file; for an excerpt 256K, \
which gives more files to divide
  SLICE_SIZE=64M            bytes of a multistream dump that are extracted at a time
  WIKIEXTRACTOR=<file>      an older WikiExtractor.py, as MLPerf's, instead of the package
  WIKIEXTRACTOR_PYTHON=...  the Python for it, 3.10 or older
  NUM_TEST_ARTICLES=10000   articles held out for evaluation, of all files together
  SEED=12345                of the choice of these articles
  BLOCK_SIZE=26.92          MB (1024 * 1024 bytes) of extracted text per part
  NUM_OUTPUTS=500           the number in the names of the parts
  NUM_WORKERS=<all cores>   processes of each step
  PYTHON=python3            the Python that has the packages of requirements.txt"
set -euo pipefail

fail() { printf 'error: %s\n' "$@" >&2; exit 2; }

source "$(dirname "$0")/run_echoed.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then printf '%s\n' "$usage"; exit 0; fi
if (( $# != 2 )); then printf '%s\n' "$usage" >&2; exit 2; fi
input=${1%/} output=${2%/}
python=${PYTHON:-python3}
num_workers=${NUM_WORKERS:-$(nproc)}
scripts=$(dirname "$0")

problems=()
[[ -e $input ]] || problems+=("$input: no such file or folder")
[[ -d $input || $input == *.bz2 || $input == *.xml ]] ||
  problems+=("$input: expected a dump named *.bz2 or *.xml, or a folder")
[[ $input$output != *[]*?[]* ]] ||
  problems+=("the paths '$input' and '$output' may not hold any of * ? [ ]: \
the steps take glob patterns")
# What an extraction was made from: it is used again for the same only.
source_mark=$output/extracted/.source
origin=
if [[ -f $input ]]; then
  origin="$(stat -c '%s bytes of %y' "$input"), EXTRACTED_SIZE=${EXTRACTED_SIZE:-1M}"
  for setting in SLICE_SIZE WIKIEXTRACTOR; do
    [[ -z ${!setting:-} ]] || origin+=", $setting=${!setting}"
  done
fi
[[ -d $input || ! -e $output/extracted || $(cat "$source_mark" 2>/dev/null) == "$origin" ]] ||
  problems+=("$output/extracted: extracted from another dump or with another EXTRACTED_SIZE, \
SLICE_SIZE or WIKIEXTRACTOR ($(cat "$source_mark" 2>/dev/null || echo unknown); now $origin); \
use it: $0 $output/extracted $output, or start from scratch: rm -r $output")
for setting in NUM_TEST_ARTICLES SEED NUM_OUTPUTS NUM_WORKERS; do
  [[ ${!setting:-0} =~ ^[0-9]+$ ]] || problems+=("$setting=${!setting}: expected a whole number")
done
[[ ${BLOCK_SIZE:-1} =~ ^[0-9]*\.?[0-9]+$ ]] ||
  problems+=("BLOCK_SIZE=$BLOCK_SIZE: expected a number of MB")
for setting in EXTRACTED_SIZE SLICE_SIZE; do
  [[ ${!setting:-1M} =~ ^[0-9]+[KMG]?$ ]] ||
    problems+=("$setting=${!setting}: expected a size like 256K or 64M")
done
(( ${#problems[@]} == 0 )) || fail "${problems[@]}"

# What extract_dump.py leaves of a killed extraction is in <folder>.partial, for the next call.
extract() {  # extract <dump> <folder>
  local flags=(--num_workers "$num_workers" --file_size "${EXTRACTED_SIZE:-1M}"
    --slice_size "${SLICE_SIZE:-64M}")
  [[ -z ${WIKIEXTRACTOR:-} ]] || flags+=(--wikiextractor "$WIKIEXTRACTOR")
  [[ -z ${WIKIEXTRACTOR_PYTHON:-} ]] || flags+=(--wikiextractor_python "$WIKIEXTRACTOR_PYTHON")
  run_echoed "$python" "$scripts/extract_dump.py" --dump "$1" --out_dir "$2.partial" \
    "${flags[@]}" || exit $?
  echo "$origin" > "$2.partial/.source"
  run_echoed mv "$2.partial" "$2"
  rm -rf "$2/.templates"
}

# In the errors of the steps, a setting's name instead of the flag's.
export SETTINGS_OF_FLAGS="file_size=EXTRACTED_SIZE slice_size=SLICE_SIZE \
wikiextractor=WIKIEXTRACTOR wikiextractor_python=WIKIEXTRACTOR_PYTHON num_workers=NUM_WORKERS \
num_test_articles=NUM_TEST_ARTICLES seed=SEED block_size=BLOCK_SIZE num_outputs=NUM_OUTPUTS"

run_step() {
  local code=0
  run_echoed "$@" || code=$?
  (( code )) || return 0
  printf 'error: %s\n' "stopped at this step: $(basename "$2"). \
Repair or remove the files above, then run the same command again: \
finished work is kept" >&2
  exit "$code"
}

mkdir -p "$output"
extracted=$input
if [[ ! -d $input ]]; then
  extracted=$output/extracted
  if [[ -e $extracted ]]; then
    echo "$extracted: extracted before"
  else
    [[ $input != *.xml ]] || tail -c 1000 "$input" | grep -q '</mediawiki>' ||
      echo "warning: $input does not end in </mediawiki>: it is truncated, or an excerpt" >&2
    extract "$input" "$extracted"
  fi
fi

data="$extracted/*/wiki_*"
if compgen -G "$extracted/wiki_*" > /dev/null; then data="$extracted/wiki_*"; fi
step=(--data "$data" --num_workers "$num_workers")

run_step "$python" "$scripts/cleanup_file.py" "${step[@]}"
run_step "$python" "$scripts/clean_markup.py" "${step[@]}"
run_step "$python" "$scripts/do_sentence_segmentation.py" "${step[@]}"
run_step "$python" "$scripts/separate_test_set.py" "${step[@]}" --seed "${SEED:-12345}" \
  --num_test_articles "${NUM_TEST_ARTICLES:-10000}" --test_output "$output/results/eval"
run_step "$python" "$scripts/do_gather.py" "${step[@]}" --block_size "${BLOCK_SIZE:-26.92}" \
  --num_outputs "${NUM_OUTPUTS:-500}" --out_dir "$output/results"
num_parts=$(find "$output/results" -name 'part-*-of-*' | wc -l)
printf '\n%s\n' "done: $num_parts parts and eval.txt in $output/results"
