"""Write the tables of docs/reference/settings.md and errors.md: `make docs`.

They are read from the source of rendered services, which need not be installed for that.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.rendering import render
from tests.support.variants import CONTRACTS, FEATURES, ROOT, choices

FOLDER = ROOT / "docs" / "reference"
PLAIN = {"model_type": "custom", "input_kind": "json", "features": []}
EVERYTHING = {"features": list(FEATURES), "contracts": list(CONTRACTS)}

# What cannot be read from the code: when an error occurs, and what its client should do.
ADVICE = {
    "BadInput": (
        "The input is empty, corrupt, not JSON, over a decoder's limit, or the model rejects it.",
        "Send another input.",
    ),
    "UnsupportedUpgrade": (
        "The request has a body and offers an upgrade, as Java's `HttpClient` does.",
        "Ask for HTTP/1.1, or start the service with `HTTP_PARSER=h11`.",
    ),
    "Unauthorized": (
        "There is no key or token, or it is not valid. The answer has `WWW-Authenticate`.",
        "Send valid credentials.",
    ),
    "Forbidden": ("The policy does not allow the request.", "Ask the operator for access."),
    "UnknownModel": (
        "The Open Inference Protocol was asked for another model or version.",
        "Ask for a name that `GET /v2/models` has.",
    ),
    "Refused": (
        "OpenAI's API was asked for an option that the model does not take; `param` has its name.",
        "Leave the option out.",
    ),
    "NoSuchModel": (
        "OpenAI's API was asked for another model.",
        "Ask for the name that `GET /v1/models` has.",
    ),
    "TooSlow": (
        "The body was not complete within `REQUEST_TIMEOUT_SECONDS`; or a stream was not read.",
        "Retry on a faster connection.",
    ),
    "TooLarge": ("The body is over `MAX_UPLOAD_MB`.", "Send less."),
    "UnsupportedType": (
        "The content type is not accepted.",
        "Send a type of the OpenAPI document, or `application/octet-stream`.",
    ),
    "NotReady": (
        "The model is loading, hangs past its deadline, or the service is stopping.",
        "Retry later, or on another replica; `/ready` says when.",
    ),
    "Busy": ("`MAX_QUEUE_SIZE` requests are waiting.", "Retry after the pause, more slowly."),
    "TooManyBytes": (
        "The bodies of all requests together take `MAX_BODIES_MB`.",
        "Retry after the pause.",
    ),
    "OutOfMemory": (
        "Memory ran out during the call: the machine's, or the GPU's.",
        "Retry after the pause, or send a smaller input.",
    ),
    "CannotAuthorize": (
        "The policy, or the issuer of the tokens, does not answer.",
        "Retry after the pause.",
    ),
    "NoSuchTask": (
        "There is no such task, it has expired, or it is somebody else's.",
        "Look at the id, and at `RESULT_TTL_HOURS`.",
    ),
    "HasEnded": ("A task that has ended was to be canceled.", "Take it as it is."),
    "HasNoAnswer": ("The answer to a task that was canceled was asked for.", "Send it again."),
    "HasNoAnswerYet": (
        "The answer to a task that has not ended was asked for.",
        "Retry after the pause, or ask with `?wait=30`.",
    ),
    "KeyReused": (
        "An `Idempotency-Key` came with another content than before.",
        "Take another key for another request.",
    ),
    "BadWebhook": (
        "`Webhook-URL` is none, or its host is not one of `WEBHOOK_HOSTS`.",
        "Name a host that is allowed, or none.",
    ),
    "TooManyTasks": ("`MAX_QUEUED_TASKS` tasks wait.", "Retry after the pause."),
    "IsRunning": ("A worker asks for a task that another one has begun.", "Nothing: it goes on."),
    "CannotKeep": (
        "What keeps the tasks, the disk or Redis, is full, fails, or is away.",
        "Retry after the pause.",
    ),
    "DeadlineExceeded": (
        "There was no answer within `INFER_TIMEOUT_SECONDS`, the time in the queue included.",
        "Send a smaller input, or raise the limit.",
    ),
}
# What FastAPI raises, and what nothing foresees: no classes of the service's own.
OTHERS = [
    (404, "Not Found", "There is no such path.", "Look at `/docs`.", "`NOT_FOUND`"),
    (405, "Method Not Allowed", "The path has no such method.", "Look at `/docs`.", ""),
    (
        422,
        "a list of the invalid fields",
        "A field is missing or invalid.",
        "Correct the fields.",
        "`INVALID_ARGUMENT`",
    ),
    (
        500,
        "Internal server error.",
        "Unforeseen; the log has the `error_id` beside the traceback.",
        "Report the `error_id`.",
        "`INTERNAL`",
    ),
]


@dataclass(frozen=True)
class Setting:
    """A field of the class of settings."""

    name: str
    type: str
    default: str
    text: str


@dataclass
class Failure:
    """A class of errors, and what it says."""

    name: str
    status: int
    message: str
    retry_after: int | None = None
    closes: bool = False
    others: set[str] = field(default_factory=set)  # sentences in place of the message


def settings() -> dict[str, str]:
    """Return the table of settings."""
    answers: list[tuple[str, dict[str, Any]]] = [("", PLAIN)]
    kinds = [kind for kind in choices("input_kind") if kind != "json"]
    answers += [(f"`input_kind`: `{kind}`", PLAIN | {"input_kind": kind}) for kind in kinds]
    answers += [(f"`features`: `{name}`", PLAIN | {"features": [name]}) for name in FEATURES]
    answers += [(f"`contracts`: `{name}`", PLAIN | {"contracts": [name]}) for name in CONTRACTS]
    auths = [value for value in choices("auth") if value != "none"]
    answers += [(f"`auth`: `{value}`", PLAIN | {"auth": value}) for value in auths]
    engines = [value for value in choices("predictions") if value != "none"]
    answers += [(f"`predictions`: `{value}`", PLAIN | {"predictions": value}) for value in engines]
    brought: dict[Setting, list[str]] = {}
    with TemporaryDirectory() as folder:
        for number, (label, given) in enumerate(answers):
            project = render(Path(folder) / str(number), given)
            for setting in read_settings(project):
                by = brought.setdefault(setting, [])
                if "" not in by:
                    by.append(label)
    rows = [
        (
            f"`{setting.name}`",
            setting.type,
            f"`{setting.default}`" if setting.default else "",
            shorten(by) if "" not in by else "every service",
            setting.text,
        )
        for setting, by in sorted(brought.items(), key=lambda item: item[0].name)
    ]
    header = ("variable", "type", "default", "which answer brings it", "what it does")
    return {"settings": table(header, rows)}


def shorten(labels: Iterable[str]) -> str:
    """Return answers with each question named once."""
    values: dict[str, list[str]] = {}
    for label in labels:
        question, _, value = label.partition(": ")
        values.setdefault(question, []).append(value)
    return "; ".join(f"{question}: {', '.join(found)}" for question, found in values.items())


def read_settings(project: Path) -> Iterator[Setting]:
    """Yield the settings of a service."""
    module = ast.parse((project / "serving" / "settings.py").read_text(encoding="utf-8"))
    [body] = [
        node.body
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    ]
    for node, after in pairwise(body):
        match node, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as value),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield Setting(name.upper(), type_of(kind), default_of(value), text)


def type_of(annotation: ast.expr) -> str:
    """Return an annotation in words."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
            return type_of(inner)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            items = values.elts if isinstance(values, ast.Tuple) else [values]
            return ", ".join(f"`{ast.literal_eval(item)}`" for item in items)
        case ast.BinOp(left=inner, op=ast.BitOr(), right=ast.Constant(value=None)):
            return type_of(inner)
        case _:
            names = {
                "Device": "`cuda`, `mps`, `cpu`, or a GPU as `cuda:1`",
                "Port": "port",
                "PositiveInt": "integer from 1",
                "NonNegativeInt": "integer from 0",
                "PositiveFloat": "number above 0",
                "bool": "`true` or `false`",
                "str": "text",
                "Root": "path",
                "Segment": "name without slashes",
                "list[str]": "list, separated by commas",
                "list[Origin]": "origins, separated by commas",
                "list[Network]": "networks, separated by commas",
            }
            return names[ast.unparse(annotation)]


