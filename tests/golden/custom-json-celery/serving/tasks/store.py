"""What tasks ask and have answered, in an object store that all processes reach."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import fsspec

from serving.tasks.files import ASKED, Folder


class Bucket(Folder):
    """A folder of a store that fsspec knows, such as `s3://bucket/folder`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def open(self) -> None:
        """Find out how to reach it, from the environment. Raises ImportError and ValueError."""
        self._store, self._folder = fsspec.url_to_fs(self._url, use_listings_cache=False)

    def older_than(self, timestamp: float) -> list[str]:
        """Return the names whose request was there before this time."""
        with failing_as_disks_do():
            found = self._store.find(self._folder, detail=True)
        return [
            PurePosixPath(path).stem
            for path, about in found.items()
            if path.endswith(f".{ASKED}") and about["LastModified"].timestamp() < timestamp
        ]

    def _put(self, file: str, head: bytes, body: bytes) -> None:
        with failing_as_disks_do():  # an object is there whole, or not at all
            self._store.pipe_file(f"{self._folder}/{file}", head + body)

    def _get(self, file: str) -> bytes:
        with failing_as_disks_do():
            content: bytes = self._store.cat_file(f"{self._folder}/{file}")
            return content

    def _delete(self, file: str) -> None:
        with failing_as_disks_do():
            self._store.rm_file(f"{self._folder}/{file}")


@contextmanager
def failing_as_disks_do() -> Iterator[None]:
    """Raise OSError whatever fails: each store's library has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"The store cannot be reached: {error}") from error
