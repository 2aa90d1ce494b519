"""A guard before and behind a model, as LangChain runnables: `guarded(model).invoke("...")`.

Start `edgeguard serve`. What is flagged is an exception, and so is what could not be judged.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

ADDRESS = os.environ.get("EDGEGUARD_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("EDGEGUARD_KEY")


class Flagged(Exception):
    """The guard flagged the prompt, or the answer."""


def score(record: dict[str, str]) -> dict[str, Any]:
    """The guard's row for {"text"}, or {"prompt", "response"}. Raises OSError or KeyError where there is none."""
    headers = {"Content-Type": "application/json"} | ({} if KEY is None else {"Authorization": f"Bearer {KEY}"})
    request = urllib.request.Request(f"{ADDRESS}/v1/score", json.dumps(record).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        row: dict[str, Any] = json.load(reply)
    if row["flagged"]:
        raise Flagged(f"{', '.join(row['categories']) or 'unsafe'}, P(unsafe) {row['unsafe']:.3f}")
    return row


def _prompt(text: str) -> str:
    score({"text": text})
    return text


def _answer(turns: dict[str, Any]) -> Any:
    text = getattr(turns["response"], "content", turns["response"])  # a chat model's message, or a text
    score({"prompt": turns["prompt"], "response": str(text)})
    return turns["response"]


def guarded(model: Runnable[str, Any]) -> Runnable[str, Any]:
    """The model, asked nothing that is flagged, and not heard where its answer is."""
    both = {"prompt": RunnablePassthrough(), "response": model}
    return RunnableLambda(_prompt) | both | RunnableLambda(_answer)
