#!/usr/bin/env bash
# From a fresh machine to a trained model on real Wikipedia: set-up, then every stage of the
# pipeline by its own command, each echoed before it runs. A second call resumes where the first one
# stopped; finished stages are not repeated.
#
#   ./quickstart.sh
#
# Writes quickstart_output/: the data of every stage, run/ (model, metrics, curves), summary.json.
# Settings: OUTPUT=<folder> for another place, NUM_TRAIN_STEPS=<n> for a longer or shorter training;
# the run that is there is then kept, as run.old1/.
set -euo pipefail
case ${1-} in
  "") ;;
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
  *)
    echo "error: $1: no such argument: settings are given in front, as" \
      "NUM_TRAIN_STEPS=5000 ./quickstart.sh; ./quickstart.sh --help" >&2
    exit 2
    ;;
esac
num_train_steps=${NUM_TRAIN_STEPS:-1200}
if [[ ! $num_train_steps =~ ^[1-9][0-9]{0,8}$ ]]; then
  echo "error: NUM_TRAIN_STEPS=$num_train_steps: expected a number of steps, 1 or more" >&2
  exit 2
fi
if [[ -n ${OUTPUT:-} ]]; then OUTPUT=$(realpath -ms -- "$OUTPUT"); fi  # before the next line
cd "$(dirname "$0")"

out=${OUTPUT:-quickstart_output}
if [[ -e $out && ! -d $out/.stages && (! -d $out || -n $(ls -A "$out")) ]]; then
  echo "error: OUTPUT=$out: it holds something else than a quick start;" \
    "give a new name or an empty folder" >&2
  exit 2
fi
seq_length=32
max_predictions=5
dump=enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2
dump_md5=55899abfb7caa0e50d2665787fa4afca

# --- tools ---

source cleanup_scripts/run_echoed.sh

# A finished stage leaves its seconds and a digest of its commands, settings and scripts. It runs
# again, and all that follow it, if one of these changed or its result is gone. $resumes tells a
# stage whether it was begun before with the same digest.
stage() {  # stage <function>
  local name=$1 mark=$out/.stages/$1 begun=$out/.begun-$1 digest start=$SECONDS resumes=no
  digest=$(
    { declare -f "$name"; declare -p ${settings[$name]} out; cat ${scripts[$name]}; } < /dev/null |
      sha256sum | cut -c1-64
  )
  if [[ -f $mark && $(cut -d' ' -f2 "$mark") == "$digest" && -e $out/${results[$name]} ]]; then
    printf '\n=== %s: done before (%s s)\n' "${titles[$name]}" "$(cut -d' ' -f1 "$mark")"
    return
  fi
  printf '\n=== %s\n' "${titles[$name]}"
  rm -f "$mark"
  for later in "${stages[@]}"; do rm -f "$out/.stages/$later"; done
  if [[ -f $begun && $(< "$begun") == "$digest" ]]; then resumes=yes; fi
  echo "$digest" > "$begun"
  "$name"
  echo "$((SECONDS - start)) $digest" > "$mark"
}

# --- stages ---

stages=(download wiki examples index train)
declare -A titles=(
  [download]="1 Download: a real Wikipedia dump, 106 articles"
  [wiki]="2 Text: articles out of the dump, one sentence a line, 12 articles held out"
  [examples]="3 Examples: tokens, sentence pairs and masks -> TFRecord"
  [index]="4 Index: where DALI finds each record"
  [train]="5 Train: configs/bert_quickstart.json with ColossalAI"
)
declare -A results=(
  [download]=$dump
  [wiki]=results/eval.txt
  [examples]=tfrecord/eval/eval_2k
  [index]=idx/eval/eval_2k.idx
  [train]=run/model
)
declare -A settings=(
  [download]="dump dump_md5"
  [wiki]=dump
  [examples]="seq_length max_predictions"
  [index]=""
  [train]=num_train_steps
)
declare -A scripts=(
  [download]=""
  [wiki]="cleanup_scripts/*.py cleanup_scripts/*.sh"
  [examples]="create_pretraining_shards.py create_pretraining_data.py pick_eval_samples.py \
tokenization.py vocab.txt bert/examples/*.py bert/generation/*.py"
  [index]="make_idx.py bert/examples/tfrecord.py"
  [train]="train.py bert_dali_dataloader.py bert/*/*.py configs/bert_quickstart.json"
)

# An excerpt of the English Wikipedia dump, 106 articles, which the gensim package carries among its
# test data.
download() {
  run_echoed python3 -m pip download --quiet --disable-pip-version-check --no-deps \
    --only-binary=:all: --dest "$out/download" gensim==4.4.0
  local inside=gensim/test/test_data/$dump
  run_echoed python3 -m zipfile --extract "$(ls "$out"/download/gensim-4.4.0-*.whl)" "$out/download"
  mv "$out/download/$inside" "$out/$dump"
  rm -r "$out/download"
  echo "$ echo '$dump_md5  $out/$dump' | md5sum --check"
  echo "$dump_md5  $out/$dump" | md5sum --check
}