def default_of(value: ast.expr) -> str:
    """Return a default as one would write it in the environment."""
    if isinstance(value, ast.IfExp):  # under `serve`, else
        return default_of(value.orelse)
    default = ast.literal_eval(value)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return ",".join(default)
    return "" if default is None else str(default)


def errors() -> dict[str, str]:
    """Return the tables of errors and of what they say besides."""
    failures: dict[str, Failure] = {}
    codes: dict[int, str] = {}
    with TemporaryDirectory() as folder:
        for number, given in enumerate(
            [
                {"model_type": "custom", "input_kind": kind, "auth": auth} | EVERYTHING
                for kind, auth in (
                    ("json", "jwt"),
                    ("image", "api-key"),
                    ("image-batch", "api-key"),
                    ("audio", "api-key"),
                    ("video", "api-key"),
                )
            ]
            + [PLAIN | {"predictions": engine} for engine in ("local", "celery")]
        ):
            project = render(Path(folder) / str(number), given)
            for path in sorted(project.glob("serving/**/*.py")):
                module = ast.parse(path.read_text(encoding="utf-8"))
                read_failures(module, failures)
                codes |= read_codes(module)
            for path in sorted(project.glob("serving/**/*.py")):
                read_sentences(ast.parse(path.read_text(encoding="utf-8")), failures)
    rows: list[tuple[str, ...]] = [
        (
            str(failure.status),
            f"`{name}`",
            failure.message,
            *ADVICE[name],
            str(failure.retry_after or ""),
            "yes" if failure.closes else "",
            "`" + codes.get(failure.status, "INVALID_ARGUMENT") + "`",
        )
        for name, failure in failures.items()
    ]
    rows += [
        (str(status), "", told, when, then, "", "", code)
        for status, told, when, then, code in OTHERS
    ]
    header = ("status", "class", "message", "when", "what the client should do")
    messages = [(f"`{x.name}`", text) for x in failures.values() for text in x.others]
    return {
        "errors": table((*header, "`Retry-After`", "closes", "gRPC"), sorted(rows)),
        "messages": table(("class", "message"), sorted(messages)),
    }


