"""One line of progress on a terminal, overwritten and at last wiped; nothing where stderr is no
terminal.
"""

import shutil
import sys


class ProgressLine:
    """Use as a context manager; `show` may be called as often as there is something to tell, up to
    some hundred times a second.
    """

    def __init__(self):
        self._is_shown = sys.stderr.isatty()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.show("")

    def show(self, text):
        if self._is_shown:
            columns = shutil.get_terminal_size().columns
            # The code erases what an older, longer text left.
            sys.stderr.write(f"\r{text[: columns - 1]}\x1b[K")
            sys.stderr.flush()


def time_left(done, total, seconds):
    """Returns, in words, how long the rest takes if `done` of `total` took `seconds`; done is over
    0.
    """
    left = round(seconds * (total - done) / done)
    minutes, hours = left // 60, left // 3600
    if hours:
        return f"{hours} h {minutes % 60:02d} min left"
    return f"{minutes} min {left % 60:02d} s left" if minutes else f"{left} s left"
