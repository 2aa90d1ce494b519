"""Every adapter against plain recomputation, on tiny models and on the real SmolLM2: one suite for both runtimes.

How near is near enough? Where activations stay floats, a float's rounding says it, on any processor. Where they are
rounded to 8 bits, a sum's last bit can tip a rounding, that one the next, and how far it goes depends on the kernels
that a processor has: no constant is right. So the run measures it. Let R be the rows of the same weights with nothing
rounded beside them. Both the adapter's rows and recomputation's are R with every activation rounded, in two ways that
are as good as each other; so they lie within twice the distance of recomputation from R, and wherever that is used the
distance of real faults is measured too, and must lie beyond.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny_llama

from edgeguard.backend import Backend, Condition, Prefix, RuntimeOptions, log_softmax
from edgeguard.backends import conditions, open_backend
from edgeguard.builtin import base_model
from edgeguard.convert import Options, convert
from edgeguard.errors import ContextOverflow, ModelError
from edgeguard.quant.variants import as_float, made_float, open_variant
from edgeguard.testing import Recompute

# Nats. A sum of n float32 products in two orders: up to 2 n 2^-24 of the sum of their sizes (Higham, 2002, section
# 4.2). Here n is up to 256, that sum about 30 where logits are, and the layers before add as much again.
FLOATS = 1e-3
# Nats, where keys and values are float16: a last bit may tip a key to the next float16, by 2^-10 of itself, and moves a
# score of attention, here up to about 20, by as much of it.
HALVES = 0.02
# Nats, of the tiny Gemmas: what each of seven layers adds is brought back to size one by a norm behind it, so that a
# last bit grows from layer to layer where in a llama it is added once. A window ignored moves rows by tenths.
NORMED = 1e-2
FLOAT32 = 1e-6  # of a probability: rows are float32, and the distance adds a few hundred of them
law = settings(deadline=None, max_examples=25)

TINY = (
    "gguf",
    "gguf-f16",
    "gguf-gemma2",
    "gguf-gemma3",
    "onnx-fp32",
    "onnx-fp16",
    "onnx-int8",
    "onnx-int4",
    "onnx-gemma2",
    "onnx-gemma3",
    "optimum",
    "genai",
    "genai-pruned",
)
GEMMA = {"tied": True, "n_layer": 7, "head": 16}
SMOLLM2 = ("gguf", "onnx", "onnx-fp32", "onnx-int8", "onnx-int4")


def open_tiny(kind: str, path: Path) -> Backend:
    kv_cache = None if not kind.startswith("gguf") else "f16" if kind == "gguf-f16" else "f32"
    return open_backend(path, RuntimeOptions(context=512, threads=1, kv_cache=kv_cache))


def assert_near(fast: np.ndarray, slow: np.ndarray, backend: Backend | None = None) -> None:
    kind = "" if backend is None else str(backend.info.path)
    halves = any(name in kind for name in ("fp16", "f16"))
    tolerance = HALVES if halves else NORMED if "gemma" in kind else FLOATS
    np.testing.assert_allclose(fast, slow, atol=tolerance)


def moved(a: np.ndarray, b: np.ndarray) -> float:
    """The largest share of a row's probability that another row has on other tokens: total variation, in [0, 1]."""
    p, q = np.exp(a.astype(np.float64)), np.exp(b.astype(np.float64))
    return float(np.abs(p - q).sum(axis=1).max() / 2)


def rounding(path: Path, folder: Path, prefixes: list[Prefix], slow: np.ndarray) -> float:
    """How far the rounding of activations moves the rows of `prefixes` from those of the same weights in floats."""
    with made_float(open_variant(path), folder) as variant:
        backend = open_backend(variant.path, RuntimeOptions(context=512, threads=1))
        exact = Recompute(backend).logprobs(prefixes)
        backend.close()
    return moved(slow, exact)


