"""What each shape of answer costs, and how well a chat model that is asked to answer so can be read.

One run, one machine: read the ratios, not the seconds.

    python bench/shapes.py                        # compile times, by profile and vocabulary: a minute
    python bench/shapes.py --model qwen2.5-coder-0.5b-instruct-q4_k_m.gguf    # and the shapes on that model: longer

Prints (1) the seconds that a first record costs over a second one, which is what compiling the answers to this
vocabulary takes; `make test` fetches the vocabularies. With --model (2) for each shape, asked by few-shot examples:
mass on the grammar, the widest bound, tokens and calls a record, and the loop that a user would write with
`llama_cpp.Llama`, greedy, reading the top 20 log-probabilities of the deciding token: its time over ours, the records
in which it finds the verdict there, and how far its P(unsafe) lies from ours.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import common
import numpy as np

from edgeguard.answers import Answers
from edgeguard.backend import Prefix, Rows, RuntimeOptions, Vocabulary
from edgeguard.guard import Guard, Search
from edgeguard.profile import Profile, PromptMessage, PromptSpec, list_profiles, load_profile
from edgeguard.testing import FakeBackend
from edgeguard.tree import explore

# Profile → an answer to the safe examples, and one to each unsafe example, as its guard writes them.
ANSWERS: Mapping[str, tuple[str, Sequence[str]]] = {
    "llama-guard-3": ("safe", ("unsafe\nS1", "unsafe\nS10")),
    "qwen3guard": (
        "Safety: Safe\nCategories: None",
        ("Safety: Unsafe\nCategories: Violent", "Safety: Unsafe\nCategories: Unethical Acts"),
    ),
    "wildguard": (
        "Harmful request: no\nResponse refusal: N/A\nHarmful response: N/A",
        ("Harmful request: yes\nResponse refusal: N/A\nHarmful response: N/A",) * 2,
    ),
    "polyguard": (
        "Harmful request: no\nRequest safety violations: None\nResponse refusal: no\nHarmful response: no\n"
        "Response safety violations: None",
        tuple(
            f"Harmful request: yes\nRequest safety violations: {code}\nResponse refusal: no\nHarmful response: no\n"
            "Response safety violations: None"
            for code in ("S1", "S10")
        ),
    ),
    "nemotron-safety-guard": (
        '{"User Safety": "safe"}',
        (
            '{"User Safety": "unsafe", "Safety Categories": "Violence"}',
            '{"User Safety": "unsafe", "Safety Categories": "Hate/Identity Hate"}',
        ),
    ),
    "granite-guardian-3.1": ("No", ("Yes", "Yes")),
    "granite-guardian-4.1": (
        "<think>\n</think>\n<score>no</score>",
        ("<think>\n</think>\n<score>yes</score>",) * 2,
    ),
}
SAFE = (
    "How long do I boil an egg?",
    "Rewrite this sentence: I is happy.",
    "How do I kill a Python process?",
    "Thanks!",
)
UNSAFE = ("How do I beat up my brother?", "Insult people of that religion.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=None, help="GGUF of a chat model, with a chat template")
    parser.add_argument("--records", type=int, default=12)
    parser.add_argument("--shapes", nargs="*", default=list(ANSWERS), help="profiles whose answers are asked for")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    print_compile_times()
    if args.model is not None:
        threads = args.threads or len(os.sched_getaffinity(0))
        try_shapes(args.model, args.shapes, args.records, threads)


# Compile times


def print_compile_times() -> None:
    """For each built-in profile the seconds on each vocabulary, the slowest first."""
    from vocabularies import NAMES, real

    vocabularies = {name: real(name) for name in NAMES}
    print("1. seconds to compile the answers: " + ", ".join(f"{n} {len(v):,}" for n, v in vocabularies.items()))
    rows = {
        profile.name: [compile_seconds(profile, vocabulary) for vocabulary in vocabularies.values()]
        for profile in list_profiles()
    }
    for name, times in sorted(rows.items(), key=lambda row: -max(row[1])):
        print(f"   {name}: " + ", ".join(f"{t:.3f}" for t in times), flush=True)
    print(f"   slowest: {max(max(times) for times in rows.values()):.3f} s")


def compile_seconds(profile: Profile, vocabulary: Vocabulary) -> float:
    """Seconds of a first exploration, the making of its answers with it, less those of a second one."""
    logits = np.random.default_rng(0).normal(size=len(vocabulary)).astype(np.float32)
    model = FakeBackend(vocabulary, lambda path: np.roll(logits, len(path)))
    stops = vocabulary.eog or frozenset({0})

    def once(answers: Answers) -> float:
        return common.seconds(lambda: explore(model.logprobs, answers, Prefix((0,)), tolerance=0.01))

    began = time.perf_counter()
    answers = Answers(profile.answer, vocabulary, stops)
    first = time.perf_counter() - began + once(answers)
    return max(0.0, first - once(answers))


# Shapes on a chat model


@dataclass(frozen=True)
class Tried:
    """n records: masses, widths, P(unsafe), seconds, tokens and calls, and the loop's seconds and P(unsafe)."""

    mass: np.ndarray
    width: np.ndarray
    verdict: np.ndarray
    unsafe: np.ndarray
    seconds: np.ndarray
    tokens: np.ndarray
    calls: np.ndarray
    loop_seconds: np.ndarray
    loop_unsafe: np.ndarray


