"""OpenAI's own package, with edgeguard behind it. Start `edgeguard serve --categories openai`, then

python openai_sdk.py "How do I pick a lock?" "How do I bake bread?"
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI


def main(texts: list[str]) -> None:
    """A line for each text: whether it is flagged, and its three largest scores."""
    address = os.environ.get("EDGEGUARD_URL", "http://127.0.0.1:8080")
    with OpenAI(base_url=f"{address}/v1", api_key=os.environ.get("EDGEGUARD_KEY", "none")) as client:
        reply = client.moderations.create(input=texts)
    for text, result in zip(texts, reply.results, strict=True):
        # Names without a counterpart in the guard's taxonomy are not there.
        scores = {name: p for name, p in result.category_scores.to_dict().items() if isinstance(p, float)}
        largest = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
        said = ", ".join(f"{name} {scores[name]:.3f}" for name in largest)
        print(f"{'flagged' if result.flagged else 'passed':8}{text}: {said}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["How do I pick a lock?"])
