"""What the model takes: the file of a request, as it was sent."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mimetypes import guess_extension
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel

MAX_PARTS = 2000  # of a form

ParamsT = TypeVar("ParamsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it was sent."""

    content: bytes
    name: str | None = None  # without folders; None where the sender says none
    content_type: str | None = None  # as it was sent, such as "text/plain; charset=utf-8"

    @classmethod
    def sent(cls, content: bytes, name: str | None, content_type: str | None) -> "Upload":
        """Return a file of which a header's bytes say the name, in UTF-8."""
        utf_8 = (name or "").encode("latin-1").decode(errors="replace")
        base = Path(utf_8).name
        return cls(content, None if base in ("", "..") else base, content_type or None)

    @contextmanager
    def path(self) -> Iterator[Path]:
        """Yield the path of a copy, whose suffix is the file's; the copy is gone afterwards."""
        found = re.search(r"(\.\w{1,16}){1,2}\Z", self.name or "", re.ASCII)
        essence = (self.content_type or "").partition(";")[0].strip()
        suffix = found[0] if found else guess_extension(essence) or ""
        with TemporaryDirectory() as folder:
            copy = Path(folder, f"file{suffix}")
            copy.write_bytes(self.content)
            yield copy


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One file: `Model.predict` gets a list of these."""

    file: Upload
    params: ParamsT


@dataclass(frozen=True)
class Decoder:
    """What the model wants of a file; inference.py declares it. Any content is taken."""

    several: ClassVar[bool] = False  # whether a request carries a list of them
    field: str = "file"  # the form field that carries the file
    content_types: tuple[str, ...] = ("*/*",)  # that are taken, e.g. "application/pdf", "text/*"

    @property
    def media_types(self) -> tuple[str, ...]:
        """How the content types begin that are taken."""
        return tuple(name.partition("*")[0] for name in self.content_types)

    def decode(self, files: list[Upload], params: ParamsT) -> list[Input[ParamsT]]:
        """Return one `Input` for each file of the request."""
        return [Input(file, params) for file in files]
