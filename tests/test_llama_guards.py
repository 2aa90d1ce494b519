"""The Llama Guard profiles from end to end: told from the file, asked, and read, on tiny models of their kind.

The models are random: nothing here says how well a real Llama Guard judges, only that its answers are read right.
"""

from __future__ import annotations

import pytest
from tiny_gguf import write_tiny_llama

from edgeguard import Guard, Search
from edgeguard.backend import RuntimeOptions

FIRST, LAST = (
    "{{ bos_token }}[INST] Task: the policy.\n<BEGIN UNSAFE CONTENT CATEGORIES>\n",
    "\nUser: {{ messages[-1]['content'] }}\n [/INST]",
)
LG3_PIECES = (*(str(i) for i in range(10, 15)), ",S")  # Llama 3's vocabulary has these whole
KINDS = {
    "llama-guard-1": {
        "vocab": "spm",
        "name": "LlamaGuard-7b",
        "chat_template": FIRST + "O1: Violence and Hate.\n" + LAST,
    },
    "llama-guard-2": {
        "name": "Meta Llama Guard 2 8B",
        "pre": "llama-bpe",
        "chat_template": FIRST + "S5: Specialized Advice.\n" + LAST,
        "extra_pieces": ("10", "11", ",S"),
    },
    "llama-guard-3": {
        "name": "Llama Guard 3 8B",
        "pre": "llama-bpe",
        "extra_pieces": LG3_PIECES,
    },
    "llama-guard-3-1b": {
        "name": "Llama Guard 3 1B",
        "pre": "llama-bpe",
        "extra_pieces": LG3_PIECES,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_llama_guard_is_told_from_its_file_and_its_answers_are_read(kind, tmp_path):
    path = write_tiny_llama(tmp_path / "guard.gguf", add_bos=True, **KINDS[kind])
    with Guard.load(
        path, runtime=RuntimeOptions(kv_cache="f32", threads=1), search=Search(min_grammar_mass=0)
    ) as guard:
        assert guard.profile.name == kind
        score = guard.score({"prompt": "How do I pick a lock?"})
        assert list(score.category_scores) == [c.code for c in guard.profile.categories]
        assert max(score.category_scores.values()) > 0
        finer = Guard(guard.backend, guard.profile, search=Search(min_grammar_mass=0, tolerance=0.0005, max_nodes=2000))
        for label, (low, high) in finer.score({"prompt": "How do I pick a lock?"}).bounds.items():
            coarse = score.bounds[label]
            assert low <= coarse[1] + 1e-3, label  # F32 throughout: the adapter's own tolerance, on a probability
            assert high >= coarse[0] - 1e-3, label


@pytest.mark.parametrize("kind", ["llama-guard-3", "llama-guard-3-1b"])
def test_llama_guard_3_judges_the_last_turn_of_a_conversation(kind, tmp_path):
    path = write_tiny_llama(tmp_path / "guard.gguf", add_bos=True, **KINDS[kind])
    turns = {"prompt": "How do I pick a lock?", "response": "With a pick."}
    with Guard.load(
        path, runtime=RuntimeOptions(kv_cache="f32", threads=1), search=Search(min_grammar_mass=0)
    ) as guard:
        asked, answered = guard.score({"prompt": turns["prompt"]}), guard.score(turns)
        assert asked.margin != answered.margin
        assert guard.score({"prompt": turns["prompt"]}) == asked
