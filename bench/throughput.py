"""Scores a second, against the loop a user would write and against the published algorithm.

One run, one machine, the same records in turn: read the ratios, not the seconds.

    python bench/throughput.py                     # about 4 minutes on 2 quiet cores
    python bench/throughput.py --records 200 --model guard.gguf

Prints: (1) edgeguard, all three estimators from one exploration, over (a) `llama_cpp.Llama` with logprobs,
greedy, the full prompt each time, and (b) the published marginal algorithm on the same backend without cache
reuse; (2) the time that the tokens to be evaluated would take at the model's own prompt-processing rate,
over the time taken; (3) the share of time outside llama.cpp.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import llama_cpp
import numpy as np
from published import any_place

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.backends.llama_cpp.model import model_params
from edgeguard.builtin import base_model
from edgeguard.guard import Guard, Search
from edgeguard.rows.schema import to_json_line

RUNTIME_CALLS = (
    "llama_decode", "llama_get_logits", "llama_tokenize", "llama_memory_seq_cp", "llama_memory_seq_rm",
    "llama_memory_seq_keep", "llama_memory_clear",
)  # fmt: skip


class Inside:
    """Counts the seconds spent in llama.cpp's functions."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in RUNTIME_CALLS:
            setattr(llama_cpp, name, self._timed(getattr(llama_cpp, name)))

    def _timed(self, call: Callable) -> Callable:
        def timed(*args):
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


@dataclass(frozen=True)
class Times:
    """What each record took.

    taken      estimator → (n,) seconds
    evaluated  estimator → (n,) tokens that were evaluated
    outside    (n,) share of the conditional estimator's time that llama.cpp was not in
    rates      tokens a second of the bare policy, measured in between
    """

    taken: Mapping[str, np.ndarray]
    evaluated: Mapping[str, np.ndarray]
    outside: np.ndarray
    rates: Sequence[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=None, help="GGUF with a chat template")
    parser.add_argument("--records", type=int, default=30)
    parser.add_argument("--published-records", type=int, default=4, help="records for (b), which takes very long")
    parser.add_argument("--policy-tokens", type=int, default=400)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    model = args.model or base_model()

    with Guard.load(model, profile="instruct", runtime=RuntimeOptions(threads=args.threads, context=2048)) as base:
        profile = common.short_policy(base, args.policy_tokens)
        marginal = Guard(base.backend, profile, search=Search(min_grammar_mass=0))
        conditional = Guard(base.backend, profile, estimator="conditional", search=Search(min_grammar_mass=0))
        texts = common.messages(base.backend.vocabulary, args.records)
        lengths = [len(base.backend.vocabulary.encode(t)) for t in texts]
        root = marginal.prompt(texts[0]).parent
        assert root is not None
        print(f"model {base.name} ({base.backend.info.quantization}), {args.records} records")
        print(f"policy {len(root.tokens)} tokens, messages {min(lengths)} to {max(lengths)} tokens", flush=True)
        times = time_guards({"conditional": conditional, "marginal": marginal}, texts, root.tokens)
        slower = over_published(marginal, texts, args.published_records)
        prompts = [list(marginal.prompt_ids(text)) for text in texts]
    threads = args.threads or len(os.sched_getaffinity(0))  # the same for both
    full, cached = time_loop(model, prompts, len(root.tokens), threads)
    print_all(times, full, cached, slower)


