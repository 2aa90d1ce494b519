"""The published rules for the three scores, written anew from their description, to measure where they err.

What they do differently from edgeguard's estimators, each on purpose here:

- a label is found by `text so far ends with the label`, so `S1` fires on the way to `S10` where digits are
  separate tokens, and a repeated label adds its probability again;
- tokens that write the same text collapse to one candidate (the first's place, the last's probability);
- a path is followed only if its probability is at least `eps`, only through each step's nucleus (the tokens
  until the cumulative probability first exceeds `top_p`), and to `max_new_tokens`;
- once a stop token is among the candidates with probability ≥ 0.7, its siblings are dropped; with a stop
  token anywhere in the nucleus the third candidate is credited but not followed, and later ones are ignored.

Every step evaluates the whole prompt and answer again: `logprobs` gets complete paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Step = Callable[[tuple[int, ...]], np.ndarray]  # answer tokens so far → (n_vocab,) log-probabilities


def greedy_answer(step: Step, stops: set[int], max_new_tokens: int) -> list[tuple[int, float]]:
    """(token, probability) of greedy decoding, the stop token included."""
    path: tuple[int, ...] = ()
    answer = []
    for _ in range(max_new_tokens):
        row = np.exp(step(path).astype(float))
        token = int(np.argmax(row))
        answer.append((token, float(row[token])))
        if token in stops:
            break
        path += (token,)
    return answer


def token_probability(
    step: Step, pieces: Sequence[bytes], labels: Sequence[bytes], stops: set[int], max_new_tokens: int = 20
) -> np.ndarray:
    """Conditional: the probability of the token at which the text ends with the label; the last one counts."""
    p, text = np.zeros(len(labels)), b""
    for token, q in greedy_answer(step, stops, max_new_tokens):
        text += pieces[token]
        first = next((i for i, label in enumerate(labels) if text.endswith(label)), None)
        if first is not None and token not in stops:
            p[first] = q
    return p


def fixed_place(
    step: Step, pieces: Sequence[bytes], labels: Sequence[bytes], stops: set[int], max_new_tokens: int = 20
) -> np.ndarray:
    """Joint: the product over label-completing tokens only, in the order of the greedy answer."""
    p, text, product = np.zeros(len(labels)), b"", 1.0
    for token, q in greedy_answer(step, stops, max_new_tokens):
        text += pieces[token]
        first = next((i for i, label in enumerate(labels) if text.endswith(label)), None)
        if first is not None and token not in stops:
            product *= q
            p[first] = product
    return p


def any_place(
    step: Step,
    pieces: Sequence[bytes],
    labels: Sequence[bytes],
    stops: set[int],
    *,
    top_p: float = 0.99,
    eps: float = 0.01,
    max_new_tokens: int = 20,
) -> np.ndarray:
    """Marginal: depth-first over a pruned tree; a label's probability adds up over all paths that end with it."""
    p = np.zeros(len(labels))

    def follow(path: tuple[int, ...], text: bytes, mass: float) -> None:
        if len(path) > max_new_tokens:
            return
        row = np.exp(step(path).astype(float))
        order = np.argsort(-row, kind="stable")
        nucleus = order[: int(np.searchsorted(np.cumsum(row[order]), top_p, side="right")) + 1]
        candidates: dict[bytes, tuple[int, float]] = {}
        for token in nucleus.tolist():
            key = b"<stop>" if token in stops else pieces[token]
            candidates[key] = (token, float(row[token]))
        has_stop = b"<stop>" in candidates
        for place, (piece, (token, q)) in enumerate(candidates.items()):
            if has_stop and place > 2:
                break
            if token in stops:
                if q >= 0.7:
                    break
                continue
            longer, reached = text + piece, mass * q
            for i, label in enumerate(labels):
                if longer.endswith(label):
                    p[i] += reached
            if reached >= eps and not (has_stop and place == 2):
                follow((*path, token), longer, reached)

    follow((), b"", 1.0)
    return p
