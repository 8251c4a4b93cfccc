"""Requests that Schemathesis makes from a description of a service."""

from collections.abc import Iterator
from typing import Any

from schemathesis import BaseSchema, Case, Response
from schemathesis.engine import events, from_schema


def exchanges(schema: BaseSchema) -> Iterator[tuple[Case[Any], Response]]:
    """Yield each request with its answer; when all are made, no check may have failed."""
    failures: list[str] = []
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if not isinstance(event, events.ScenarioFinished):
            continue
        for name, node in event.recorder.cases.items():
            case, response = node.value, event.recorder.interactions[name].response
            assert response, f"no answer to {case}"
            yield case, response
            failures += [
                f"{case}\n{result.failure_info.failure}\n{response.status_code} {response.text}"
                for result in event.recorder.checks.get(name, [])
                if result.failure_info
            ]
    assert not failures, "\n\n".join(failures)