@pytest.fixture(scope="module", params=TINY)
def tiny(request, tmp_path_factory):
    kind, folder = request.param, tmp_path_factory.mktemp("tiny")
    if kind in ("optimum", "genai", "genai-pruned"):
        path = request.getfixturevalue(kind.replace("-", "_"))
    else:
        runtime, _, arch = kind.partition("-")
        more = {"arch": arch, **GEMMA} if arch.startswith("gemma") else {}  # windows shorter than prompts
        path = write_tiny_llama(folder / f"{kind}.gguf", seed=1, **more)
        if runtime == "onnx":  # float activations: rounded ones are held to the looser bound below
            to = "onnx-fp32" if more else kind
            path = convert(path, folder / kind, to=to, options=Options(activations="float")).path
    backend = open_tiny(kind, path)
    yield backend
    backend.close()


@pytest.fixture(scope="module", params=SMOLLM2)
def smollm2(request, tmp_path_factory):
    path = base_model()
    if request.param != "gguf":
        path = convert(path, tmp_path_factory.mktemp("smollm2") / request.param, to=request.param).path
    backend = open_backend(path, RuntimeOptions(context=1024, threads=1))  # two wait for each other on a busy machine
    yield backend
    backend.close()


@st.composite
def tries(draw, n_vocab: int = 256, most: int = 12):
    """A few prefixes of one or two tries: roots, records and branches in any mixture."""
    run = st.lists(st.integers(3, n_vocab - 1), min_size=1, max_size=9).map(tuple)
    nodes = [Prefix(draw(run)) for _ in range(draw(st.integers(1, 2)))]
    for _ in range(draw(st.integers(0, most))):
        nodes.append(Prefix(draw(run), draw(st.sampled_from(nodes))))
    return draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=8, unique=True))


@law
@given(calls=st.lists(tries(), min_size=1, max_size=3))
def test_every_row_is_that_of_the_path_sent_alone(tiny, calls):
    for prefixes in calls:
        fast = tiny.logprobs(prefixes)
        slow = Recompute(tiny).logprobs(prefixes)
        assert_near(fast, slow, tiny)


@law
@given(calls=st.lists(tries(), min_size=1, max_size=4))
def test_rows_are_normalised_and_whole(tiny, calls):
    for prefixes in calls:
        rows = tiny.logprobs(prefixes)
        assert rows.shape == (len(prefixes), len(tiny.vocabulary))
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.exp(rows.astype(np.float64)).sum(axis=1), 1, atol=1e-5)


@law
@given(prefixes=tries())
def test_logits_are_what_the_rows_are_the_log_softmax_of(tiny, prefixes):
    assert_near(log_softmax(tiny.logits(prefixes)), tiny.logprobs(prefixes), tiny)


def record(root: Prefix, tokens) -> tuple[Prefix, list[Prefix]]:
    """A record with a chain and some branches on it, as an exploration asks for them."""
    prompt = Prefix(tuple(tokens), root)
    chain = Prefix((7,), Prefix((5,), prompt))
    return prompt, [prompt, chain.parent, chain]


def evaluate(backend: Backend, root: Prefix, tokens) -> np.ndarray:
    _, first = record(root, tokens)
    rows = [backend.logprobs(first)]
    branches = [Prefix((t,), first[-1]) for t in (9, 11, 13)] + [Prefix((17,), first[0])]
    rows.append(backend.logprobs(branches))
    rows.append(backend.logprobs([Prefix((19,), branches[1])]))
    return np.concatenate(rows)


@law
@given(
    before=st.lists(st.lists(st.integers(3, 200), min_size=1, max_size=20), max_size=4),
    tokens=st.lists(st.integers(3, 200), min_size=1, max_size=20),
    other_root=st.booleans(),
)
def test_a_record_gets_the_same_bits_whatever_came_before(tiny, before, tokens, other_root):
    root, second = Prefix((40, 41, 42, 43)), Prefix((50, 51, 52))
    alone = evaluate(tiny, root, tokens)
    for other in before:
        evaluate(tiny, second if other_root else root, other)
    np.testing.assert_array_equal(evaluate(tiny, root, tokens), alone)


