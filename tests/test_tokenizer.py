"""A GGUF's vocabulary, written as a model folder and read back, against llama.cpp's own; and folders of others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tiny_gguf import CHATML, write_tiny_llama
from vocabularies import FOLDER, real

from edgeguard.backend import RuntimeOptions, Vocabulary
from edgeguard.backends import open_backend
from edgeguard.builtin import base_model
from edgeguard.errors import ModelError
from edgeguard.formats import gguf
from edgeguard.formats.tokenizer import read_chat_template, read_vocabulary, tokenizer_files

pytest.importorskip("tokenizers")

law = settings(deadline=None, max_examples=60)

# One for each of llama.cpp's splitters that is supported.
PRE = (
    "default",
    "gpt-2",
    "smollm",
    "smaug-bpe",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "tekken",
    "gpt-4o",
    "deepseek-v3",
    "seed-coder",
    "falcon",
)
# Merges within and across the places where texts are split, so that a wrong split shows in the ids.
WORDS = (
    *("safe", "unsafe", " safe", " unsafe", " the", "S1", "'s", "'S", "'ll", "’s", "\n\n", "\r\n", " \n", "  ", "    "),
    *("12", "123", "½1", "1a", " 1", "1 ", "é", "aé", "éa", "e\u0301", "x\u0301", "漢字", "مر", "हिन्दी", "ABc", "aB"),
    *("!?\n", " !", "/\n", "_a", "--", "$a", "+1", "`a", "\t\t", "\x85a", "\xa0a", "\u3000a", "👩\u200d", "ʰa"),
    *("\U00010d40a", "\u1c89a"),  # letters and digits since Unicode 16, which llama.cpp does not know
)  # fmt: skip
FRAGMENTS = (
    *WORDS,
    *("", " ", "   ", "\n", "\t", "\r", "\0", "\x1c", "\x7f", "\x85", "\u200b", "\u2028", "\u3000", "\ufeff", "▁"),
    *("٣", "²", "Ⅷ", "2024-12-31", "3.14159", "1234567890", "def f(x):\n    return x + 1\n", "a_b/c.d!?", "I'LL"),
    *("👩‍👩‍👧", "🇫🇮", "مرحبا", "नमस्ते", "한국어", "日本語", "ẞ", "ǅ", "ſ", "İ", "\U00010d40", "\u1c89", "\U0001ccf0"),
    *("<|im_end|>", "<|im_start|>user", "<|endoftext|>", "<|eot_id|>", "</s>", "<s>", "<unk>", "<end_of_turn>"),
    *("<h1>", "a </table>", "<h1", "▁▁", "▁ ▁", " <h1> ", "\n \n\n", "[@BOS@]", " " * 40, "\n" * 33, "\t\t\t"),
    *("<0x0A>", "we've", "safe" * 40, " " * 90, "\n" * 30, "é" * 50, "a" * 200),
)  # fmt: skip
texts = st.one_of(
    st.text(),  # every plane, no surrogates
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.characters(codec="utf-8")), max_size=14).map("".join),
    st.text(alphabet=" \n\r\t\x0b\x85\xa0\u3000'sSlaé1½!/-", max_size=24),
)
every_text = "".join(FRAGMENTS)


def write_folder(header: gguf.Header, folder: Path) -> Path:
    for name, data in tokenizer_files(header).items():
        (folder / name).write_bytes(data)
    return folder


@contextmanager
def vocabularies(path: Path) -> Iterator[tuple[Vocabulary, Vocabulary]]:
    """A GGUF's vocabulary, written to its folder and read back, and llama.cpp's own."""
    backend = open_backend(path, RuntimeOptions(context=256, threads=1))
    with closing(backend):
        folder = write_folder(gguf.read_header(path), path.parent)
        yield read_vocabulary(folder, n_vocab=len(backend.vocabulary)), backend.vocabulary


def assert_same(ours: Vocabulary, theirs: Vocabulary) -> None:
    assert list(ours.pieces) == list(theirs.pieces)
    assert dict(ours.control) == dict(theirs.control)
    assert (ours.eog, ours.bos, len(ours)) == (theirs.eog, theirs.bos, len(theirs))


# Found in a text before all else, as in Gemma's vocabulary; its control tokens, one of them unused by its name.
USER = (
    *(" " * n for n in range(2, 32)),
    *("\n" * n for n in range(1, 32)),
    *("\t\t", "\t", "<h1>", "</table>", "[@BOS@]"),
)
GEMMA = {"user": USER, "control": ("<start_of_turn>", "<end_of_turn>", "<eos>", "<pad>", "<unused0>", "<mask>")}


@pytest.fixture(scope="module", params=[*PRE, "spm", "spm without a space", "gemma", "gemma with a space"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    if request.param.startswith(("spm", "gemma")):
        pieces = ["▁▁", "▁▁▁▁", "éa", "▁漢字", "aé", "12", "'s", "▁is"]
        if request.param.startswith("gemma"):
            pieces = ["▁▁", "▁<", "h1>", "a▁b", *pieces[2:]]
        kind: dict[str, Any] = {"vocab": "spm", "extra_pieces": pieces}
        kind["metadata"] = {"tokenizer.ggml.add_space_prefix": request.param in ("spm", "gemma with a space")}
        kind |= GEMMA if request.param.startswith("gemma") else {}
    else:
        kind = {"pre": request.param, "merge_words": WORDS}
    with vocabularies(write_tiny_llama(folder / "tiny.gguf", n_layer=1, **kind)) as pair:
        yield pair


def test_the_vocabulary_read_back_is_that_of_llama_cpp(pair):
    assert_same(*pair)


@law
@given(text=texts)
@example(text=every_text)
@example(text="")
def test_every_text_has_the_ids_that_llama_cpp_gives_it(pair, text):
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    path = tmp_path_factory.mktemp("smollm2") / "smollm2.gguf"
    path.symlink_to(base_model())
    with vocabularies(path) as pair:
        yield pair


@pytest.mark.smollm2
def test_smollm2_read_back_is_that_of_llama_cpp(smollm2):
    assert_same(*smollm2)


@pytest.mark.smollm2
@settings(deadline=None, max_examples=300)
@given(text=texts)
@example(text=every_text)
@example(text="no merge reaches over a byte\x13 without a token\x04s")
def test_smollm2_gives_every_text_the_ids_of_llama_cpp(smollm2, text):
    ours, theirs = smollm2
    assert ours.encode(text) == theirs.encode(text)


# Kinds of tokens

NAMES = (
    *("<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "</s>", "<eos>", "<|tool_response>"),
    *("<|channel|>", "<|start|>", "<|fim_prefix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    *("<|a|>", "<|unused_1|>"),
)  # fmt: skip
END_NAMES = frozenset(NAMES[:9])


def write_with_types(path: Path, types: Mapping[str, int], **more: Any) -> Path:
    """A tiny model whose first tokens are of these names and tokenizer.ggml.token_type."""
    tiny = partial(write_tiny_llama, path, n_layer=1, control=list(types), merge_words=("ab",))
    numbers = gguf.read_header(tiny()).metadata["tokenizer.ggml.token_type"].numbers().tolist()
    return tiny(metadata={"tokenizer.ggml.token_type": [*types.values(), *numbers[len(types) :]], **more})


@law
@given(
    types=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0, 1, 2, 3, 4, 5]), min_size=1),
    eos=st.sampled_from([None, 0, 3]),
    eot=st.sampled_from([None, 0, 5]),
)
@example(types={"<|end|>": 3, "<|return|>": 3, "<|call|>": 3}, eos=None, eot=None)
@example(types={"</s>": 3, "<|tool_response>": 3}, eos=0, eot=None)
def test_kinds_of_tokens_and_ends_of_answers_are_those_of_llama_cpp(tmp_path_factory, types, eos, eot):
    assume(not any(types[name] == 5 for name in END_NAMES & types.keys()))  # an end that is unused: in no real file
    folder = tmp_path_factory.mktemp("kinds")
    ids = {"tokenizer.ggml.eos_token_id": eos, "tokenizer.ggml.eot_token_id": eot}
    with vocabularies(write_with_types(folder / "tiny.gguf", types, **ids)) as (ours, theirs):
        assert_same(ours, theirs)
        text = "a".join(["", *types, *types, ""])
        assert ours.encode(text) == theirs.encode(text)


def test_a_user_defined_token_is_found_within_a_control_token_that_is_only_text(tmp_path):
    path = write_with_types(tmp_path / "tiny.gguf", {"<|im_start|>": 3, "im_": 4, "b b": 4})
    with vocabularies(path) as (ours, theirs):
        text = "<|im_start|>b bab"
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text).count(1) == 1
        assert ours.pieces[1:3] == [b"im_", b"b b"]
        assert 0 not in ours.encode(text)


@pytest.mark.parametrize("vocab", ["bpe", "spm"])
@pytest.mark.parametrize("add_bos", [True, False, None])
def test_prompts_begin_as_llama_cpp_begins_them(tmp_path, vocab, add_bos):
    path = write_tiny_llama(tmp_path / "m.gguf", vocab=vocab, metadata={"tokenizer.ggml.add_bos_token": add_bos})
    with vocabularies(path) as (ours, theirs):
        assert_same(ours, theirs)
        name = "<s>" if vocab == "spm" else "<|begin_of_text|>"
        assert ours.bos == (ours.control[name] if add_bos or (add_bos is None and vocab == "spm") else None)


def test_files_are_the_same_bytes_each_time_and_say_what_others_read(tmp_path):
    header = gguf.read_header(write_tiny_llama(tmp_path / "m.gguf", add_bos=True, n_ctx=512))
    files = tokenizer_files(header)
    assert files == tokenizer_files(header)
    config = json.loads(files["tokenizer_config.json"])
    assert config["chat_template"] == CHATML
    assert config["bos_token"] == "<|begin_of_text|>"
    assert config["eos_token"] == "<|im_end|>"
    assert (config["add_bos_token"], config["add_eos_token"]) == (True, False)
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_max_length"] == 512
    generation = json.loads(files["generation_config.json"])
    assert generation == {"bos_token_id": 3, "eos_token_id": [0, 2, 4, 7]}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, r"'rwkv'; supported are gpt2 .* and llama"),
        ({"tokenizer.ggml.pre": "poro-chat"}, r"'poro-chat'; supported are default, gpt-2"),
        ({"tokenizer.ggml.pre": 3}, r"tokenizer\.ggml\.pre is 3"),
        ({"tokenizer.ggml.tokens": None}, r"tokens is None, an array of str is needed"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": None}, r"tokens 0 and 1 are the same, 'a'"),
        ({"tokenizer.ggml.token_type": [1, 2]}, r"token_type is an array of 2 i32 for"),
        ({"tokenizer.ggml.merges": None}, r"merges is None"),
        ({"tokenizer.ggml.merges": ["s x"]}, r"merge 0, 's x', needs 'sx', which is no token in use"),
        ({"tokenizer.ggml.eos_token_id": "2"}, r"eos_token_id is '2', a whole number is needed"),
        ({"tokenizer.ggml.add_bos_token": 1}, r"add_bos_token is 1, true or false"),
    ],
)
def test_a_header_whose_tokenizer_cannot_be_written_says_why(tmp_path, metadata, said):
    header = gguf.read_header(write_tiny_llama(tmp_path / "m.gguf", metadata=metadata))
    with pytest.raises(ModelError, match=said):
        tokenizer_files(header)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"tokenizer.ggml.scores": None}, r"scores is None for"),
        ({"tokenizer.ggml.scores": [float("nan")] * 300}, r"the score of token \d+ is nan"),
        ({"tokenizer.ggml.scores": [0.0]}, r"scores is an array of 1 f32 for"),
        ({"tokenizer.ggml.tokens": ["<unk>", "a"], "tokenizer.ggml.token_type": None}, r"no token is the byte <0x00>"),
    ],
)
def test_a_sentencepiece_header_that_is_not_whole_says_why(tmp_path, metadata, said):
    header = gguf.read_header(write_tiny_llama(tmp_path / "m.gguf", vocab="spm", metadata=metadata))
    with pytest.raises(ModelError, match=said):
        tokenizer_files(header)


def test_a_sentencepiece_token_of_a_character_that_is_no_token_is_an_error(tmp_path):
    path = write_tiny_llama(tmp_path / "m.gguf", vocab="spm", extra_pieces=("xé",))
    names = [t.decode() for t in gguf.read_header(path).metadata["tokenizer.ggml.tokens"].strings()]
    names[names.index("é")] = "ç"
    path = write_tiny_llama(path, vocab="spm", extra_pieces=("xé",), metadata={"tokenizer.ggml.tokens": names})
    with pytest.raises(ModelError, match="token 'xé' is built of 'é', which is no token"):
        tokenizer_files(gguf.read_header(path))


@pytest.mark.parametrize("score", [-1000.0, 0.0])
def test_sentencepiece_tokens_of_one_score_that_texts_are_made_of_are_refused(tmp_path, score):
    """Runs of spaces in old files of Gemma: llama.cpp merges the leftmost, which a list of merges cannot say."""
    path = tmp_path / "m.gguf"
    tiny = partial(write_tiny_llama, path, vocab="spm", user=("▁▁", "▁▁▁", "<h1>"))
    header = gguf.read_header(tiny())
    scores = header.metadata["tokenizer.ggml.scores"].numbers().tolist()
    names = [t.decode() for t in header.metadata["tokenizer.ggml.tokens"].strings()]
    for name in ("▁▁", "▁▁▁", "<h1>"):
        scores[names.index(name)] = score
    with pytest.raises(ModelError, match="tokens '▁▁' and '▁▁▁' have the same score"):
        tokenizer_files(gguf.read_header(tiny(metadata={"tokenizer.ggml.scores": scores})))
    scores[names.index("▁▁▁")] += 1
    tokenizer_files(gguf.read_header(tiny(metadata={"tokenizer.ggml.scores": scores})))


def test_half_of_a_surrogate_pair_is_the_caller_s_error_as_with_llama_cpp(pair):
    for vocabulary in pair:
        with pytest.raises(UnicodeEncodeError):
            vocabulary.encode("a\ud800")


# Folders of others


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(gguf.read_header(write_tiny_llama(tmp_path / "m.gguf", merge_words=WORDS)), tmp_path)


Damage = Callable[[Path], Any]


def changed(folder: Path, name: str, change: Callable[[Any], Any] | Mapping[str, Any]) -> Path:
    """The folder, with a change made to one of its JSON files."""
    source = folder / name
    value = json.loads(source.read_bytes()) if source.exists() else {}
    value = {**value, **change} if isinstance(change, Mapping) else change(value)
    source.write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_a_folder_written_by_transformers_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate([*alphabet, "sa", "fe", "safe"])}
    library = Tokenizer(models.BPE(vocab=vocab, merges=[("s", "a"), ("f", "e"), ("sa", "fe")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    fast.add_tokens(["<tool>"])
    fast.chat_template = CHATML
    fast.save_pretrained(tmp_path)
    vocabulary = read_vocabulary(tmp_path, n_vocab=300)
    assert vocabulary.control == {name: fast.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|im_start|>")}
    assert vocabulary.eog == {vocabulary.control["<|im_end|>"]}
    assert vocabulary.bos is None
    assert len(vocabulary) == 300
    assert vocabulary.pieces[299] == b""
    assert vocabulary.pieces[vocab["safe"]] == b"safe"
    ids = vocabulary.encode("safe é<|im_end|><tool>")
    assert b"".join(vocabulary.pieces[i] for i in ids) == "safe é<|im_end|><tool>".encode()
    assert ids[0] == vocab["safe"]
    assert ids[-1] == fast.convert_tokens_to_ids("<tool>")
    assert not set(ids) & set(vocabulary.control.values())
    assert read_chat_template(tmp_path) == CHATML


def test_our_folder_gives_transformers_the_same_ids(folder):
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    vocabulary = read_vocabulary(folder)
    text = "safe or unsafe? 12 é\n\n漢字"
    assert fast.encode(text) == vocabulary.encode(text)
    assert fast.decode(vocabulary.encode(text)) == text
    assert fast.chat_template == CHATML


def test_truncation_padding_and_dropout_are_switched_off(folder):
    def change(tokenizer: dict[str, Any]) -> dict[str, Any]:
        tokenizer["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        tokenizer["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
        tokenizer["padding"] |= {"pad_type_id": 0, "pad_token": "<|endoftext|>"}
        tokenizer["model"]["dropout"] = 0.5
        return tokenizer

    plain = read_vocabulary(folder).encode("unsafe and the rest")
    assert read_vocabulary(changed(folder, "tokenizer.json", change)).encode("unsafe and the rest") == plain


def test_no_merge_makes_a_control_token(folder):
    def change(tokenizer: dict[str, Any]) -> dict[str, Any]:
        name = "safe"
        token = {"id": tokenizer["model"]["vocab"][name], "content": name, "special": True, "normalized": False}
        token |= {"single_word": False, "lstrip": False, "rstrip": False}
        tokenizer["added_tokens"].append(token)
        tokenizer["model"] |= {"ignore_merges": True, "unk_token": name}
        return tokenizer

    vocabulary = read_vocabulary(changed(folder, "tokenizer.json", change))
    ids = vocabulary.encode("safe unsafe")
    assert vocabulary.control["safe"] not in ids
    assert b"".join(vocabulary.pieces[i] for i in ids) == b"safe unsafe"


def test_merges_may_be_written_as_strings(folder):
    def change(tokenizer: dict[str, Any]) -> dict[str, Any]:
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
        return tokenizer

    plain = read_vocabulary(folder).encode(every_text)
    assert read_vocabulary(changed(folder, "tokenizer.json", change)).encode(every_text) == plain


@pytest.mark.parametrize(
    ("name", "change", "ends"),
    [
        ("generation_config.json", {"eos_token_id": 9}, {9}),
        ("config.json", {"eos_token_id": [9, 10]}, {9, 10}),
        ("genai_config.json", {"model": {"eos_token_id": [9]}}, {9}),
        ("tokenizer_config.json", {"eos_token": {"content": "a", "__type": "AddedToken"}}, {"a"}),
        ("tokenizer_config.json", {"eos_token": None}, set()),
    ],
)
def test_ends_of_answers_are_those_of_all_configurations_and_well_known_names(folder, name, change, ends):
    (folder / "generation_config.json").unlink()
    vocabulary = read_vocabulary(changed(folder, name, change))
    known = {vocabulary.control[n] for n in ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>")}
    declared = {vocabulary.encode(end)[0] if isinstance(end, str) else end for end in ends}
    assert vocabulary.eog == known | declared


def test_the_post_processor_says_what_begins_a_prompt_where_the_configuration_does_not(tmp_path):
    header = gguf.read_header(write_tiny_llama(tmp_path / "m.gguf", add_bos=True))
    folder = write_folder(header, tmp_path)
    (folder / "tokenizer_config.json").unlink()
    assert read_vocabulary(folder).bos == read_vocabulary(folder).control["<|begin_of_text|>"]
    assert read_vocabulary(changed(folder, "tokenizer_config.json", {"add_bos_token": False})).bos is None
    assert read_vocabulary(changed(folder, "tokenizer.json", {"post_processor": None})).bos is None


def broken(text: str | bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def within(*path: str | int, value: Any) -> Damage:
    """Another value at one place of tokenizer.json."""

    def damage(folder: Path) -> None:
        changed(folder, "tokenizer.json", lambda tokenizer: replaced(tokenizer, path, value))

    return damage


def replaced(value: Any, path: Sequence[str | int], new: Any) -> Any:
    """A JSON value with another at one place."""
    *way, last = path
    at = value
    for key in way:
        at = at[key]
    at[last] = new
    return value


def config(name: str, **values: Any) -> Damage:
    return lambda folder: changed(folder, name, values)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), r"has no tokenizer\.json; download or"),
        (broken(""), r"tokenizer\.json is not JSON"),
        (broken("[" * 100_000), r"tokenizer\.json is not JSON"),
        (broken(b"\xff\xfe"), r"is not UTF-8 at byte 0"),
        (broken("[]"), r"is no JSON object but \[\]"),
        (broken("{}"), r"model is None, an object is needed"),
        (within("model", "type", value="Unigram"), r"model is 'Unigram'; BPE is supported"),
        (within("model", "vocab", value=[["a", 0.5]]), r"vocab is .*, an object is needed"),
        (within("model", "vocab", "s", value="7"), r"the id of 's' is '7'"),
        (within("model", "vocab", "s", value=-1), r"the id of 's' is -1"),
        (within("model", "vocab", "s", value=10**9), r"the id of 's' is 1000000000"),
        (within("model", "vocab", "s", value=True), r"the id of 's' is True"),
        (within("model", "vocab", "s", value=0), r"'<\|endoftext\|>' and 's' are both token 0"),
        (within("model", "vocab", "\ud800", value=4000), r"cannot be used by the tokenizers package|no Unicode text"),
        (within("model", "merges", value=None), r"merges is None"),
        (within("model", "merges", 0, value="a b c"), r"\['a', 'b', 'c'\] is no merge"),
        (within("model", "merges", 0, value=["s", "no such token"]), r"cannot be used by the tokenizers package"),
        (within("model", "end_of_word_suffix", value="</w>"), r"marks begins or ends of words"),
        (within("added_tokens", 0, value=7), r"7 is no added token"),
        (within("added_tokens", 0, "id", value=5000), r"'<\|endoftext\|>' is both 0 and 5000"),
        (within("pre_tokenizer", value={"type": "Magic"}), r"cannot be used by the tokenizers package"),
        (config("generation_config.json", eos_token_id=10**6), r"generation_config\.json: eos_token_id is 1000000"),
        (config("config.json", eos_token_id="2"), r"config\.json: eos_token_id is '2'"),
        (config("genai_config.json", model=[]), r"genai_config\.json: model is \[\], an object is needed"),
        (config("tokenizer_config.json", eos_token=3), r"eos_token is 3, a token's text is needed"),
        (config("tokenizer_config.json", add_bos_token="yes"), r"add_bos_token is 'yes', true or false"),
    ],
)
def test_a_broken_folder_says_what_is_wrong(folder, damage, said):
    damage(folder)
    with pytest.raises(ModelError, match=said) as raised:
        read_vocabulary(folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_decoder_that_is_not_known_is_an_error(folder):
    within("pre_tokenizer", value=None)(folder)
    within("decoder", value={"type": "Fuse"})(folder)
    with pytest.raises(ModelError, match=r"decoder, \['Fuse'\], is neither that of byte-level nor of SentencePiece"):
        read_vocabulary(folder)


def test_a_begin_that_is_named_nowhere_is_an_error(folder):
    (folder / "generation_config.json").unlink()
    changed(folder, "tokenizer_config.json", {"add_bos_token": True, "bos_token": "<none>"})
    with pytest.raises(ModelError, match="add_bos_token is true, and no file names a bos_token"):
        read_vocabulary(folder)


def test_a_sentencepiece_model_alone_says_how_to_make_the_json(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(ModelError, match="save_pretrained"):
        read_vocabulary(tmp_path)
    with pytest.raises(ModelError, match="is not a folder"):
        read_vocabulary(tmp_path / "nowhere")


def test_a_tokenizer_larger_than_the_model_is_an_error_and_a_smaller_one_is_padded(folder):
    n = len(read_vocabulary(folder))
    padded = read_vocabulary(folder, n_vocab=n + 3)
    assert padded.pieces[n:] == [b"", b"", b""]
    with pytest.raises(ModelError, match=rf"up to id {n - 1}, the model gives {n - 1} probabilities"):
        read_vocabulary(folder, n_vocab=n - 1)


def test_nothing_is_written_to_stdout(folder, capfd):
    vocabulary = read_vocabulary(folder)
    vocabulary.encode("unsafe")
    repr(vocabulary)  # the library's own repr writes a warning there, where our data goes
    assert capfd.readouterr().out == ""


def test_an_absurdly_large_file_is_not_parsed(folder):
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(80 << 20)
    with pytest.raises(ModelError, match="larger than 64 MiB"):
        read_vocabulary(folder)


def test_without_the_tokenizers_package_the_message_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModelError, match=r"needs the tokenizers package.*pip install 'edgeguard\[onnx\]'"):
        read_vocabulary(folder)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where a value stands within a JSON value, the first few of long lists."""
    items: Sequence[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())[:12]
    elif isinstance(value, list):
        items = list(enumerate(value))[:3]
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


