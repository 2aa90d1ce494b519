"""A FastAPI service that takes no message which the guard flags, and none that the guard cannot judge.

Start `edgeguard serve`, then `uvicorn fastapi_dependency:app`.
"""

from __future__ import annotations

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

ADDRESS = os.environ.get("EDGEGUARD_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("EDGEGUARD_KEY")
app = FastAPI()


class Message(BaseModel):
    """What a user sends."""

    text: str


async def judged(message: Message) -> Message:
    """The message, if the guard lets it through: 422 where it is flagged, 503 where there is no verdict."""
    headers = {} if KEY is None else {"Authorization": f"Bearer {KEY}"}
    try:
        async with httpx.AsyncClient(base_url=ADDRESS, headers=headers, timeout=30) as client:
            reply = await client.post("/v1/score", json={"text": message.text})
        row = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise HTTPException(503, f"the guard was not reached: {type(error).__name__}") from error
    if not isinstance(row, dict) or row.get("flagged") not in (True, False):
        raise HTTPException(503, "the guard gave no verdict")
    if row["flagged"]:
        raise HTTPException(422, {"flagged": row["categories"]})
    return message


@app.post("/messages")
async def take(message: Annotated[Message, Depends(judged)]) -> dict[str, str]:
    """Does what the service is for."""
    return {"taken": message.text}
