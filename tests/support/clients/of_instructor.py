"""Drives instructor, which makes objects of what OpenAI's client is answered."""

from typing import Any

import instructor
import openai
from lines import serve
from pydantic import BaseModel


class City(BaseModel):
    """What is asked for."""

    name: str
    inhabitants: int


def create(url: str, model: str, text: str, *, mode: str) -> Any:
    """Have it ask for an object: by a tool, by a schema, or by "json_object"; and in a stream."""
    bare = openai.OpenAI(base_url=f"{url}/v1", api_key="no key", max_retries=0)
    client: Any = instructor.from_openai(bare, mode=instructor.Mode[mode])
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}]}
    whole = client.chat.completions.create(**asked, response_model=City, max_retries=0)
    *_, last = client.chat.completions.create_partial(**asked, response_model=City, max_retries=0)
    return [whole.model_dump(), last.model_dump()]


if __name__ == "__main__":
    serve({"create": create})
