"""The files of examples that train.py's flags name, their indexes, and the folders that a run
writes in; what is wrong with any of them.
"""

import argparse
import fnmatch
import glob
import os

from transformers import BertConfig

from bert.common.files import DataError, attempt, is_remote
from bert.common.path_flags import folder_problems, list_folder_or_pattern, new_folder_problems
from bert.examples.example_file import open_examples
from bert.examples.instance_file import InstanceFile, is_instance_file, vocabulary_checksum
from bert.training.model import load_tokenizer


class Split:
    """The files of --tfrecord_train or of --tfrecord_eval. Nothing is raised for those that are
    missing or corrupt; the attributes say it.

    name: "train" or "eval"
    where: the flag's value
    files: their paths; [] if there are none
    missing: messages why there are none
    has_instances: whether they are instance files
    lengths: {feature: number of values} of the first example; {} if it cannot be read
    corrupt: messages why it cannot
    """

    def __init__(self, flags: argparse.Namespace, name: str):
        self.name, self._flags = name, flags
        self.where = getattr(flags, f"tfrecord_{name}")
        self._given_indexes = getattr(flags, f"idx_{name}")
        self.missing, files = attempt(f"--tfrecord_{name}", _local_files, self.where)
        self.files = files or []
        self.has_instances = False
        self.lengths: dict[str, int] = {}
        self.corrupt: list[str] = []
        for path in self.files[:1]:
            self.corrupt, first = attempt(f"--tfrecord_{name}", open_examples, path)
            if first:
                self.lengths = first.lengths
            self.has_instances = bool(attempt("", is_instance_file, path)[1])

    @property
    def indexes(self) -> str:
        """The folder, pattern or file of the indexes."""
        return self._given_indexes or os.path.join(self._flags.output_dir, "idx", self.name)

    @property
    def folder_of_indexes(self) -> str | None:
        """The folder, which may not exist yet, that gets the missing indexes of TFRecords."""
        # The default is a folder, also where --output_dir looks like a pattern.
        is_folder = not self._given_indexes or is_folder_of_indexes(self.indexes)
        return self.indexes if is_folder and self.files and not self.has_instances else None

    def problems(self, config: BertConfig | None) -> list[str]:
        """Returns messages on what is wrong with the flags of these files, other than `corrupt`.

        config: None if it cannot be read.
        """
        problems = list(self.missing)
        if self.has_instances:
            problems += self._wrong_for_instances(config)
        elif self._given_indexes and not is_folder_of_indexes(self._given_indexes):
            problems += attempt(f"--idx_{self.name}", _local_files, self._given_indexes)[0]
        if self.files and self.name == "train" and self._flags.balance and not self.has_instances:
            problems.append(
                f"--balance: {self.files[0]} is a TFRecord file, which does not tell how long its "
                "examples are: make instance files (--output_format=instances), or leave it out"
            )
        return problems + self.wrong_shape(config)

    def wrong_shape(self, config: BertConfig | None) -> list[str]:
        """Returns messages on examples that are longer or shorter than flags and model say."""
        if not self.lengths:
            return []
        place = f"--tfrecord_{self.name}: {self.files[0]}"
        seq_length, predictions = self.lengths["input_ids"], self.lengths["masked_lm_ids"]
        problems = [
            f"{place}: examples of {found} {what}, but --{name}={getattr(self._flags, name)}"
            for name, found, what in (
                ("max_seq_length", seq_length, "tokens"),
                ("max_predictions_per_seq", predictions, "predictions"),
            )
            if getattr(self._flags, name) not in (None, found)
        ]
        if config and seq_length > config.max_position_embeddings:
            problems.append(
                f"{place}: examples of {seq_length} tokens, but {self._flags.bert_config_file} has "
                f"max_position_embeddings {config.max_position_embeddings}; "
                "make shorter examples or use another configuration"
            )
        return problems

    def _wrong_for_instances(self, config):
        problems, flags, path = [], self._flags, self.files[0]
        if self._given_indexes:
            problems.append(
                f"--idx_{self.name}: {path} is an instance file, which needs no index; "
                "leave the flag out"
            )
        _, file = attempt("", InstanceFile, path)
        tokenizer = None
        if config:
            _, tokenizer = attempt(
                "", load_tokenizer, flags.vocab_file, flags.do_lower_case, config
            )
        if file and tokenizer and file.header.vocabulary != vocabulary_checksum(tokenizer.vocab):
            problems.append(
                f"--vocab_file: {flags.vocab_file} is not the vocabulary of {path} "
                f"({file.header.vocab_size:,} tokens); use the one that made the examples"
            )
        return problems


def splits_of(flags: argparse.Namespace) -> tuple[Split, Split]:
    """Returns the `Split`s of training and of evaluation."""
    return Split(flags, "train"), Split(flags, "eval")


def _local_files(where):
    if is_remote(where):
        raise DataError(_not_local(where))
    return list_folder_or_pattern(where)


def _not_local(where):
    return (
        f"{where}: training uses local files only; copy them to a disk, or mount them as a folder"
    )


def is_folder_of_indexes(where: str) -> bool:
    """Whether --idx_* is a folder, which may not exist yet, and not a pattern or a file."""
    # isfile, not exists: another rank may be creating the folder at this moment.
    return os.path.isdir(where) or not (os.path.isfile(where) or glob.has_magic(where))


# --------------------------------------------------------------------------------------------------
# Folders that are written in

_FILES_OF_A_RUN = ("curves.png", "flags.json", "metrics.jsonl", "mlperf.log")


def wrong_folders(flags: argparse.Namespace, train: Split, evaluation: Split) -> list[str]:
    """Returns messages on the folders of flags that cannot be written in, or whose new files would
    be taken for data.
    """
    problems = _folder_problems("output_dir", flags.output_dir, folder_problems)
    new_files = {"output_dir": list(_FILES_OF_A_RUN)}
    for split in (train, evaluation):
        name, indexes = f"idx_{split.name}", getattr(flags, f"idx_{split.name}")
        if indexes and is_folder_of_indexes(indexes):
            problems += _folder_problems(name, indexes, new_folder_problems)
            new_files[name] = [f"{os.path.basename(path)}.idx" for path in split.files]
    if "idx_train" in new_files and "idx_eval" in new_files:
        is_one = os.path.realpath(flags.idx_train) == os.path.realpath(flags.idx_eval)
        if is_one and train.files != evaluation.files:
            problems.append(
                f"--idx_eval: {flags.idx_eval} is --idx_train too; give each a folder of its own, "
                "which holds the indexes of its files only"
            )
    for name, names in new_files.items():
        for data_flag in ("tfrecord_train", "tfrecord_eval"):
            where, data = getattr(flags, name), getattr(flags, data_flag)
            if _takes_for_data(data, where, names):
                problems.append(
                    f"--{name}: {where} is among the data of --{data_flag}={data}, and its new "
                    "files would be taken for examples; choose a folder outside"
                )
    return problems


def _folder_problems(name, folder, problems_of):
    problems = [_not_local(folder)] if is_remote(folder) else problems_of(folder)
    return [f"--{name}: {problem}" for problem in problems]


def _takes_for_data(data, folder, names):
    """Whether `data`, a folder or patterns, would mean files of these names in a folder too."""
    folder = os.path.realpath(folder)
    if os.path.isdir(data):
        return folder == os.path.realpath(data)
    return any(
        os.path.realpath(os.path.dirname(pattern)) == folder
        and fnmatch.filter(names, os.path.basename(pattern))
        for pattern in data.split(",")
    )
