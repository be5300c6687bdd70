"""The reference implementation of bert/examples/instances.py: an instance, padded and spelled
out.
"""


def example_of(instances, number, special_ids, max_seq_length, max_predictions_per_seq):
    """Returns the example of an instance: {feature name: list of numbers}."""
    row = instances.rows[number]
    cls_id, sep_id = special_ids
    a = instances.tokens[row["a_start"] :][: row["a_length"]].tolist()
    b = instances.tokens[row["b_start"] :][: row["b_length"]].tolist()
    ids = [cls_id, *a, sep_id, *b, sep_id]
    changes = instances.changes[row["first_change"] :][: row["num_changes"]].tolist()
    labels = [ids[position] for position, _ in changes]
    for position, new_id in changes:
        ids[position] = new_id

    def padded(values, length):
        return values + [0] * (length - len(values))

    return {
        "input_ids": padded(ids, max_seq_length),
        "input_mask": padded([1] * len(ids), max_seq_length),
        "masked_lm_ids": padded(labels, max_predictions_per_seq),
        "masked_lm_positions": padded([place for place, _ in changes], max_predictions_per_seq),
        "masked_lm_weights": padded([1.0] * len(changes), max_predictions_per_seq),
        "next_sentence_labels": [int(row["is_random_next"])],
        "segment_ids": padded([0] * (len(a) + 2) + [1] * (len(b) + 1), max_seq_length),
    }