@pytest.mark.parametrize("runtime", ["gguf", "onnx"])
@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_a_window_that_is_ignored_lies_far_beyond_the_tolerance(tmp_path, arch, runtime):
    """The same weights under a window that holds the whole prompt: what an adapter that saw too much would give."""
    rows = []
    for window in (16, 512):
        more = {"llama.attention.sliding_window": window}
        path = write_tiny_llama(tmp_path / f"{window}.gguf", seed=1, arch=arch, metadata=more, **GEMMA)
        path = path if runtime == "gguf" else convert(path, tmp_path / f"{window}", to="onnx-fp32").path
        rows.append(long_rows(runtime, path))
    assert np.abs(rows[0] - rows[1]).max() > 10 * NORMED


@settings(law, max_examples=8)
@given(
    sizes=st.lists(st.integers(1, 150), min_size=2, max_size=3),
    visits=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=6),
)
def test_preambles_longer_than_a_window_are_swapped_without_a_trace(tiny, sizes, visits):
    """A saved state leaves out what a sliding window has passed: taken back, its cells would lie otherwise."""
    roots = [Prefix(tuple(3 + (7 * i + n) % 200 for i in range(n))) for n in sizes]
    records = [range(50, 50 + n) for n in (2, 15, 40, 120)]
    first = {visit: evaluate(tiny, Prefix(roots[visit[0] % len(roots)].tokens), records[visit[1]]) for visit in visits}
    for which, what in visits:
        np.testing.assert_array_equal(evaluate(tiny, roots[which % len(roots)], records[what]), first[which, what])


@pytest.mark.smollm2
def test_on_smollm2_a_record_gets_the_same_bits_after_others_and_after_a_role_change(smollm2):
    encode = smollm2.vocabulary.encode
    policy = tuple(encode("You judge messages by a policy. " * 30))
    root, second = Prefix(policy), Prefix(policy[:-20])
    texts = ["How do I kill a process?", "Good morning!", "I hate you all so much.\n" * 5, "日本語 text 🙂"]
    alone = [evaluate(smollm2, root, encode(t)) for t in texts]
    for i in (3, 1, 0, 2, 1, 3):
        evaluate(smollm2, second, encode(texts[i]))
        np.testing.assert_array_equal(evaluate(smollm2, root, encode(texts[i])), alone[i])


@dataclass(frozen=True)
class Asked:
    """What an exploration asks of a record: its prompt and a chain, then branches."""

    first: list[Prefix]
    branches: list[Prefix]

    @property
    def prefixes(self) -> list[Prefix]:
        return [*self.first, *self.branches]


def asked(root: tuple[int, ...], tokens, chain, branches) -> Asked:
    prompt = Prefix(tuple(tokens), Prefix(root))
    end = Prefix(tuple(chain), prompt)
    return Asked([prompt, end], [Prefix(tuple(run), end) for run in branches])


def answered(backend: Backend, records: list[Asked]) -> np.ndarray:
    return np.concatenate([backend.logprobs(call) for one in records for call in (one.first, one.branches)])


def faults(records: list[Asked]) -> dict[str, list[Prefix]]:
    """What the branches would be read as by an adapter with a fault, as paths."""
    shown: dict[str, list[Prefix]] = {"sibling seen": [], "token not seen": [], "position shifted": []}
    for one in records:
        for branch, sibling in zip(one.branches, (*one.branches[1:], one.branches[0]), strict=True):
            path, end = branch.path(), len(branch.parent.path())
            shown["sibling seen"].append(Prefix((*path[:end], *sibling.tokens, *branch.tokens)))
            shown["token not seen"].append(Prefix((*path[: end - 1], *branch.tokens)))
            shown["position shifted"].append(Prefix((*path[:end], path[end - 1], *branch.tokens)))
    return shown


