"""What to run after a download, as docs/data.md has it. Imported by download.py, never run."""

import os
import re
import shlex
from collections.abc import Collection, Iterator

from mlperf_files import CHECKPOINT_FOLDER, DUMP, TEXT_FOLDER, TEXT_MD5_LIST

# MLPerf's, of create_pretraining_data.py.
EXAMPLE_FLAGS = (
    "--vocab_file=vocab.txt --do_lower_case=True --max_seq_length=512 "
    "--max_predictions_per_seq=76 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=10"
)
# The names in MLCommons' published lists.
TEXT_ARCHIVE, TEXT_ARCHIVE_MD5_LIST = "results_text.tar.gz", "bert_reference_results_text_md5.txt"
CHECKPOINT = f"{CHECKPOINT_FOLDER}/model.ckpt-28252"
WEIGHTS = ".data-00000-of-00001"
DUMP_OF_2020 = "enwiki-20200101-pages-articles-multistream.xml.bz2"


def after(groups: Collection[str], paths: Collection[str], out_dir: str) -> Iterator[str]:
    """The commands for the groups of MLPerf's files and the paths that have been downloaded."""
    if "text" in groups:
        text = shlex.quote(os.path.join(out_dir, TEXT_FOLDER))
        md5_list = os.path.join(out_dir, TEXT_MD5_LIST)
        listed = f" --md5_list={shlex.quote(md5_list)}" if os.path.exists(md5_list) else ""
        yield f"python3 verify_dataset.py --results={text}{listed}"
        yield (
            f"python3 create_pretraining_shards.py --input_dir={text} --output_dir=tfrecord "
            f"{EXAMPLE_FLAGS}"
        )
        yield (
            f"python3 create_pretraining_data.py --input_file={text}/eval.txt "
            f"--output_file=eval_intermediate {EXAMPLE_FLAGS}"
        )
    for path in paths:
        if DUMP.fullmatch(os.path.basename(path)):
            yield _process_wiki(path)
        elif match := re.fullmatch(rf"(.*/{CHECKPOINT_FOLDER}/model\.ckpt-\d+)\.index", path):
            yield (
                "torchrun --nproc_per_node=8 train.py @configs/recipes/mlperf_256.args "
                f"--init_checkpoint={shlex.quote(match[1])} --output_dir=runs/large "
                "--tfrecord_train=tfrecord --idx_train=idx/train --tfrecord_eval=eval "
                "--idx_eval=idx/eval   # when examples and indexes are made"
            )


def _process_wiki(path):
    return f"cleanup_scripts/process_wiki.sh {shlex.quote(path)} wiki"


def after_own_downloader(group: str, folder: str, out_dir: str) -> str:
    """The command for what MLCommons' own downloader has written to `folder` for a group."""

    def inside(name):
        return shlex.quote(os.path.join(folder, name))

    if group == "text":
        text = shlex.quote(os.path.join(out_dir, TEXT_FOLDER))
        return (
            f"tar -xzf {inside(TEXT_ARCHIVE)} -C {shlex.quote(out_dir)} && python3 "
            f"verify_dataset.py --results={text} --md5_list={inside(TEXT_ARCHIVE_MD5_LIST)}"
        )
    if group == "model":
        return (
            f"mv {inside(f'{CHECKPOINT}-003{WEIGHTS}')} {inside(f'{CHECKPOINT}{WEIGHTS}')}, "
            f"then train.py --init_checkpoint={inside(CHECKPOINT)}"
        )
    return _process_wiki(os.path.join(folder, DUMP_OF_2020))