simple = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.just(1e9), st.text(max_size=4))
strange = st.one_of(simple, st.lists(simple, max_size=2), st.dictionaries(st.text(max_size=4), simple, max_size=1))


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_stranger_s_tokenizer_is_read_or_refused_and_nothing_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("strange")
    path = folder / "m.gguf"
    vocab = data.draw(st.sampled_from(["bpe", "spm"]))
    files = tokenizer_files(gguf.read_header(write_tiny_llama(path, vocab=vocab, n_layer=1)))
    for name, text in files.items():
        (folder / name).write_bytes(text)
    name = data.draw(st.sampled_from(sorted(files)))
    value = json.loads(files[name])
    replaced(value, data.draw(st.sampled_from(places(value)[1:])), data.draw(strange))
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
    try:
        vocabulary = read_vocabulary(folder)
        ids = vocabulary.encode("unsafe é <s>")
        assert all(0 <= i < len(vocabulary) for i in ids)
        assert not set(ids) & set(vocabulary.control.values())
        read_chat_template(folder)
    except ModelError as error:
        assert str(folder) in str(error)


# Chat templates

RAG, DEFAULT = {"name": "rag", "template": "R"}, {"name": "default", "template": "D"}


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, None),
        ({"tokenizer_config.json": {}}, None),
        ({"tokenizer_config.json": {"chat_template": ""}}, None),
        ({"tokenizer_config.json": {"chat_template": "A"}, "chat_template.json": {"chat_template": "B"}}, "A"),
        ({"tokenizer_config.json": {"chat_template": "A"}, "chat_template.jinja": "C"}, "C"),
        ({"chat_template.json": {"chat_template": "B"}}, "B"),
        ({"tokenizer_config.json": {"chat_template": [RAG]}}, "R"),
        ({"tokenizer_config.json": {"chat_template": [RAG, DEFAULT]}}, "D"),
        ({"tokenizer_config.json": {"chat_template": [RAG, {"name": "tools", "template": "T"}]}}, None),
    ],
)
def test_the_chat_template_is_the_default_one_of_the_first_file_that_has_one(tmp_path, files, template):
    for name, value in files.items():
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    assert read_chat_template(tmp_path) == template


@pytest.mark.parametrize("value", ["3", "{}", '[{"name": "a"}]', "[3]", '[{"name": "default", "template": 3}]'])
def test_a_chat_template_that_is_no_text_is_an_error(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": {value}}}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: "):
        read_chat_template(tmp_path)


def test_llama_s_own_vocabulary_has_llama_cpp_s_ids() -> None:
    """Its runs of spaces share one score: that alone is no reason to refuse it, which an earlier check did."""
    from tokenizers import Tokenizer

    vocabulary = real("llama-spm")
    files = tokenizer_files(gguf.read_header(FOLDER / "ggml-vocab-llama-spm.gguf"))
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    for n in range(80):
        for text in (" " * n, f"a{' ' * n}b", f"\n{' ' * n}x \n"):
            assert tokenizer.encode(text, add_special_tokens=False).ids == vocabulary.encode(text), text
