"""What MLPerf published about its BERT data: English Wikipedia of 2020-01-01, random_seed 12345,
dupe_factor 10.

Source, but for the totals of records: MLCommons, training repository,
language_model/tensorflow/bert/README.md.
"""

NUM_PARTS = 500

# {file of the results folder: (bytes, MD5)}
RESULTS = {
    "eval.txt": (32_851_144, "2a220f790517261547b1b45ed3ada07a"),
    "eval.md5": (330_000, "71a58382a68947e93e88aa0d42431b6c"),
    "part-00000-of-00500": (27_150_902, "a64a7c31eff5cd38ae6d94f7a6229dab"),
    "part-00001-of-00500": (27_198_569, "549a9ed4f805257245bec936563abfd0"),
    "part-00002-of-00500": (27_395_616, "1a1366ddfc03aef9d41ce552ee247abf"),
    "part-00497-of-00500": (24_775_043, "66835aa75d4855f2e678e8f3d73812e9"),
    "part-00498-of-00500": (24_575_505, "e6d68a7632e9f4aa1a94128cce556dc9"),
    "part-00499-of-00500": (21_873_644, "b3b087ad24e3770d879a351664cebc5a"),
}

VOCAB_MD5 = "64800d5d8528ce344256daf115d4965e"
MAX_SEQ_LENGTH, MAX_PREDICTIONS_PER_SEQ, DUPE_FACTOR = 512, 76, 10
SETTINGS = {  # flags of create_pretraining_data.py
    "max_seq_length": MAX_SEQ_LENGTH, "max_predictions_per_seq": MAX_PREDICTIONS_PER_SEQ,
    "masked_lm_prob": 0.15, "short_seq_prob": 0.1, "dupe_factor": DUPE_FACTOR,
    "random_seed": 12345, "do_lower_case": True, "preserve_unused_tokens": False,
}  # fmt: skip

TFRECORD_BYTES = 391_434_110_129  # of the 500 training files together
TFRECORD_PART_BYTES = {"part-00000-of-00500": 514_241_279, "part-00499-of-00500": 898_392_312}
# Of the 500 training files together: the sources differ, and nothing says which one counted right.
TFRECORD_RECORDS = {"Google": 156_725_653, "NVIDIA": 156_726_829, "MosaicML": 156_811_560}

EVAL_10K_RECORDS, EVAL_10K_BYTES = 10_000, 25_382_591
# MD5 of str([MD5 hex of str(ids) for each record]), ids = the list of the first sum(input_mask)
# input_ids.
EVAL_10K_DIGEST = "611d8bae26646145e1c33338a27ba124"
