"""What making the parts will cost, estimated from one part that is made as a sample.

The sample is the middle one, as Wikipedia's later articles are shorter: MLPerf's first part has 19
bytes of records for each byte of text, its last one 41, and all 500 have 29 (docs/published.md).
"""

import errno
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from bert.common.files import DataError
from bert.generation import shards
from bert.generation.shards import Recipe, Shard

# Of a worker, beside the part: docs/performance.md has 300 MB under Ray, 235 MB without.
_RAY_BYTES = 65_000_000


class Sample(NamedTuple):
    name: str
    text_bytes: int
    records: int
    bytes: int  # of its file of examples
    seconds: float
    peak_bytes: int  # memory of the process that made it


class Estimate(NamedTuple):
    bytes: int  # of all files of examples
    num_workers: int  # that have something to do
    worker_bytes: int  # memory of one worker
    seconds: float  # without the start and end of Ray


def make_sample(shard: Shard, recipe: Recipe) -> Sample:
    """Makes a shard in a temporary folder, which is then removed.

    The kernels must be compiled already. DataError or OSError if it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="bert-sample-") as folder:
        try:
            manifest = shards.make(shard._replace(output=f"{folder}/{shard.name}"), recipe)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise DataError(
                f"{folder}: no room for {shard.name} as a sample; "
                "choose another folder for temporary files: TMPDIR=<folder>"
            ) from None
    output, cost = manifest["output"], manifest["cost"]
    return Sample(
        shard.name, manifest["input"]["bytes"], output["records"], output["bytes"],
        cost["wall_seconds"], 1_000_000 * cost["peak_megabytes"],
    )  # fmt: skip


def estimate(sample: Sample, text_bytes: Sequence[int], num_workers: int) -> Estimate:
    """Returns the `Estimate` of parts with so many bytes of text each, made by `num_workers`.

    All is taken as proportional to the text; memory, of the largest one, is rather too much.
    """
    share, largest = (number / sample.text_bytes for number in (sum(text_bytes), max(text_bytes)))
    at_a_time = min(num_workers, len(text_bytes))
    return Estimate(
        round(sample.bytes * share),
        at_a_time,
        round(sample.peak_bytes * max(1, largest)) + _RAY_BYTES,
        # No part takes less than its own time, however many workers there are.
        sample.seconds * max(share / at_a_time, largest),
    )
