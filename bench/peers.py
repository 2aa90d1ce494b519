"""edgeguard against what a user would pick instead, on the verdict alone: llama-server and typed-gguf.

    bench/build_llama_server.sh .venv/llama-server              # once; half an hour on one core
    python bench/peers.py --server .venv/llama-server/bin/llama-server
    python bench/peers.py --server … --model chat.gguf --profile instruct --typed-gguf .venv/typed-gguf/bin/python

llama-server is asked for the very same prompt, as tokens, by a client with as many connections as slots, which reads
P(unsafe) against P(safe) off the likeliest tokens and no more (`cache_prompt`, `n_probs`). It has its threads once in
one process of as many slots, and once in as many processes of one thread, as workers are. edgeguard gives every
category with bounds, once by `conditional` (one answer) and once by `marginal`, as `edgeguard score -` and with
workers. All have as many threads, all have loaded, and take turns within a round on texts that none has seen: read the
ratios, which are within a round. typed-gguf asks a yes-no question of its own, so its numbers are not compared, only
its time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import common
import numpy as np
from servers import Asked, LlamaServer, Peer, TypedGguf, Words, typed_version, version_of

from edgeguard import Guard, RuntimeOptions

SCORE = ("--no-calibration", "--min-grammar-mass", "0")
MOST_TOKENS = 4  # of an answer, in which its verdict must stand


def our_ways(cores: int) -> dict[str, tuple[str, ...]]:
    """name → options of `edgeguard score`: one process of all threads, and as many workers of one."""
    ways = (("--threads", str(cores)), ("--workers", str(cores), "--threads", "1"))
    return {f"{e}, {' '.join(way)}": (*way, "-e", e) for way in ways for e in ("conditional", "marginal")}


@dataclass(frozen=True)
class Subject:
    """What all are asked: a model file, prompts, the words of the verdict."""

    model: Path
    profile: str
    asked: Sequence[Asked]
    shared: int
    words: Words
    policy: str
    cores: int


@dataclass(frozen=True)
class Round:
    """n texts: seconds by name; P(unsafe) against P(safe), (n,), by name."""

    seconds: Mapping[str, float]
    verdicts: Mapping[str, np.ndarray]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, required=True, help="the binary")
    parser.add_argument("--typed-gguf", type=Path, default=None, help="a Python that has typed-gguf")
    parser.add_argument("--model", type=Path, default=None, help="[default: the default guard's GGUF]")
    parser.add_argument("--profile", default="edgeguard-135m")
    parser.add_argument("--texts", type=Path, default=None, help="a file of records, in place of the examples")
    parser.add_argument("--records", type=int, default=16, help="a round [default: 16]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2, help="threads in all, slots, connections [default: 2]")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of 9 verdicts in 10 [default: 0.05]")
    args = parser.parse_args()
    subject = prepared(
        args.model or default_model(), args.profile, args.texts, (args.rounds + 1) * args.records, args.cores
    )
    said = f"{version_of(args.server)}; llama-cpp-python {version('llama-cpp-python')}"
    if args.typed_gguf is not None:
        said += f"; typed-gguf {typed_version(args.typed_gguf)}"
    print(f"{common.machine()}; {args.cores} threads each; llama-server {said}")
    lengths = [len(one.ids) for one in subject.asked]
    rounds = f"{args.rounds} rounds of {args.records} texts of 100 to 400 characters"
    print(f"{subject.model.name}, {subject.profile}: {rounds}")
    print(f"   prompts of {common.spread(lengths)} tokens, the first {subject.shared} the same", flush=True)
    with ExitStack() as stack:
        contestants = our_commands(stack, subject)
        contestants |= their_servers(stack, subject, args.server, args.typed_gguf)
        done = compete(contestants, subject.asked, args.records, args.rounds)
    names = list(our_ways(args.cores))
    show(done, args.records, names)
    check(done, args.tolerance, names)


def default_model() -> Path:
    """The default guard's GGUF file, made if need be."""
    command = [sys.executable, "-m", "edgeguard", "models", "build", "edgeguard-135m:q8_0"]
    done = subprocess.run(command, env=common.environment(), stdout=subprocess.PIPE, text=True, check=True)
    (file,) = Path(done.stdout.splitlines()[-1]).glob("*.gguf")
    return file


def prepared(model: Path, profile: str, source: Path | None, n: int, cores: int) -> Subject:
    """n prompts, and how the verdict stands in the answers."""
    texts = common.texts_between(n, 100, 400, source)
    with Guard.load(model, profile=profile, calibration=False, runtime=RuntimeOptions(threads=cores)) as guard:
        shared = common.n_shared(guard)
        lines = [f"{c.code}: {c.name} ({c.description})" for c in guard.profile.categories] if shared > 32 else []
        sides = common.verdict_words(guard.profile)
        return Subject(
            model=model,
            profile=profile,
            asked=[Asked(text, guard.prompt_ids(text)) for text in texts],
            shared=shared,
            words=Words(frozenset(sides["unsafe"]), frozenset(sides["safe"]), MOST_TOKENS),
            cores=cores,
            policy="\n".join(["A message is unsafe if it falls under one of these:", *lines]) if lines else "",
        )


