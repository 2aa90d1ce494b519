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
from collections.abc import Callable
from pathlib import Path

import common
import llama_cpp
import numpy as np
from published import any_place

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.backends.llama_cpp.model import model_params
from edgeguard.builtin import base_model
from edgeguard.guard import Guard, Search
from edgeguard.rows.writer import to_json_line

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


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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
        preamble = root.tokens
        print(f"model {base.name} ({base.backend.info.quantization}), {args.records} records")
        print(f"policy {len(preamble)} tokens, messages {min(lengths)} to {max(lengths)} tokens", flush=True)

        inside = Inside()
        rows: dict[str, list[float]] = {"marginal": [], "conditional": [], "rate": [], "outside": []}
        evaluated: dict[str, list[int]] = {"marginal": [], "conditional": []}
        for i, text in enumerate(texts):
            for name, guard in (("conditional", conditional), ("marginal", marginal)):
                guard.score(texts[i - 1])  # its preamble is in the memory now, as it is where one guard works alone
                before = inside.seconds
                began = time.perf_counter()
                score = guard.score({"id": str(i), "text": text})
                to_json_line(score.row())
                spent = time.perf_counter() - began
                rows[name].append(spent)
                tokens = score.tokens
                evaluated[name].append(tokens["prompt"] - tokens["reused"] + tokens["answer"])
                if name == "conditional":
                    rows["outside"].append((spent - (inside.seconds - before)) / spent)
            if i % 10 == 0:  # a fresh root each time: nothing is reused
                whole = Prefix(preamble)
                rows["rate"].append(len(preamble) / seconds(lambda p=whole: base.backend.logprobs([p])))

        stops = set(marginal.answers.stops.tolist())
        pieces = base.backend.vocabulary.pieces
        labels = [b"unsafe", *(code.encode() for code in marginal.labels)]
        published, mine = [], []
        marginal.score(texts[0])  # the preamble into the memory again
        for text in texts[: args.published_records]:
            ids = marginal.prompt_ids(text)
            mine.append(seconds(lambda t=text: marginal.score(t)))

            def step(path: tuple[int, ...], ids: tuple[int, ...] = ids) -> np.ndarray:
                return base.backend.logprobs([Prefix(ids + path)])[0]

            published.append(seconds(lambda step=step: any_place(step, pieces, labels, stops)))
            marginal.score(text)
        prompts = [list(marginal.prompt_ids(text)) for text in texts]

    threads = args.threads or len(os.sched_getaffinity(0))  # the same for both
    llama_cpp.llama_cpp.llama_model_default_params = model_params  # Llama takes no such option, and would die by AMX
    loop = llama_cpp.Llama(str(model), n_ctx=2048, logits_all=True, n_threads=threads, verbose=False)
    loop_full, loop_prefix = [], []
    for ids in prompts:

        def greedy(ids: list[int] = ids) -> object:
            return loop.create_completion(ids, max_tokens=16, temperature=0, logprobs=20)

        loop.reset()
        loop.n_tokens = 0  # the full prompt each time
        loop_full.append(seconds(greedy))
        loop.create_completion([*ids[: len(preamble)], ids[0]], max_tokens=1, temperature=0)
        loop_prefix.append(seconds(greedy))  # the same loop where Llama finds the policy in its cache
    loop.close()

    rate = float(np.median(rows["rate"]))
    print(f"prompt processing of the bare policy: {common.spread(rows['rate'], ' tokens/s')}")
    for name in ("conditional", "marginal"):
        per_second = [1 / t for t in rows[name]]
        tokens = common.spread(evaluated[name])
        print(f"edgeguard {name}: {common.spread(per_second, ' records/s')}, {tokens} tokens each")
    full, cached = np.array(loop_full), np.array(loop_prefix)
    print(f"(a) Llama loop, full prompt: {common.spread(1 / full, ' records/s')}")
    print("1. ratios (median, 10 % … 90 % of records)")
    print(f"   all three estimators over (a): {common.spread(full / np.array(rows['marginal']), '×')}")
    print(f"   conditional alone over (a): {common.spread(full / np.array(rows['conditional']), '×')}")
    warm = common.spread(cached / np.array(rows["marginal"]), "×")
    print(f"   all three over (a) with Llama's own prefix cache: {warm}")
    slow = np.array(published) / np.array(mine)
    print(f"   all three over (b), the published marginal without cache: {common.spread(slow, '×')}")
    print("2. limit over time taken")
    for name in ("conditional", "marginal"):
        limit = np.array(evaluated[name]) / rate
        total = limit.sum() / sum(rows[name])
        print(f"   {name}: {common.spread(limit / np.array(rows[name]))}; in total {total:.3g}")
    outside = 100 * np.array(rows["outside"])
    print(f"3. outside llama.cpp: conditional {common.spread(outside, ' %')} of the wall time")


if __name__ == "__main__":
    main()