def time_guards(guards: Mapping[str, Guard], texts: Sequence[str], preamble: tuple[int, ...]) -> Times:
    """All guards on every text in turn."""
    inside = Inside()
    taken: dict[str, list[float]] = {name: [] for name in guards}
    evaluated: dict[str, list[int]] = {name: [] for name in guards}
    outside, rates = [], []
    for i, text in enumerate(texts):
        for name, guard in guards.items():
            guard.score(texts[i - 1])  # its preamble is in the memory now, as it is where one guard works alone
            before = inside.seconds
            began = time.perf_counter()
            score = guard.score({"id": str(i), "text": text})
            to_json_line(score.row())
            spent = time.perf_counter() - began
            taken[name].append(spent)
            tokens = score.tokens
            evaluated[name].append(tokens["prompt"] - tokens["reused"] + tokens["answer"])
            if name == "conditional":
                outside.append((spent - (inside.seconds - before)) / spent)
        if i % 10 == 0:  # a fresh root each time: nothing is reused
            whole, backend = Prefix(preamble), guards["marginal"].backend
            rates.append(len(preamble) / common.seconds(lambda b=backend, p=whole: b.logprobs([p])))
    arrays = [{name: np.array(values) for name, values in found.items()} for found in (taken, evaluated)]
    return Times(*arrays, np.array(outside), rates)


def over_published(guard: Guard, texts: Sequence[str], n: int) -> np.ndarray:
    """(n,) times that the published algorithm takes of the guard's own, on the first n texts."""
    backend, stops = guard.backend, set(guard.answers.stops.tolist())
    labels = [b"unsafe", *(code.encode() for code in guard.codes)]
    published, mine = [], []
    guard.score(texts[0])  # the preamble into the memory again
    for text in texts[:n]:
        ids = guard.prompt_ids(text)
        mine.append(common.seconds(lambda t=text: guard.score(t)))

        def step(path: tuple[int, ...], ids: tuple[int, ...] = ids) -> np.ndarray:
            return backend.logprobs([Prefix(ids + path)])[0]

        published.append(common.seconds(lambda s=step: any_place(s, backend.vocabulary.pieces, labels, stops)))
        guard.score(text)
    return np.array(published) / np.array(mine)


def time_loop(model: Path, prompts: Sequence[list[int]], n_shared: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) seconds of a user's own loop: with the full prompt, and where Llama finds the policy in its cache."""
    llama_cpp.llama_cpp.llama_model_default_params = model_params  # Llama takes no such option, and would die by AMX
    loop = llama_cpp.Llama(str(model), n_ctx=2048, logits_all=True, n_threads=threads, verbose=False)
    full, cached = [], []
    for ids in prompts:

        def greedy(ids: list[int] = ids) -> object:
            return loop.create_completion(ids, max_tokens=16, temperature=0, logprobs=20)

        loop.reset()
        loop.n_tokens = 0  # the full prompt each time
        full.append(common.seconds(greedy))
        loop.create_completion([*ids[:n_shared], ids[0]], max_tokens=1, temperature=0)
        cached.append(common.seconds(greedy))
    loop.close()
    return np.array(full), np.array(cached)


def print_all(times: Times, full: np.ndarray, cached: np.ndarray, slower: np.ndarray) -> None:
    rate = float(np.median(times.rates))
    print(f"prompt processing of the bare policy: {common.spread(times.rates, ' tokens/s')}")
    for name, taken in times.taken.items():
        tokens = common.spread(times.evaluated[name])
        print(f"edgeguard {name}: {common.spread(1 / taken, ' records/s')}, {tokens} tokens each")
    print(f"(a) Llama loop, full prompt: {common.spread(1 / full, ' records/s')}")
    print("1. ratios (median, 10 % … 90 % of records)")
    print(f"   all three estimators over (a): {common.spread(full / times.taken['marginal'], '×')}")
    print(f"   conditional alone over (a): {common.spread(full / times.taken['conditional'], '×')}")
    warm = common.spread(cached / times.taken["marginal"], "×")
    print(f"   all three over (a) with Llama's own prefix cache: {warm}")
    print(f"   all three over (b), the published marginal without cache: {common.spread(slower, '×')}")
    print("2. limit over time taken")
    for name, taken in times.taken.items():
        limit = times.evaluated[name] / rate
        print(f"   {name}: {common.spread(limit / taken)}; in total {limit.sum() / taken.sum():.3g}")
    print(f"3. outside llama.cpp: conditional {common.spread(100 * times.outside, ' %')} of the wall time")


if __name__ == "__main__":
    main()
