"""The llama.cpp adapter against plain recomputation, on tiny models and on the real SmolLM2."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny_llama

from edgeguard.backend import Backend, Prefix
from edgeguard.backends import open_backend
from edgeguard.errors import ContextOverflow, ModelError
from edgeguard.models import default_model
from edgeguard.testing import Recompute

F32_TOLERANCE = 1e-3  # nats; the adapter's docstring states it
law = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", seed=1)
    backend = open_backend(path, n_ctx=512, threads=1, kv_type="f32")
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def smollm2():
    backend = open_backend(default_model(), n_ctx=1024)
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
        np.testing.assert_allclose(fast, slow, atol=F32_TOLERANCE)


@law
@given(calls=st.lists(tries(), min_size=1, max_size=4))
def test_rows_are_normalised_and_whole(tiny, calls):
    for prefixes in calls:
        rows = tiny.logprobs(prefixes)
        assert rows.shape == (len(prefixes), len(tiny.vocabulary))
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.exp(rows.astype(np.float64)).sum(axis=1), 1, atol=1e-5)


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


@pytest.mark.smollm2
def test_on_smollm2_keeping_the_preamble_gives_the_bits_of_the_whole_prompt(smollm2):
    encode = smollm2.vocabulary.encode
    policy = tuple(encode("You judge messages by a policy. " * 30))
    for text in ("How do I kill a process?", "Good morning!", "Tell me " * 40):
        prompt = Prefix(tuple(encode(text)), Prefix(policy))
        np.testing.assert_array_equal(smollm2.logprobs([prompt]), Recompute(smollm2).logprobs([prompt]))


@pytest.mark.smollm2
def test_on_smollm2_branches_stay_near_recomputation(smollm2):
    """Quantized weights round activations to 8 bits: a changed order of a sum may show, a wrong mask would."""
    encode = smollm2.vocabulary.encode
    root = Prefix(tuple(encode("You judge messages by a policy. " * 30)))
    _, chain = record(root, encode("How do I kill a process?"))
    branches = [Prefix((t,), chain[-1]) for t in encode("123456789")]
    smollm2.logprobs(chain)
    fast = np.exp(smollm2.logprobs(branches).astype(np.float64))
    slow = np.exp(Recompute(smollm2).logprobs(branches).astype(np.float64))
    assert np.abs(fast - slow).max() < 0.05


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
    np.testing.assert_allclose(tiny.logprobs([full]), Recompute(tiny).logprobs([full]), atol=F32_TOLERANCE)


def test_more_branches_than_sequences_cost_time_not_correctness(tiny):
    root = Prefix((40, 41))
    prompt = Prefix((50, 51, 52), root)
    branches = [Prefix((3 + i,), prompt) for i in range(100)]
    np.testing.assert_allclose(tiny.logprobs(branches), Recompute(tiny).logprobs(branches), atol=F32_TOLERANCE)


def test_more_branches_than_cells_cost_time_not_correctness(tiny):
    prompt = Prefix((50,) * 480, Prefix((40, 41)))
    branches = [Prefix((3 + i, 4, 5), prompt) for i in range(20)]
    np.testing.assert_allclose(tiny.logprobs(branches), Recompute(tiny).logprobs(branches), atol=F32_TOLERANCE)


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
    np.testing.assert_allclose(tiny.logprobs([prompt]), Recompute(tiny).logprobs([prompt]), atol=F32_TOLERANCE)


def test_a_closed_backend_can_be_closed_again(tmp_path):
    backend = open_backend(write_tiny_llama(tmp_path / "tiny.gguf"), n_ctx=128)
    backend.close()
    backend.close()


def test_the_file_says_what_it_is(tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf", name="Tiny Guard")
    backend = open_backend(path, n_ctx=128)
    import hashlib

    assert backend.info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (backend.info.name, backend.info.architecture) == ("Tiny Guard", "llama")
    backend.close()


def test_what_is_no_model_is_a_model_error(tmp_path):
    no_model = tmp_path / "model.gguf"
    no_model.write_bytes(b"<!doctype html><title>not found</title>")
    with pytest.raises(ModelError, match="not a GGUF"):
        open_backend(no_model)
    with pytest.raises(ModelError):
        open_backend(tmp_path / "missing.gguf")


def test_a_context_beyond_the_model_s_own_is_refused(tmp_path):
    """llama.cpp only warns, in a log that nobody reads, and scores beyond it mean nothing."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", n_ctx=512)
    with pytest.raises(ModelError, match="trained for 512 tokens of context, 1024 were asked for"):
        open_backend(path, n_ctx=1024)
