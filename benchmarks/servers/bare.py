"""A FastAPI route with Pydantic models and nothing around it."""

import os

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Numbers(BaseModel):
    """The request's body, and the answer's."""

    values: list[float]


app = FastAPI()


@app.post("/infer")
async def infer(numbers: Numbers) -> Numbers:
    """Give back what came."""
    return Numbers(values=numbers.values)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False)
