"""TFRecord files as a source of examples."""

import numpy as np

from bert.common.files import DataError, raise_if_any
from bert.examples.decoding import Decoder
from bert.examples.example import check_values, decode_example, feature_lengths
from bert.loader.index import RecordIndex, read_samples
from bert.loader.reader import RecordReader


class TFRecordSource:
    """Checks sampled records of all files (three of each); DataError with all that is wrong.

    vocab_size: token ids must be below it; None: any.
    """

    knows_lengths = False

    def __init__(self, index: RecordIndex, vocab_size: int | None, num_threads: int):
        self._index = index
        self.num_records = index.num_records
        samples = read_samples(index, num_threads)
        self.first_example = decode_example(*samples[0])
        lengths = feature_lengths(
            len(self.first_example["input_ids"]), len(self.first_example["masked_lm_positions"])
        )
        problems = []
        for payload, place in samples:
            try:
                check_values(decode_example(payload, place), lengths, vocab_size, place)
            except DataError as error:
                problems.append(str(error))
        raise_if_any(problems)
        self._decoder = Decoder(lengths, vocab_size)
        self.layout = self._decoder.layout

    def fingerprint(self) -> dict[str, int | str]:
        return self._index.fingerprint()

    def file_of_record(self, record: int) -> tuple[str, int]:
        return self._index.file_of_record(record)

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        raise NotImplementedError("a TFRecord tells the length of its example only when decoded")

    def reader(self) -> "_Reader":
        return _Reader(self._index, self._decoder)


class _Reader(RecordReader):
    def __init__(self, index, decoder):
        super().__init__(index)
        self._decoder = decoder

    def decode(self, pieces: list) -> tuple[np.ndarray, np.ndarray]:
        return self._decoder.decode(pieces, self.place)
