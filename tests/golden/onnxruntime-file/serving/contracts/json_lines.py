"""Several JSON documents in one request, one a line, as SageMaker's batch transform sends them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError

from serving.contracts.documents import off_the_loop, parse_json
from serving.errors import BadInput, ServiceError, TooLarge
from serving.limits import MAX_UPLOAD_BYTES
from serving.requests import ParsedRequest, RequestParser, check_encoding
from serving.runner import Job
from serving.service import Service, encode, encode_strictly

NAMES = ("jsonlines", "jsonl", "ndjson")
MAX_LINES = 1000  # which go to the model together


def is_json_lines(content_type: str) -> bool:
    """Tell whether this is one of their types, such as application/x-ndjson."""
    return content_type.rpartition("/")[2].removeprefix("x-").replace("-", "") in NAMES


@dataclass(frozen=True)
class Lines:
    """Such a request."""

    requests: dict[int, ParsedRequest[Any]]  # by the number of the line, from 1

    def decode(self) -> list[Any]:
        """Return the inputs of all of them. Raises BadInput, which names the line."""
        inputs: list[Any] = []
        for number, request in self.requests.items():
            with at_line(number):
                inputs += request.decode()
        return inputs

    def encode(self, outputs: list[Any]) -> bytes:
        """Return an answer for each line, one a line."""
        return b"\n".join(encode([output]) for output in outputs)

    def answer(self, outputs: list[Any]) -> tuple[bytes, dict[str, str]]:
        """Return the response's body and headers."""
        return encode_strictly(self.encode, outputs), {}


async def answer_lines(service: Service[Any], request: Request) -> Response:
    """Answer each line as if it had come alone; what is wrong with one fails the request.

    Raises TooLarge, UnsupportedType, BadInput, RequestValidationError, and what `Worker.run` does.
    """
    body = await request.body()
    check_encoding(request)
    lines = await off_the_loop(partial(parse_lines, service.parse), body)
    job = Job(lines.decode, lines.answer)
    answers, headers = await service.worker.run(job, request.state.body.is_disconnected)
    return Response(answers, headers=headers, media_type=request.headers["content-type"])


def parse_lines(parse: RequestParser[Any], body: bytes) -> Lines:
    """Return the requests of a body, skipping empty lines. Raises as `answer_lines` does."""
    if len(body) > MAX_UPLOAD_BYTES:
        raise TooLarge
    if body.count(b"\n") > MAX_LINES:
        raise TooLarge(f"More than {MAX_LINES} lines: send them in several requests.")
    requests = {}
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            with at_line(number):
                requests[number] = parse_json(parse, line)
    if not requests:
        raise BadInput("Empty upload.")
    return Lines(requests)


@contextmanager
def at_line(number: int) -> Iterator[None]:
    """Name the line that an error is about."""
    try:
        yield
    except RequestValidationError as error:
        place = f"line {number}"
        errors = [{**item, "loc": ("body", place, *item["loc"][1:])} for item in error.errors()]
        raise RequestValidationError(errors) from error
    except ServiceError as error:
        raise type(error)(f"Line {number}: {error.detail}") from error