def assert_within_rounding(backend: Backend, folder: Path, records: list[Asked]) -> None:
    """The rows lie within what rounding activations does, and those of faults do not."""
    prefixes = [prefix for one in records for prefix in one.prefixes]
    is_branch = [prefix in one.branches for one in records for prefix in one.prefixes]
    slow = Recompute(backend).logprobs(prefixes)
    bound = 2 * rounding(backend.info.path, folder, prefixes, slow) + FLOAT32
    assert moved(answered(backend, records), slow) <= bound
    for fault, paths in faults(records).items():
        assert moved(backend.logprobs(paths), slow[is_branch]) > bound, fault
    for fault, answer in broken(backend, records):
        assert moved(answer[is_branch], slow[is_branch]) > bound, fault


def broken(backend: Backend, records: list[Asked]) -> Iterator[tuple[str, np.ndarray]]:
    """The adapter's own rows with a fault inside it."""
    windowed = backend.info.architecture.startswith("gemma")
    wrong = in_llama_cpp() if backend.info.path.suffix == ".gguf" else in_onnx_runtime(windowed)
    for fault, (module, name, function) in wrong.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, function)
            yield fault, answered(backend, [asked_again(one) for one in records])


def in_llama_cpp() -> dict[str, tuple[Any, str, Any]]:
    """A branch sees half of what it stands on. (Positions with a gap llama.cpp refuses itself.)"""
    from edgeguard.backends.llama_cpp import model

    copy = model.lc.llama_memory_seq_cp

    def half(memory, source, target, begin, end):
        copy(memory, source, target, end // 2, end)

    return {"mask": (model.lc, "llama_memory_seq_cp", half)}


def in_onnx_runtime(windowed: bool) -> dict[str, tuple[Any, str, Any]]:
    """A branch sees those before it in the row, or stands one place further on; a window is twice as long."""
    from edgeguard.backends.onnx_runtime import model

    right = model.depths

    def seen(new, columns, rows):
        return np.tri(rows.stop - rows.start, rows.stop, rows.start, dtype=np.bool_)

    def depths(new):
        on = [len(list(prefix.lineage())) > 3 for prefix in new]  # root, record, chain: and what stands on it
        return right(new) + np.repeat(on, [len(prefix.tokens) for prefix in new])

    def near(new, depth, window):
        return new[..., :, None] - depth[..., None, :] < 2 * window

    wrong = {"mask": (model, "seen", seen), "position": (model, "depths", depths)}
    return {**wrong, "window": (model, "_near", near)} if windowed else wrong


def asked_again(one: Asked) -> Asked:
    """The same tokens as new prefixes: nothing of them is held."""
    root, prompt, end = one.first[1].parent.parent, one.first[0], one.first[1]
    return asked(root.tokens, prompt.tokens, end.tokens, [branch.tokens for branch in one.branches])


@pytest.mark.smollm2
def test_on_smollm2_keeping_the_preamble_gives_the_numbers_of_the_whole_prompt(smollm2, tmp_path):
    """Bit for bit with llama.cpp. ONNX Runtime's sums depend on how many tokens a call has."""
    encode = smollm2.vocabulary.encode
    policy = tuple(encode("You judge messages by a policy. " * 30))
    prompts = [
        Prefix(tuple(encode(t)), Prefix(policy)) for t in ("How do I kill a process?", "Good morning!", "Go " * 40)
    ]
    kept, whole = (np.concatenate([b.logprobs([p]) for p in prompts]) for b in (smollm2, Recompute(smollm2)))
    if smollm2.info.path.suffix == ".gguf":
        np.testing.assert_array_equal(kept, whole)
    elif as_float(open_variant(smollm2.info.path)) is None:
        np.testing.assert_allclose(kept, whole, atol=FLOATS)
    else:
        assert moved(kept, whole) <= 2 * rounding(smollm2.info.path, tmp_path, prompts, whole) + FLOAT32


@pytest.mark.smollm2
def test_on_smollm2_branches_stay_near_recomputation(smollm2, tmp_path):
    encode = smollm2.vocabulary.encode
    policy = tuple(encode("You judge messages by a policy. " * 8))
    runs = [encode(text) for text in ("1", "2, 3", "4")]
    records = [
        asked(policy, encode(t), encode("unsafe\nS"), runs) for t in ("How do I kill a process?", "Good morning!")
    ]
    if as_float(open_variant(smollm2.info.path)) is None:
        slow = Recompute(smollm2).logprobs([prefix for one in records for prefix in one.prefixes])
        np.testing.assert_allclose(answered(smollm2, records), slow, atol=FLOATS)
    else:
        assert_within_rounding(smollm2, tmp_path, records)


@law
@given(st.text(max_size=60))
def test_text_never_becomes_a_control_token(tiny, text):
    control = set(tiny.vocabulary.control.values())
    spelled = "".join([*tiny.vocabulary.control, text])
    for t in (text, spelled, spelled + text):
        try:
            t.encode()
        except UnicodeEncodeError:
            continue
        assert control.isdisjoint(tiny.vocabulary.encode(t))


def test_a_path_longer_than_the_context_is_refused_with_both_lengths(tiny):
    with pytest.raises(ContextOverflow, match=r"needs 600 tokens.* holds 512"):
        tiny.logprobs([Prefix((5,) * 600)])
    assert np.isfinite(tiny.logprobs([Prefix((5,))])).all()  # and nothing is broken by it


def test_a_record_up_to_the_very_context_is_evaluated(tiny):
    root = Prefix((5,) * 10)
    full = Prefix(tuple(range(3, 200)) * 2 + (3,) * 108, root)
    assert len(full.path()) == 512
    assert_near(tiny.logprobs([full]), Recompute(tiny).logprobs([full]), tiny)


def test_more_branches_than_sequences_cost_time_not_correctness(tiny):
    root = Prefix((40, 41))
    prompt = Prefix((50, 51, 52), root)
    branches = [Prefix((3 + i,), prompt) for i in range(100)]
    assert_near(tiny.logprobs(branches), Recompute(tiny).logprobs(branches), tiny)


def test_more_branches_than_cells_cost_time_not_correctness(tiny):
    prompt = Prefix((50,) * 480, Prefix((40, 41)))
    branches = [Prefix((3 + i, 4, 5), prompt) for i in range(20)]
    assert_near(tiny.logprobs(branches), Recompute(tiny).logprobs(branches), tiny)


def test_a_prefix_may_be_asked_for_again(tiny):
    prompt = Prefix((50, 51), Prefix((40,)))
    first = tiny.logprobs([prompt])
    branch = Prefix((60,), prompt)
    tiny.logprobs([branch])
    np.testing.assert_array_equal(tiny.logprobs([prompt]), first)
    with pytest.raises(ValueError, match="passed twice"):
        tiny.logprobs([prompt, prompt])


def test_an_empty_root_is_a_root_like_any_other(tiny):
    prompt = Prefix((50, 51, 52), Prefix(()))
    assert_near(tiny.logprobs([prompt]), Recompute(tiny).logprobs([prompt]), tiny)


ROUNDED = (*("q8_0", "q4_0", "onnx-int8", "onnx-int4"), *("onnx-int8 gemma2", "onnx-int8 gemma3"))


@pytest.fixture(scope="module", params=ROUNDED)
def rounded(request, tmp_path_factory):
    """A tiny model with rounded activations."""
    folder = tmp_path_factory.mktemp("rounded")
    to, _, arch = request.param.partition(" ")
    more = {"arch": arch, "tied": True, "metadata": {"llama.attention.sliding_window_pattern": 2}} if arch else {}
    source = write_tiny_llama(folder / "tiny.gguf", seed=3, **more)
    return convert(source, folder / f"{to}.gguf", to=to).path


RECORDS = [((50, 51), (5, 7)), (tuple(range(60, 90)), (5, 7)), ((7,) * 11, (5, 7))]


def tiny_records() -> list[Asked]:
    return [asked((40, 41, 42), tokens, chain, [(9, 10), (11,), (13, 14, 15)]) for tokens, chain in RECORDS]


def test_with_rounded_activations_rows_stay_near_recomputation(rounded, tmp_path):
    backend = open_backend(rounded, RuntimeOptions(context=512, threads=1))
    assert_within_rounding(backend, tmp_path, tiny_records())
    backend.close()


def test_with_rounded_activations_another_condition_moves_rows_no_further_than_rounding(rounded, tmp_path):
    """What a deployment may change unseen: the batch, a stranger's company, the number of threads."""
    records = tiny_records()
    prefixes = [prefix for one in records for prefix in one.prefixes]
    plain = open_backend(rounded, RuntimeOptions(context=512, threads=1))
    bound = 2 * rounding(rounded, tmp_path, prefixes, Recompute(plain).logprobs(prefixes)) + FLOAT32
    others = [RuntimeOptions(context=512, threads=1, condition=one) for one in conditions(rounded).values()]
    for options in (*others, RuntimeOptions(context=512, threads=2)):
        other = open_backend(rounded, options)
        assert moved(answered(other, records), answered(plain, tiny_records())) <= bound, options
        other.close()
    plain.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": {"safe": 4.0, "unsafe": -2.0}},
        {"tied": True},
        {"vocab": "spm"},
        {"n_head_kv": 4},
        {"n_head_kv": 1, "n_layer": 1},
        {"arch": "qwen2"},
        {"arch": "qwen3"},
        {"arch": "granite"},
        {"rope_factors": (1.0, 1.5, 4.0, 8.0)},
        {"metadata": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}},
        {"metadata": {"llama.rope.freq_base": 500000.0}},
    ],
    ids=str,
)
def test_two_runtimes_give_the_same_numbers_for_the_same_weights(tmp_path, options):
    source = write_tiny_llama(tmp_path / "tiny.gguf", seed=5, **options)
    gguf = open_backend(source, RuntimeOptions(context=512, threads=1, kv_cache="f32"))
    onnx = open_backend(convert(source, tmp_path / "onnx", to="onnx-fp32").path, RuntimeOptions(context=512, threads=1))
    root = Prefix((40, 41, 42))
    _, first = record(root, range(50, 150))
    prefixes = [*first, *(Prefix((t, t + 1), first[-1]) for t in (9, 11, 13))]
    np.testing.assert_allclose(gguf.logprobs(prefixes), onnx.logprobs(prefixes), atol=FLOATS)
    gguf.close()
    onnx.close()