def read_failures(module: ast.Module, failures: dict[str, Failure]) -> None:
    """Add the classes of errors that a module defines."""
    for node in ast.walk(module):
        if not isinstance(node, ast.ClassDef) or not node.bases:
            continue
        if ast.unparse(node.bases[0]) != "ServiceError":
            continue
        values: dict[str, Any] = {}
        for statement in node.body:
            match statement:
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=items)):
                    values |= {
                        ast.unparse(n): text_of(x) for n, x in zip(names, items, strict=True)
                    }
                case ast.Assign(targets=[ast.Name(id=name)], value=item):
                    values[name] = text_of(item)
        known = failures.setdefault(node.name, Failure(node.name, **values))
        if known.message != values["message"]:  # it depends on the answers
            known.others.add(values["message"])


def read_codes(module: ast.Module) -> dict[int, str]:
    """Return which gRPC status a module has for an HTTP status."""
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="CODES")], value=ast.Dict() as value):
                found: dict[int, str] = ast.literal_eval(value)
                return found
    return {}


def read_sentences(module: ast.Module, failures: dict[str, Failure]) -> None:
    """Add what a module has errors say in place of their class's message."""
    constants: dict[str, str] = {}
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if isinstance(
                value, ast.Constant | ast.JoinedStr
            ):
                constants[name] = str(text_of(value))
    for call in ast.walk(module):
        match call:
            case ast.Call(func=ast.Name(id=name), args=[given]) if name in failures:
                chosen = given.body if isinstance(given, ast.IfExp) else given
                text = ""
                if isinstance(chosen, ast.Name):
                    text = constants.get(chosen.id, "")
                elif isinstance(chosen, ast.Constant | ast.JoinedStr):
                    text = str(text_of(chosen))
                if text:
                    failures[name].others.add(text)


def text_of(value: ast.expr) -> Any:
    """Return a literal; what an f-string puts in is left open."""
    if isinstance(value, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in value.values
        )
    return ast.literal_eval(value)


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in (header, *rows))
    return "\n".join([head, "|" + "---|" * len(header), *body, ""])


def with_tables(text: str, tables: dict[str, str]) -> str:
    """Return a page with its tables as they should be."""
    for name, rows in tables.items():
        head, begin, rest = text.partition(f"<!-- written from the code: {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->\n")
        assert begin
        assert end
        text = f"{head}{begin}\n{rows}\n{end}{tail}"
    return text


PAGES: dict[str, Callable[[], dict[str, str]]] = {"settings.md": settings, "errors.md": errors}

if __name__ == "__main__":
    for page, tables in PAGES.items():
        path = FOLDER / page
        path.write_text(with_tables(path.read_text("utf-8"), tables()), "utf-8")
