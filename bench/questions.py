"""One question for each policy: the text shared between them, against whole prompts.

One run, one machine, both ways in turn on each text: read the ratios, not the seconds.

    python bench/questions.py                     # about 6 minutes on 2 quiet cores
    python bench/questions.py --model guard.gguf --texts 8

Prints for each number of policies and each length of text: (1) the time of whole prompts over that of the shared text;
(2) the time that the tokens to be evaluated would take at the model's own prompt-processing rate, over the time taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.builtin import base_model
from edgeguard.guard import Guard, Search
from edgeguard.profile import Profile, parse_profile
from edgeguard.tree import explore

PROFILE = r"""
name = "policies"
taxonomy = "policies"
min_grammar_mass = 0

[answer]
pattern = '{verdict}...'

[field.verdict]
unsafe = ["Yes", "yes"]
safe = ["No", "no"]

[questions]

[prompt]
template = "model"

[[prompt.message]]
role = "user"
text = '''
A message: {% for m in messages %}{{ m.content }}{% endfor %}


{{ category.description }}
Does the message break this rule? Answer Yes or No.'''
"""
TAIL_TOKENS = 40  # of a policy
_RULES = ("threatens", "insults", "deceives", "sells", "mocks", "praises", "hides", "copies", "reveals", "betrays")


@dataclass(frozen=True)
class Found:
    """Both ways on n texts: seconds each, tokens that the shared way evaluated, and the tokens a second of a prompt."""

    shared: np.ndarray
    whole: np.ndarray
    evaluated: np.ndarray
    rate: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=None, help="GGUF or ONNX model with a chat template")
    parser.add_argument("--texts", type=int, default=6, help="of each length")
    parser.add_argument("--policies", type=int, nargs="*", default=[4, 13])
    parser.add_argument("--lengths", type=int, nargs="*", default=[60, 400])
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    runtime = RuntimeOptions(threads=args.threads, context=1024)
    with Guard.load(args.model or base_model(), profile=profile_of(1), runtime=runtime) as base:
        print(f"model {base.name} ({base.backend.info.quantization}), {args.texts} texts of each length")
        for n in args.policies:
            guard = Guard(base.backend, with_length(base, n), search=Search(min_grammar_mass=0))
            for length in args.lengths:
                texts = common.messages(base.backend.vocabulary, args.texts, shortest=length, longest=length)
                report(n, length, measured(guard, texts))


def profile_of(n: int, words: int = 20) -> Profile:
    """n policies of so many words."""
    rules = []
    for i in range(n):
        verbs = [_RULES[(i + j) % len(_RULES)] for j in range(words // 4)]
        rule = f"Rule {i + 1}: nobody " + ", ".join(f"{verb} a person or group" for verb in verbs)
        rules.append(f'[[category]]\ncode = "P{i + 1}"\nname = "Rule {i + 1}"\ndescription = "{rule}."\n')
    return parse_profile((PROFILE + "".join(rules)).encode(), "bench/questions.py")


def with_length(base: Guard, n: int) -> Profile:
    """The n policies, of about TAIL_TOKENS tokens each."""
    encode = base.backend.vocabulary.encode

    def off(words: int) -> float:
        lengths = [len(encode(c.description)) for c in profile_of(n, words).categories]
        return float(abs(np.mean(lengths) - TAIL_TOKENS))

    return profile_of(n, min(range(4, 80, 4), key=off))


def measured(guard: Guard, texts: Sequence[str]) -> Found:
    """Both ways in turn, and the model's rate in between."""
    shared, whole, evaluated, rates = [], [], [], []
    guard.score(texts[0])
    for text in texts:
        shared.append(common.seconds(lambda t=text: guard.score(t)))
        tokens = guard.score(text).tokens
        evaluated.append(tokens["prompt"] - tokens["reused"] + tokens["answer"])
        whole.append(common.seconds(lambda t=text: ask_whole(guard, t)))
        ids = guard.prompt_ids(text, guard.questions[0])
        rates.append(len(ids) / common.seconds(lambda i=ids: guard.backend.logprobs([Prefix(i)])))
    return Found(np.array(shared), np.array(whole), np.array(evaluated), float(np.median(rates)))


def ask_whole(guard: Guard, text: str) -> None:
    """Each question as a prompt of its own, from its first token on."""
    for question in guard.questions:
        first, *rest = guard.prompt_ids(text, question)
        prompt = Prefix(tuple(rest), Prefix((first,)))
        explore(guard.backend.logprobs, guard.answers, prompt, tolerance=guard.search.tolerance)


def report(n: int, length: int, found: Found) -> None:
    limit = found.evaluated / found.rate
    print(f"{n} policies of about {TAIL_TOKENS} tokens, texts of {length} tokens")
    print(f"   {common.spread(1 / found.shared, ' records/s')}, {common.spread(found.evaluated)} tokens each")
    print(f"   1. whole prompts over the shared text: {common.spread(found.whole / found.shared, '×')}")
    print(f"   2. limit over time taken: {common.spread(limit / found.shared)}", flush=True)


if __name__ == "__main__":
    main()