def float16_table(self, gate, layer):
    """GELU as llama.cpp's CPU kernel has it: looked up by the input's float16, from -10 to 10."""
    narrow = self.node("Cast", [self.node("Cast", [gate], f"{layer}/f16", to=10)], f"{layer}/f16/f32", to=1)
    value = self.node("Gelu", [narrow], f"{layer}/gelu", approximate="tanh")
    value = self.node("Cast", [self.node("Cast", [value], f"{layer}/gelu/f16", to=10)], f"{layer}/gelu/f32", to=1)
    size = self.node("Abs", [gate], f"{layer}/size")
    outside = self.node("GreaterOrEqual", [size, self.once("ten", np.array(10, np.float32))], f"{layer}/outside")
    return self.node("Where", [outside, self.node("Relu", [gate], f"{layer}/relu"), value], f"{layer}/looked_up")


STRETCHED = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}


@pytest.mark.parametrize(
    "options",
    [
        {"arch": "gemma2"},
        {"arch": "gemma2", "metadata": {"llama.attn_logit_softcapping": 1.5, "llama.final_logit_softcapping": 4.0}},
        {"arch": "gemma2", "metadata": {**STRETCHED, "llama.rope.freq_base": 500.0}},
        {"arch": "gemma2", "metadata": {**STRETCHED, "llama.rope.scaling.type": "none"}},
        {"arch": "gemma3"},
        {"arch": "gemma3", "tied": False, "n_head_kv": 1},
        {"arch": "gemma3", "metadata": {**STRETCHED, "llama.rope.freq_base": 1e6}},
        {"arch": "gemma3", "metadata": {"llama.rope.freq_base_swa": 700.0, "llama.final_logit_softcapping": 4.0}},
        {"arch": "gemma3", "metadata": {"llama.attention.sliding_window_pattern": 2}},
        {"arch": "gemma3", "metadata": {"llama.attention.sliding_window_pattern": 0}},
        {"arch": "gemma3", "metadata": {"llama.attention.sliding_window": 0, "llama.rope.freq_base": 1e6}},
    ],
    ids=str,
)
def test_gemma_gets_the_numbers_of_llama_cpp_but_for_its_gelu_in_float16(tmp_path, monkeypatch, options):
    """With that table in the graph too, what is left is a last bit that tips an input to the next float16."""
    from edgeguard.convert.graph import _Graph

    monkeypatch.setattr(_Graph, "_activated", float16_table)
    source = write_tiny_llama(tmp_path / "tiny.gguf", seed=5, **{**GEMMA, **options})
    onnx = convert(source, tmp_path / "onnx", to="onnx-fp32").path
    np.testing.assert_allclose(long_rows("gguf", source), long_rows("onnx", onnx), atol=NORMED)