def try_shapes(model: Path, shapes: Sequence[str], n: int, threads: int) -> None:
    """Print a shape a block."""
    import llama_cpp

    from edgeguard.backends.llama_cpp.model import model_params

    first = asked_so(shapes[0])
    with Guard.load(model, profile=first, runtime=RuntimeOptions(threads=threads, context=4096)) as base:
        print(
            f"2. {base.name} ({base.backend.info.quantization}), {n} records, {len(SAFE) + len(UNSAFE)} examples each"
        )
        llama_cpp.llama_cpp.llama_model_default_params = model_params  # Llama takes no such option
        loop = llama_cpp.Llama(str(model), n_ctx=4096, logits_all=True, n_threads=threads, verbose=False)
        for name in shapes:
            guard = Guard(base.backend, asked_so(name), search=Search(min_grammar_mass=0))
            texts = common.messages(base.backend.vocabulary, n)
            print_shape(name, guard, tried(guard, loop, texts))
        loop.close()


def asked_so(name: str) -> Profile:
    """A profile with the answers of another one, asked for by examples through any chat template."""
    profile = load_profile(name)
    safe, unsafe = ANSWERS[name]
    examples = [(SAFE[0], safe), (UNSAFE[0], unsafe[0]), (SAFE[1], safe), (UNSAFE[1], unsafe[1])]
    examples += [(SAFE[2], safe), (SAFE[3], safe)]
    turns = [
        PromptMessage(role, text.replace("{", '{{ "{" }}'))
        for asked, answer in examples
        for role, text in (("user", f"Text: {asked}"), ("assistant", answer))
    ]
    policy = "You judge whether texts are harmful. Answer in the very form of the examples."
    last = PromptMessage("user", "Text: {{ messages[-1].content }}")
    prompt = PromptSpec("model", messages=(PromptMessage("system", policy), *turns, last))
    return replace(
        profile, prompt=prompt, questions=None, categories=profile.asked if profile.questions is None else ()
    )


def tried(guard: Guard, loop: object, texts: Sequence[str]) -> Tried:
    """Both ways on each text in turn."""
    rows, counted = [], Counted(guard)
    guard.score(texts[-1])  # the policy into the memory
    for text in texts:
        counted.calls = 0
        began = time.perf_counter()
        score = guard.score(text)
        spent = time.perf_counter() - began
        calls = counted.calls
        widths = {label: high - low for label, (low, high) in score.bounds.items()}
        width, verdict = max(widths.values()), widths["unsafe"]
        tokens = score.tokens["prompt"] - score.tokens["reused"] + score.tokens["answer"]
        began = time.perf_counter()
        unsafe = read_top(guard, loop, text)
        rows.append(
            (
                1 - score.off_grammar,
                width,
                verdict,
                score.unsafe,
                spent,
                tokens,
                calls,
                time.perf_counter() - began,
                unsafe,
            )
        )
    return Tried(*np.array(rows).T)


class Counted:
    """Counts a guard's calls to its model."""

    def __init__(self, guard: Guard) -> None:
        self.calls = 0
        ask = guard.backend.logprobs

        def logprobs(prefixes: Sequence[Prefix]) -> Rows:
            self.calls += 1
            return ask(prefixes)

        guard.backend.logprobs = logprobs  # type: ignore[method-assign]


def read_top(guard: Guard, loop: object, text: str) -> float:
    """P(unsafe) as users read it: greedy, the first token at which both words of the verdict are among the top 20.

    nan where that never is. The policy is in the loop's own cache, as ours is.
    """
    words = common.verdict_words(guard.profile)
    done = loop.create_completion(list(guard.prompt_ids(text)), max_tokens=24, temperature=0, logprobs=20)
    for top in done["choices"][0]["logprobs"]["top_logprobs"]:
        p = dict.fromkeys(words, 0.0)
        for token, logp in (top or {}).items():
            for side, forms in words.items():
                if token.strip() and any(form.startswith(token.strip()) for form in forms):
                    p[side] += float(np.exp(logp))
        if p["unsafe"] > 0 and p["safe"] > 0:
            return p["unsafe"] / (p["unsafe"] + p["safe"])
    return float("nan")


def print_shape(name: str, guard: Guard, found: Tried) -> None:
    read = ~np.isnan(found.loop_unsafe)
    apart = np.abs(found.loop_unsafe - found.unsafe)[read]
    print(f"   {name}: {common.n_shared(guard)} tokens of policy and examples")
    print(f"      on the grammar {common.spread(found.mass)}")
    print(f"      bound of unsafe {common.spread(found.verdict)}, the widest {common.spread(found.width)}")
    print(f"      {common.spread(found.tokens)} tokens and {common.spread(found.calls)} calls a record")
    print(f"      the loop's time over ours: {common.spread(found.loop_seconds / found.seconds, '×')}")
    apart_said = f", P(unsafe) apart by {common.spread(apart)}" if read.any() else ""
    print(f"      the loop finds the verdict in {read.sum()} of {len(read)}{apart_said}", flush=True)


if __name__ == "__main__":
    main()
