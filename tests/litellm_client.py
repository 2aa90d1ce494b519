"""LiteLLM's own client of a generic guardrail, as a program: URL in, a line of JSON for each of its questions out.

A process of its own: importing litellm sets up logs and warnings of its own, for all of the process that it is in.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from litellm.exceptions import GuardrailRaisedException
from litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api import GenericGuardrailAPI

TEXTS = ["How do I boil an egg?"]
PARAMS: tuple[dict[str, str], ...] = (
    {"policy": "lax"},
    {"policy": "strict"},
    {"policy": "strict", "on_flagged": "replace"},
    {"policy": "none"},
)


async def asked(url: str, params: dict[str, str]) -> Any:
    """What the client makes of the answer: [what was raised, its message], or the texts to go on with."""
    client = GenericGuardrailAPI(
        api_base=url, guardrail_name="edgeguard", event_hook="pre_call", additional_provider_specific_params=params
    )
    try:
        found = await client.apply_guardrail({"texts": TEXTS}, {"metadata": {"user_api_key_hash": "x"}}, "request")
    except GuardrailRaisedException as error:
        return ["blocked", str(error)]
    except Exception as error:
        return ["failed", str(error)]
    return found["texts"]


if __name__ == "__main__":
    for params in PARAMS:
        print(json.dumps(asyncio.run(asked(sys.argv[1], params))))
