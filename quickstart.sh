#!/usr/bin/env bash
# From a fresh machine to a trained model on real Wikipedia: set-up, then every stage of the pipeline by its own command,
# each echoed before it runs. A second call goes on where the first one stopped; finished stages are not repeated.
#
#   ./quickstart.sh
#
# Writes quickstart_output/: the data of every stage, run/ (model, metrics, curves) and summary.json.
# Settings: OUTPUT=<folder> for another place, NUM_TRAIN_STEPS=<n> for a longer or shorter training.
set -euo pipefail
cd "$(dirname "$0")"

out=${OUTPUT:-quickstart_output}
num_train_steps=${NUM_TRAIN_STEPS:-1200}
seq_length=128
max_predictions=20
dump=enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2
dump_md5=55899abfb7caa0e50d2665787fa4afca

# --- tools ---

run() {  # echoes a command as one could type it, then runs it
  local word line='$'
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:,=+@%-]+$ ]]; then line+=" $word"; else line+=" '$word'"; fi
  done
  printf '%s\n' "$line"
  "$@"
}

# A finished stage leaves its seconds and the digest of its commands; a changed stage and all that follow run again.
stage() {  # stage <function> <title>
  local name=$1 title=$2 mark=$out/.stages/$1 digest start=$SECONDS
  digest=$(declare -f "$name" create_examples | sed "s/\$num_train_steps/$num_train_steps/" | sha256sum | cut -c1-64)
  if [[ -f $mark && $(cut -d' ' -f2 "$mark") == "$digest" ]]; then
    printf '\n=== %s: done before (%s s)\n' "$title" "$(cut -d' ' -f1 "$mark")"
    return
  fi
  printf '\n=== %s\n' "$title"
  rm -f "$mark"
  for later in "${stages[@]}"; do rm -f "$out/.stages/$later"; done
  "$name"
  echo "$((SECONDS - start)) $digest" > "$mark"
}

# --- stages ---

stages=(download extract clean examples index train)
declare -A titles=(
  [download]="1 Download: a real Wikipedia dump, 106 articles"
  [extract]="2 Extract: dump -> text (WikiExtractor, AGPL-3.0, as a command of its own)"
  [clean]="3 Clean: one sentence a line, 12 articles held out, parts"
  [examples]="4 Examples: tokens, sentence pairs and masks -> TFRecord"
  [index]="5 Index: where DALI finds each record"
  [train]="6 Train: configs/bert_tiny.json with ColossalAI"
)

# An excerpt of the English Wikipedia dump, 106 articles, which the gensim package carries among its test data.
download() {
  run python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$out/download" gensim==4.4.0
  local inside=gensim/test/test_data/$dump
  run python3 -m zipfile --extract "$(ls "$out"/download/gensim-4.4.0-*.whl)" "$out/download"
  mv "$out/download/$inside" "$out/$dump"
  rm -r "$out/download"
  echo "$ echo '$dump_md5  $out/$dump' | md5sum --check"
  echo "$dump_md5  $out/$dump" | md5sum --check
}

extract() {
  rm -rf "$out/extracted"
  run python3 -m wikiextractor.WikiExtractor --quiet --processes "$(nproc)" --bytes 256K --output "$out/extracted" "$out/$dump"
}

clean() {
  rm -rf "$out/results"
  local data="$out/extracted/*/wiki_*"
  run python3 cleanup_scripts/cleanup_file.py --data "$data"
  run python3 cleanup_scripts/clean_markup.py --data "$data"
  run python3 cleanup_scripts/do_sentence_segmentation.py --data "$data"
  run python3 cleanup_scripts/separate_test_set.py --data "$data" --num_test_articles 12 --test_output "$out/results/eval"
  run python3 cleanup_scripts/do_gather.py --data "$data" --block_size 0.5 --num_outputs 6 --out_dir "$out/results"
}

create_examples() {  # create_examples <text file> <TFRecord file>
  run python3 create_pretraining_data.py --input_file="$1" --output_file="$2" --vocab_file=vocab.txt --do_lower_case=True \
    --max_seq_length=$seq_length --max_predictions_per_seq=$max_predictions --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=10
}

examples() {
  rm -rf "$out/tfrecord"
  mkdir -p "$out/tfrecord/train" "$out/tfrecord/eval"
  for part in "$out"/results/part-*; do create_examples "$part" "$out/tfrecord/train/$(basename "$part")"; done
  create_examples "$out/results/eval.txt" "$out/tfrecord/eval_intermediate"
  run python3 pick_eval_samples.py --input_tfrecord="$out/tfrecord/eval_intermediate" --output_tfrecord="$out/tfrecord/eval/eval_1k" \
    --num_examples_to_pick=1000 --max_seq_length=$seq_length --max_predictions_per_seq=$max_predictions
}

index() {
  rm -rf "$out/idx"
  run python3 make_idx.py --tfrecord_train="$out/tfrecord/train" --tfrecord_eval="$out/tfrecord/eval" --output_idx="$out/idx"
}

train() {
  rm -rf "$out/run"
  local processes
  processes=$(python3 -c 'import torch; print(max(1, torch.cuda.device_count()))')  # one per GPU; one for the CPU
  run torchrun --standalone --nproc_per_node="$processes" train.py --bert_config_file=configs/bert_tiny.json --output_dir="$out/run" \
    --tfrecord_train="$out/tfrecord/train" --idx_train="$out/idx/train" --tfrecord_eval="$out/tfrecord/eval" --idx_eval="$out/idx/eval" \
    --train_batch_size=32 --learning_rate=1e-2 --num_train_steps="$num_train_steps" --num_warmup_steps=100 \
    --eval_at_start=True --eval_every_samples=6400 --num_threads=1
}

# --- the pipeline ---

./setup.sh
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
mkdir -p "$out/.stages"
while (( ${#stages[@]} )); do
  name=${stages[0]}
  stages=("${stages[@]:1}")
  stage "$name" "${titles[$name]}"
done

python3 - "$out" << 'PYTHON'
import glob, json, os, sys

out = sys.argv[1]
evaluations = [row for row in map(json.loads, open(f"{out}/run/metrics.jsonl")) if "masked_lm_accuracy" in row]
before, after = (evaluations[i]["masked_lm_accuracy"] for i in (0, -1))
summary = {
    "seconds": {stage: int(open(f"{out}/.stages/{stage}").read().split()[0]) for stage in sorted(os.listdir(f"{out}/.stages"))},
    "records": sum(len(open(path).readlines()) for path in glob.glob(f"{out}/idx/train/*.idx")),
    "masked_lm_accuracy_before": before,
    "masked_lm_accuracy_after": after,
}
with open(f"{out}/summary.json", "w") as file:
    json.dump(summary, file, indent=2)
    file.write("\n")
print(f"\nMasked LM accuracy on 1,000 examples from held-out articles: {before:.4f} before training, {after:.4f} after.")
PYTHON

cat << END

In $out:
  results/        the text: part-00000-of-00006 ..., eval.txt
  tfrecord/ idx/  the examples and their indexes
  run/            model/ (Hugging Face), metrics.jsonl, curves.png (loss and accuracy)
  summary.json    seconds of each stage, records, accuracies

Next, type:
  source .venv/bin/activate
  python3 train.py --help                                # all settings, with their defaults
  NUM_TRAIN_STEPS=5000 ./quickstart.sh                   # train longer; the data stays
  less README.md                                         # the same on the whole Wikipedia
END