def long_rows(kind: str, path: Path) -> np.ndarray:
    """Of a prompt longer than a tiny Gemma's window, and of branches on it."""
    prompt = Prefix(tuple(range(50, 150)), Prefix((40, 41, 42)))
    backend = open_tiny(kind, path)
    rows = backend.logprobs([prompt, *(Prefix((t, t + 1), prompt) for t in (9, 11, 13))])
    backend.close()
    return rows


@pytest.mark.parametrize(("arch", "n_layer"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_scale_attention_by_their_width(tmp_path, monkeypatch, arch, n_layer):
    """Told by the number of layers, as llama.cpp does. So many carry a last bit far, so a fault is measured too."""
    from edgeguard.convert import decoder

    source = write_tiny_llama(tmp_path / "tiny.gguf", seed=5, arch=arch, tied=True, n_layer=n_layer, head=16)
    right = long_rows("onnx", convert(source, tmp_path / "right", to="onnx-fp32").path)
    by_heads = replace(decoder._KNOWN[arch], wide=0)
    monkeypatch.setattr(decoder, "_KNOWN", {arch: by_heads})
    wrong = long_rows("onnx", convert(source, tmp_path / "wrong", to="onnx-fp32").path)
    expected = long_rows("gguf", source)
    assert 10 * moved(right, expected) < moved(wrong, expected)


@pytest.mark.parametrize(
    ("type_name", "arch"),
    [("Q4_0", None), ("Q4_1", None), ("Q8_0", None), ("Q4_0", "gemma2"), ("Q4_1", "gemma3"), ("Q8_0", "gemma3")],
)
def test_blocks_carry_over_weight_for_weight(tmp_path, type_name, arch):
    """With float activations the ONNX model computes what the dequantized GGUF computes."""
    more = {"arch": arch, "tied": True} if arch else {}
    source = write_tiny_llama(tmp_path / "tiny.gguf", seed=6, ftype=type_name, **more)
    blocks = convert(source, tmp_path / "blocks", to="onnx", options=Options(activations="float")).path
    floats = convert(source, tmp_path / "floats", to="onnx-fp32").path
    prefixes = [Prefix(tuple(range(50, 150))), Prefix((7,))]
    rows = []
    for path in (blocks, floats):
        backend = open_backend(path, RuntimeOptions(context=512, threads=1))
        rows.append(backend.logprobs(prefixes))
        backend.close()
    np.testing.assert_allclose(*rows, atol=NORMED if arch else FLOATS)


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_a_closed_backend_can_be_closed_again(tmp_path, kind):
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    backend = open_backend(
        path if kind == "gguf" else convert(path, tmp_path / "out", to="onnx").path, RuntimeOptions(context=128)
    )
    backend.close()
    backend.close()


def test_the_files_say_what_they_are(tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf", name="Tiny Guard")
    folder = convert(path, tmp_path / "onnx", to="onnx-int8").path
    gguf, onnx = open_backend(path, RuntimeOptions(context=128)), open_backend(folder, RuntimeOptions(context=128))
    lines = [
        f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in ("model.onnx", "model.onnx.data")
    ]
    assert gguf.info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert onnx.info.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (gguf.info.name, gguf.info.architecture, gguf.info.quantization) == ("Tiny Guard", "llama", "F32")
    assert (onnx.info.name, onnx.info.architecture, onnx.info.quantization) == ("Tiny Guard", "llama", "int8")
    assert gguf.info.chat_template == onnx.info.chat_template
    assert gguf.info.n_ctx_train == onnx.info.n_ctx_train
    gguf.close()
    onnx.close()


def test_what_is_no_model_is_a_model_error(tmp_path):
    no_model = tmp_path / "model.gguf"
    no_model.write_bytes(b"<!doctype html><title>not found</title>")
    with pytest.raises(ModelError, match="not a GGUF"):
        open_backend(no_model)
    for name in ("missing.gguf", "missing.onnx", "missing"):
        with pytest.raises(ModelError, match="does not exist"):
            open_backend(tmp_path / name)


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_a_context_beyond_the_model_s_own_is_refused(tmp_path, kind):
    """llama.cpp only warns, in a log that nobody reads, and scores beyond it mean nothing."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", n_ctx=512)
    path = path if kind == "gguf" else convert(path, tmp_path / "out", to="onnx").path
    with pytest.raises(ModelError, match="trained for 512 tokens of context, 1024 were asked for"):
        open_backend(path, RuntimeOptions(context=1024))


@pytest.mark.parametrize(
    "condition",
    [Condition(batch=4), Condition(attention="flash"), Condition(company=True)],
    ids=["batch", "flash", "company"],
)
def test_another_condition_computes_the_same_up_to_rounding(tmp_path, condition):
    """A noise floor must be made of rounding, not of another computation."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", seed=1)
    root, tokens = Prefix((40, 41, 42, 43)), tuple(range(60, 90))
    plain = open_backend(path, RuntimeOptions(context=512, threads=1, kv_cache="f32"))
    other = open_backend(path, RuntimeOptions(context=512, threads=1, kv_cache="f32", condition=condition))
    expected = evaluate(plain, root, tokens)
    for _ in range(3):
        if (
            condition.attention == "flash"
        ):  # llama.cpp's kernel for the CPU multiplies in float16: near, next to a fault
            fault = evaluate(plain, root, (*tokens[:-2], tokens[-1]))
            assert 10 * moved(evaluate(other, root, tokens), expected) < moved(fault, expected)
        else:
            assert_near(evaluate(other, root, tokens), expected)
    plain.close()
    other.close()


def test_a_graph_has_no_company_to_measure(tmp_path):
    path = convert(write_tiny_llama(tmp_path / "tiny.gguf", seed=1), tmp_path / "onnx", to="onnx-fp32").path
    with pytest.raises(ValueError, match="another company"):
        open_backend(path, RuntimeOptions(condition=Condition(company=True)))
    plain, small = (
        open_backend(path, RuntimeOptions(threads=1)),
        open_backend(path, RuntimeOptions(threads=1, condition=Condition(batch=4))),
    )
    root, tokens = Prefix((40, 41, 42, 43)), tuple(range(60, 90))
    assert_near(evaluate(small, root, tokens), evaluate(plain, root, tokens))
    plain.close()
    small.close()