wiki() {
  rm -rf "$out/extracted" "$out/results"
  EXTRACTED_SIZE=256K NUM_TEST_ARTICLES=12 BLOCK_SIZE=0.5 NUM_OUTPUTS=6 \
    run_echoed cleanup_scripts/process_wiki.sh "$out/$dump" "$out"
}

examples() {
  rm -rf "$out/tfrecord"
  mkdir -p "$out/tfrecord/eval"
  local flags="--vocab_file=vocab.txt --do_lower_case=True --max_seq_length=$seq_length \
--max_predictions_per_seq=$max_predictions --masked_lm_prob=0.15 --random_seed=12345 \
--dupe_factor=10"
  run_echoed python3 create_pretraining_shards.py --input_dir="$out/results" \
    --output_dir="$out/tfrecord/train" $flags
  run_echoed python3 create_pretraining_data.py --input_file="$out/results/eval.txt" \
    --output_file="$out/tfrecord/eval_intermediate" $flags
  run_echoed python3 pick_eval_samples.py --input_tfrecord="$out/tfrecord/eval_intermediate" \
    --output_tfrecord="$out/tfrecord/eval/eval_2k" --num_examples_to_pick=2000 \
    --max_seq_length=$seq_length --max_predictions_per_seq=$max_predictions
}

index() {
  rm -rf "$out/idx"
  run_echoed python3 make_idx.py --tfrecord_train="$out/tfrecord/train" \
    --tfrecord_eval="$out/tfrecord/eval" --output_idx="$out/idx"
}

train() {
  local processes old=1
  if [[ -e $out/run && $resumes == no ]]; then
    while [[ -e $out/run.old$old ]]; do old=$((old + 1)); done
    mv "$out/run" "$out/run.old$old"
    echo "the run that was in $out/run is kept in $out/run.old$old"
  fi
  # One per GPU, a power of two so that the batch divides; one for the CPU.
  processes=$(python3 -c 'import torch
print(1 << min(5, max(1, torch.cuda.device_count()).bit_length() - 1))')
  run_echoed torchrun --standalone --nproc_per_node="$processes" train.py \
    --bert_config_file=configs/bert_quickstart.json --output_dir="$out/run" \
    --tfrecord_train="$out/tfrecord/train" --idx_train="$out/idx/train" \
    --tfrecord_eval="$out/tfrecord/eval" --idx_eval="$out/idx/eval" \
    --optimizer=adamw --adam_bias_correction=True --lamb_beta_2=0.98 --learning_rate=4e-3 \
    --num_warmup_steps=100 --num_train_steps="$num_train_steps" --train_batch_size=64 \
    --eval_at_start=True --eval_every_samples=12800 --eval_batch_size=250 --num_threads=1
}

# --- the pipeline ---

./setup.sh
unset PYTHON  # it chose the Python of .venv, which runs all that follows
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
mkdir -p "$out/.stages"
while (( ${#stages[@]} )); do
  name=${stages[0]}
  stages=("${stages[@]:1}")
  stage "$name"
done

# --- what came of it ---

printf '\n=== What the model was trained on: three examples\n'
run_echoed python3 inspect_tfrecord.py "$out/tfrecord/train/part-00000-of-00006" --count=3
printf '\n=== What it has learnt: ten hidden words of held-out articles\n'
run_echoed python3 fill_mask.py --output_dir="$out/run" --text="$out/results/eval.txt" --card

python3 - "$out" << 'PYTHON'
import glob, json, os, sys

out = sys.argv[1]
rows = map(json.loads, open(f"{out}/run/metrics.jsonl"))
before, *_, after = (row for row in rows if "masked_lm_accuracy" in row)
summary = {
    "seconds": {
        stage: int(open(f"{out}/.stages/{stage}").read().split()[0])
        for stage in sorted(os.listdir(f"{out}/.stages"))
    },
    "records": sum(len(open(path).readlines()) for path in glob.glob(f"{out}/idx/train/*.idx")),
    "before": before,
    "after": after,
}
with open(f"{out}/summary.json", "w") as file:
    json.dump(summary, file, indent=2)
    file.write("\n")
print(f"\nOn {after['examples']:,} examples of held-out articles:")
print(f"{'':30}{'before':>8}{'after':>8}  a constant answer")
for what, accuracy, baseline in (
    ("hidden words ([MASK]) right", "mask_accuracy", "mask_baseline"),
    ("next sentence right", "next_sentence_accuracy", "next_sentence_baseline"),
):
    print(f"  {what:28}{before[accuracy]:8.4f}{after[accuracy]:8.4f}  {after[baseline]:.4f}")
PYTHON

cat << END

In $out:
  results/        the text: part-00000-of-00006 ..., eval.txt
  tfrecord/ idx/  the examples and their indexes
  run/            model/ (Hugging Face, with a model card), metrics.jsonl, curves.png
  summary.json    seconds of each stage, records, both evaluations

Next, type:
  source .venv/bin/activate
  python3 train.py --help                                # all settings, with their defaults
  NUM_TRAIN_STEPS=5000 ./quickstart.sh                   # train longer; this run is kept
  less README.md                                         # the same on the whole Wikipedia
END
