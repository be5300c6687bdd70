"""The part of a file that has arrived so far. Imported by other scripts here, never run."""

import json
import os

from bert.common.files import DataError, atomic_writer, lock, remove


class Refused(DataError):
    """The server does not send the file.

    `fault`: what was found; the whole message adds what to do.
    """

    def __init__(self, fault: str, advice: str = "") -> None:
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

    def __init__(self, path: str) -> None:
        folder, name = os.path.split(os.path.abspath(path))
        self.path = os.path.join(folder, f".{name}.part")
        self._origin_path = self.path + ".json"
        self._file = open(self.path, "ab")
        if not lock(self._file):
            self._file.close()
            raise DataError(f"{path}: another process is downloading it; wait until it ends")

    @property
    def size(self) -> int:
        return os.path.getsize(self.path)

    def origin(self) -> dict:
        """{"url", "etag", "last_modified", "size"} of the bytes so far; {} if unknown."""
        try:
            with open(self._origin_path) as file:
                return json.load(file)
        except (FileNotFoundError, ValueError):
            return {}

    def restart(self, origin: dict) -> None:
        """Drops the bytes so far; those that follow are of `origin`."""
        self._file.truncate(0)
        with atomic_writer(self._origin_path) as file:
            file.write(json.dumps(origin).encode())

    def append(self, block: bytes) -> None:
        self._file.write(block)
        self._file.flush()

    def rename_to(self, path: str) -> None:
        os.fsync(self._file.fileno())
        os.replace(self.path, path)
        os.remove(self._origin_path)

    def remove(self) -> None:
        remove(self.path)
        remove(self._origin_path)

    def close(self) -> None:
        """Keeps the bytes for a later call; an empty part file is removed."""
        if os.path.exists(self.path) and self.size == 0:
            self.remove()
        self._file.close()
