"""The guard that knows how accurate a recipe should be by now."""

import pytest

from bert.common.files import DataError
from bert.training.expected_curve import TOLERANCE_ABOVE, TOLERANCE_BELOW, ExpectedCurve
from tests.conftest import ROOT

CURVES = sorted((ROOT / "configs" / "curves").glob("*.csv"))
POINTS = "samples,masked_lm_accuracy\n100000,0.4\n200000,0.6\n300000,0.7\n"


def read(tmp_path, text):
    path = tmp_path / "curve.csv"
    path.write_text(text)
    return ExpectedCurve.read(str(path))


@pytest.fixture
def curve(tmp_path):
    return read(tmp_path, POINTS)


def test_linear_between_the_points(curve):
    found = [curve.expected(samples) for samples in (100_000, 150_000, 200_000, 275_000, 300_000)]
    assert found == pytest.approx([0.4, 0.5, 0.6, 0.675, 0.7])


def test_points_themselves_and_what_is_near_are_fine(curve):
    for samples, accuracy in zip(curve.samples, curve.accuracies):
        for distance in (-TOLERANCE_BELOW + 1e-6, 0, TOLERANCE_ABOVE - 1e-6):
            assert curve.warning(samples, accuracy + distance) is None


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (
            0.4699,
            (
                "0.4699",
                "at least 0.4700",
                "--learning_rate",
                "--init_checkpoint",
                "verify_dataset.py",
            ),
        ),
        (0.5501, ("0.5501", "at most 0.5500", "--tfrecord_train", "--tfrecord_eval")),
        (float("nan"), ("nan", "at least 0.4700")),
    ],
)
def test_off_the_curve(curve, accuracy, words):
    text = curve.warning(150_000, accuracy)
    for word in ("150,000 samples", "expected 0.5000", curve.path, *words):
        assert word in text


def test_nothing_is_said_before_the_first_point(curve):
    assert curve.warning(99_999, 0.0) is None
    assert curve.warning(99_999, 1.0) is None


def test_after_the_last_point_only_too_low_is_reported(curve):
    assert curve.warning(900_000, 0.99) is None
    assert "expected 0.7000" in curve.warning(900_000, 0.66)
    assert curve.warning(300_000, 0.76)  # at the point itself both are reported


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: found 'the end of the file', expected the header samples,masked_lm_accuracy"),
        ("# only a source\n\n", "line 2: found 'the end of the file'"),
        (
            "# source\nstep,accuracy\n1,0.1\n2,0.2\n",
            "line 2: found 'step,accuracy', expected the header",
        ),
        ("1,0.1\n2,0.2\n", "line 1: found '1,0.1', expected the header"),
        (
            POINTS + "# more\nmany,0.8\n",
            "line 6: found 'many,0.8', expected two numbers.*correct the line",
        ),
        (POINTS + "400000,\n", "line 5: found '400000,', expected two numbers"),
        (POINTS + "400000,0.8,1\n", "line 5: .*expected two numbers"),
        (POINTS + "400000.5,0.8\n", "line 5: .*expected two numbers"),
        (
            POINTS + "300000,0.8\n",
            "line 5: .*expected more samples than the 300000 of the line before; sort",
        ),
        ("samples,masked_lm_accuracy\n-1,0.1\n2,0.2\n", "line 2: .*expected 0 or more samples"),
        (POINTS + "400000,72\n", "line 5: .*expected an accuracy from 0 to 1; divide"),
        (POINTS + "400000,nan\n", "line 5: .*expected an accuracy from 0 to 1"),
        ("samples,masked_lm_accuracy\n1,0.1\n", "1 points, expected 2 or more"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"curve\.csv: {message}"):
        read(tmp_path, text)


def test_all_that_is_wrong_is_reported_at_once(tmp_path):
    with pytest.raises(DataError, match=r"(?s)line 5.*\n.*line 6"):
        read(tmp_path, POINTS + "x,0.8\n500000,8\n")


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(
        DataError, match="none.csv: no such file; the known curves are in configs/curves"
    ):
        ExpectedCurve.read(str(tmp_path / "none.csv"))
    (tmp_path / "curve.csv").write_bytes(b"samples\xff")
    with pytest.raises(DataError, match="curve.csv: byte 7: not UTF-8"):
        ExpectedCurve.read(str(tmp_path / "curve.csv"))


@pytest.mark.parametrize("path", CURVES, ids=lambda path: path.stem)
def test_the_curves_that_come_along(path):
    curve = ExpectedCurve.read(str(path))
    assert "# Source: " in path.read_text()
    assert curve.accuracies == sorted(curve.accuracies)
    # one evaluation of MLPerf's interval late is reported on each
    late = curve.samples[0] + 150_000
    assert curve.warning(late, curve.accuracies[0])


def test_there_are_curves():
    assert len(CURVES) >= 2
