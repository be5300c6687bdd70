"""The accuracy that a recipe reached in a known run, by training examples: a new run that leaves
this curve gets a warning.

A curve is a CSV file: `#` comments that name its source, the header `samples,masked_lm_accuracy`,
then a line per evaluation.
"""

import bisect
from collections.abc import Sequence

from bert.common.files import DataError, raise_if_any, read_bytes

HEADER = "samples,masked_lm_accuracy"
MIN_POINTS = 2

# In the steep part of both curves of configs/curves the accuracy rises by 0.0006 per 1,000 samples.
# So 0.03 is a lag of about 50,000 samples, a third of MLPerf's interval between evaluations at
# batch 256. A judgement, not a measured spread.
TOLERANCE_BELOW = 0.03
TOLERANCE_ABOVE = 0.05  # wider: being a little ahead is no reason to worry

CHECK_BELOW = (
    "check that --init_checkpoint is the one of the curve, that --learning_rate, "
    "--train_batch_size and warm-up are its recipe's, and the data with verify_dataset.py"
)
CHECK_ABOVE = (
    "check that --tfrecord_train does not hold the evaluation examples, that --tfrecord_eval is "
    "the curve's evaluation set, and that --init_checkpoint has not been trained further"
)


class ExpectedCurve:
    """Masked LM accuracies (0 to 1) by training examples, linear between the points."""

    def __init__(self, path: str, samples: Sequence[int], accuracies: Sequence[float]):
        """Takes two lists of the same length; samples increase."""
        self.path, self.samples, self.accuracies = path, samples, accuracies

    @classmethod
    def read(cls, path: str) -> "ExpectedCurve":
        """Reads a CSV file; DataError with everything that is wrong with it."""
        try:
            text = read_bytes(path).decode()
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file; the known curves are in configs/curves"
            ) from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: byte {error.start}: not UTF-8, expected a CSV file with {HEADER}"
            ) from None
        samples, accuracies, problems = _parse(path, text)
        raise_if_any(problems)
        return cls(path, samples, accuracies)

    def expected(self, samples: int) -> float | None:
        """Returns the curve's accuracy; None before its first point, the last one after its end."""
        if samples < self.samples[0]:
            return None
        right = bisect.bisect_right(self.samples, samples)
        if right == len(self.samples):
            return self.accuracies[-1]
        x0, x1 = self.samples[right - 1 : right + 1]
        y0, y1 = self.accuracies[right - 1 : right + 1]
        return y0 + (y1 - y0) * (samples - x0) / (x1 - x0)

    def warning(self, samples: int, accuracy: float) -> str | None:
        """Returns a warning if an accuracy is off the curve, else None."""
        expected = self.expected(samples)
        if expected is None:
            return None
        if not accuracy >= expected - TOLERANCE_BELOW:  # "not >=": true for NaN too
            limit, advice = f"at least {expected - TOLERANCE_BELOW:.4f}", CHECK_BELOW
        elif samples <= self.samples[-1] and accuracy > expected + TOLERANCE_ABOVE:
            limit, advice = f"at most {expected + TOLERANCE_ABOVE:.4f}", CHECK_ABOVE
        else:
            return None
        return (
            f"after {samples:,} samples masked_lm_accuracy is {accuracy:.4f}, expected "
            f"{expected:.4f} ({limit}) by {self.path}; {advice}"
        )


def _parse(path, text):
    """Returns (samples, accuracies, messages) of a curve's text."""
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not lines or lines[0][1] != HEADER:
        number, found = lines[0] if lines else (len(numbered) or 1, "the end of the file")
        problem = (
            f"{path}: line {number}: found {found[:60]!r}, expected the header {HEADER}; "
            "put it above the numbers"
        )
        return [], [], [problem]
    points: list[tuple[int, float]] = []
    problems = []
    for number, line in lines[1:]:
        try:
            points.append(_parse_point(line, points[-1][0] if points else -1))
        except ValueError as error:
            problems.append(f"{path}: line {number}: found {line[:60]!r}, {error}")
    if len(lines) - 1 < MIN_POINTS:
        problems.append(
            f"{path}: {len(lines) - 1} points, expected {MIN_POINTS} or more; "
            "add evaluations of a run that went well"
        )
    return [point[0] for point in points], [point[1] for point in points], problems


def _parse_point(line, previous):
    """Returns (samples, accuracy) of a line; ValueError if it is wrong or not after `previous`."""
    try:
        first, second = line.split(",")
        samples, accuracy = int(first), float(second)
    except ValueError:
        raise ValueError(
            "expected two numbers such as 150000,0.512; correct the line or remove it"
        ) from None
    if samples <= previous:
        than = f"more samples than the {previous} of the line before"
        raise ValueError(
            f"expected {'0 or more samples' if previous < 0 else than}; sort the lines and remove "
            "duplicates"
        )
    if not 0 <= accuracy <= 1:
        raise ValueError("expected an accuracy from 0 to 1; divide percents by 100")
    return samples, accuracy
