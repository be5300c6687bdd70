"""For tests only: create_pretraining_shards.py in one process, which makes part after part.

To start and end Ray takes 15 s of CPU. tests/generation/test_create_pretraining_shards.py runs the
script as it is; whatever else is tested of it needs no Ray.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import create_pretraining_shards
from bert.common import cli
from bert.common.files import DataError
from bert.generation import ray_pool


def run(function, items, *arguments, num_at_a_time):
    for item in items:
        try:
            yield ray_pool.Outcome(item, function(item, *arguments), None)
        except (DataError, OSError) as error:
            yield ray_pool.Outcome(item, None, str(error))


if __name__ == "__main__":
    ray_pool.started = lambda address, num_workers: contextlib.nullcontext(1)
    ray_pool.run = run
    cli.run(create_pretraining_shards.main)
