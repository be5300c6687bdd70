"""The part of a file that has arrived so far. Imported by resumable_download.py, never run."""

import fcntl
import json
import os


class DownloadError(Exception):
    """A file cannot be downloaded or unpacked; the message says from where, what was found, what
    was expected and what to do.
    """


class Refused(DownloadError):
    """The server does not send the file.

    `fault`: what was found; the whole message adds what to do.
    """

    def __init__(self, fault: str, advice: str = ""):
        super().__init__(f"{fault}. {advice}".removesuffix(". "))
        self.fault = fault


class LoginRequired(Refused):
    """The server answers 401 or 403, or sends a web page, which is most often a log-in page."""


class Unreachable(Refused):
    """There is no connection to the server."""


class PartFile:
    """The bytes of a file that have arrived so far, and which version of which URL they are of.

    Locked against a second download.
    """

    def __init__(self, path):
        folder, name = os.path.split(os.path.abspath(path))
        self.path = os.path.join(folder, f".{name}.part")
        self._origin_path = self.path + ".json"
        self._file = open(self.path, "ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise DownloadError(
                f"{path}: another download is writing it; wait for that one"
            ) from None

    @property
    def size(self):
        return os.path.getsize(self.path)

    def origin(self):
        """{"url", "etag", "last_modified", "size"} of the bytes so far; {} if unknown."""
        try:
            with open(self._origin_path) as file:
                return json.load(file)
        except (FileNotFoundError, ValueError):
            return {}

    def restart(self, origin):
        """Drops the bytes so far; those that follow are of `origin`."""
        self._file.truncate(0)
        temporary = self._origin_path + ".tmp"
        with open(temporary, "w") as file:
            json.dump(origin, file)
        os.replace(temporary, self._origin_path)

    def append(self, block):
        self._file.write(block)
        self._file.flush()

    def rename_to(self, path):
        os.fsync(self._file.fileno())
        os.replace(self.path, path)
        os.remove(self._origin_path)

    def remove(self):
        for path in (self.path, self._origin_path):
            if os.path.exists(path):
                os.remove(path)

    def close(self):
        """Keeps the bytes for a later call; an empty part file is removed."""
        if os.path.exists(self.path) and self.size == 0:
            self.remove()
        self._file.close()