Scoring = Callable[[Sequence[Asked]], np.ndarray]


def our_commands(stack: ExitStack, subject: Subject) -> dict[str, Scoring]:
    """edgeguard's command in several ways: name → P(unsafe) against P(safe) of texts."""
    found: dict[str, Scoring] = {}
    for name, options in our_ways(subject.cores).items():
        chosen = ("--model", str(subject.model), "--profile", subject.profile, *SCORE, *options)
        command = stack.enter_context(common.Command(*chosen))

        def scored(asked: Sequence[Asked], command: common.Command = command) -> np.ndarray:
            margins = np.array([row["margin"] for row in command.score([one.text for one in asked])])
            return 1 / (1 + np.exp(-margins))

        found[name] = scored
    return found


def their_servers(stack: ExitStack, subject: Subject, server: Path, typed: Path | None) -> dict[str, Scoring]:
    """The peers: name → P(unsafe) of texts."""
    context = 32 * (max(len(one.ids) for one in subject.asked) // 32 + 2)
    n_tokens = verdict_tokens(server, subject, context)
    print(f"   the verdict is read off the first {n_tokens} tokens of the answer")
    words = replace(subject.words, n_tokens=n_tokens)
    peers: dict[str, Peer] = {}
    for processes, slots in ((1, subject.cores), (subject.cores, 1)):
        threads = subject.cores // processes
        name = f"llama-server, {processes} × (-np {slots} -t {threads})"
        peers[name] = stack.enter_context(
            closing(LlamaServer(server, subject.model, words, processes=processes, slots=slots,
                                threads=threads, context=context))
        )  # fmt: skip
    if typed is not None:
        peers["typed-gguf"] = stack.enter_context(
            closing(
                TypedGguf(
                    typed, server.parent, subject.model, subject.policy, threads=subject.cores, places=subject.cores
                )
            )
        )
    return {name: lambda asked, peer=peer: np.array(peer.verdicts(asked)) for name, peer in peers.items()}


def verdict_tokens(server: Path, subject: Subject, context: int) -> int:
    """The fewest tokens in which the verdict of each of some prompts stands. SystemExit where it does not."""
    for n in range(1, MOST_TOKENS + 1):
        words = replace(subject.words, n_tokens=n)
        with closing(
            LlamaServer(server, subject.model, words, processes=1, slots=1, threads=1, context=context)
        ) as one:
            if not np.isnan(one.verdicts(subject.asked[:4])).any():
                return n
    raise SystemExit(f"no verdict stands among the first {MOST_TOKENS} tokens of the answers")


def compete(contestants: Mapping[str, Scoring], asked: Sequence[Asked], n: int, rounds: int) -> list[Round]:
    """All on the same n new texts, in turn, each round the other way round."""
    for score in contestants.values():
        score(asked[:4])
    found = []
    for i in range(1, rounds + 1):
        texts = asked[i * n : (i + 1) * n]
        seconds, verdicts = {}, {}
        for name in list(contestants)[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            verdicts[name] = contestants[name](texts)
            seconds[name] = time.perf_counter() - began
        found.append(Round(seconds, verdicts))
    return found


def show(rounds: Sequence[Round], n: int, ours: Sequence[str]) -> None:
    """Print rates, and ours over each peer's within each round, the fastest peer first."""
    rates = {name: n / np.array([one.seconds[name] for one in rounds]) for name in (*ours, *peers_of(rounds, ours))}
    print("records/s")
    for name, values in rates.items():
        print(f"   {name}: {common.spread(values)}")
    for peer in sorted(peers_of(rounds, ours), key=lambda name: -float(np.median(rates[name]))):
        print(f"over {peer}, within each round")
        for name in ours:
            print(f"   {name}: {common.spread(rates[name] / rates[peer], '×')}")


def check(rounds: Sequence[Round], tolerance: float, ours: Sequence[str]) -> None:
    """Print how far the peers' verdicts are from ours. SystemExit where they are not of the same work."""
    mine = np.concatenate([one.verdicts[ours[-1]] for one in rounds])
    print("P(unsafe) apart from edgeguard's")
    for name in peers_of(rounds, ours):
        apart = np.abs(np.concatenate([one.verdicts[name] for one in rounds]) - mine)
        read = apart[~np.isnan(apart)]
        if name == "typed-gguf":
            print(f"   {name}: not compared, it asks otherwise")
            continue
        print(f"   {name}: {common.spread(read)}, at most {read.max():.3g}; read of {len(read)} of {len(apart)}")
        if len(read) < 0.9 * len(apart) or np.percentile(read, 90) > tolerance:
            raise SystemExit(f"{name} did other work: its verdicts are not within {tolerance} of edgeguard's")


def peers_of(rounds: Sequence[Round], ours: Sequence[str]) -> list[str]:
    """The other names."""
    return [name for name in rounds[0].seconds if name not in ours]


if __name__ == "__main__":
    main()
