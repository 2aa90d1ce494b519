"""Damaged model files, and what lies beside them: the kinds of bench/fuzz.py that edgeguard opens with a model."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import common  # noqa: F401  (it puts tests/ on the path)
import numpy as np
from fuzzing import Draw, Kind
from tiny_gguf import CHATML, write, write_tiny_llama

from edgeguard.backend import Prefix, RuntimeOptions, Vocabulary
from edgeguard.calibration.files import read_calibration
from edgeguard.formats import gguf
from edgeguard.formats.tokenizer import read_vocabulary
from edgeguard.profile import load_profile

ROOT = Path(__file__).resolve().parents[1]
NASTY = [0, 1, 2, 3, 7, 31, 33, 255, 257, 511, 65535, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
# Numbers that a key of a model might have, and that are wrong for this one.
PLAUSIBLE = [0, 1, 2, 3, 5, 6, 8, 15, 16, 17, 24, 32, 33, 48, 63, 64, 65, 100, 128, 256, 512, 1000, 4096, 100_000]
FLOATS = [0.0, 1e-38, 1e-9, -1.0, 1.0, 2.0, 1e6, 1e30, float("inf"), float("nan")]
TEXT = "safe unsafe \n\nS1 123 é 日本 \U0001f600 the"


def damaged(draw: Draw, data: bytes, end: int) -> bytes:
    """Some of the first `end` bytes changed: random ones, flipped bits, or a number set to a nasty value."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        at = draw.randrange(max(1, end - 8))
        kind = draw.randrange(3)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << draw.randrange(8)
        else:
            form = draw.choice(["<I", "<Q"])
            value = draw.choice(NASTY) % 2 ** (8 * struct.calcsize(form))
            changed[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(changed)


# GGUF

_KEYS = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count", "vocab_size"),
    *("attention.head_count_kv", "rope.dimension_count", "attention.key_length", "attention.value_length"),
    *("expert_count", "expert_used_count", "attention.sliding_window", "nextn_predict_layers", "expert_group_count"),
    *("attention.q_lora_rank", "attention.kv_lora_rank", "leading_dense_block_count", "embedding_length_out"),
    *("rope.scaling.original_context_length", "attention.sliding_window_pattern", "attention.chunk_size"),
)
_FLOAT_KEYS = (
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor", "attention.scale", "logit_scale"),
    *("rope.scaling.attn_factor", "attn_logit_softcapping", "final_logit_softcapping", "embedding_scale"),
)
_TOKENS = ("bos", "eos", "eot", "eom", "unknown", "padding", "fim_pre", "fim_suf", "seperator", "mask")
_ARCHES = (None, "qwen2", "qwen3", "granite", "gemma2", "gemma3")


def _gguf_whole(folder: Path) -> list[tuple[bytes, int]]:
    paths = [
        write_tiny_llama(folder / "bpe.gguf"),
        write_tiny_llama(folder / "spm.gguf", vocab="spm"),
        write_tiny_llama(folder / "q8.gguf", ftype="Q8_0", bias={"safe": 1.0}),
    ]
    return [(path.read_bytes(), gguf.read_header(path).data_offset) for path in paths]


def _gguf_mutant(draw: Draw, whole: list[tuple[bytes, int]], path: Path) -> Path:
    """Bytes of the header damaged, or keys that are sound by themselves and wrong for the model."""
    path = path.with_name(path.name + ".gguf")
    if draw.random() < 0.5:
        path.write_bytes(damaged(draw, *draw.choice(whole)))
        return path
    keys = dict(_wrong_key(draw) for _ in range(draw.choice([1, 1, 2])))
    vocab = draw.choice(["bpe", "bpe", "spm"])
    return write_tiny_llama(path, arch=draw.choice(_ARCHES), vocab=vocab, metadata=keys)  # type: ignore[arg-type]


def _wrong_key(draw: Draw) -> tuple[str, Any]:
    kind = draw.randrange(6)
    if kind < 2:
        return f"llama.{draw.choice(_KEYS)}", draw.choice([None, *PLAUSIBLE])
    if kind == 2:
        return f"llama.{draw.choice(_FLOAT_KEYS)}", draw.choice(FLOATS)
    if kind == 3:
        key = draw.choice(["attention.head_count", "attention.head_count_kv", "feed_forward_length"])
        return f"llama.{key}", [draw.choice(PLAUSIBLE[:8]) for _ in range(draw.choice([1, 2, 2, 2, 3]))]
    if kind == 4:
        return f"tokenizer.ggml.{draw.choice(_TOKENS)}_token_id", draw.choice([*PLAUSIBLE, 2**31 - 1, 2**32 - 1])
    name, values = draw.choice(
        [
            ("pre", ["default", "gpt-4o", "tekken", "llama-bpe", "", "no-such"]),
            ("model", ["gpt2", "llama", "bert", "t5", "plamo2", "rwkv", "none"]),
            ("token_type", [[1] * 10, [7] * 280, [0] * 280, [3] * 280, [6] * 280]),
            ("merges", [["a"], ["a b"] * 5, ["", " "]]),
            ("tokens", [["a"], ["a"] * 280, [""] * 280, ["\udcff".encode(errors="replace").decode()] * 3]),
        ]
    )
    return f"tokenizer.ggml.{name}", draw.choice(values)


def _evaluate(backend: Any) -> str:
    backend.vocabulary.encode(TEXT)
    backend.logprobs([Prefix((1, 2, 3), Prefix((4, 5)))])
    return "evaluated"


def _gguf_attempt(path: Path) -> str:
    from edgeguard.backends import open_backend

    try:
        return _evaluate(open_backend(path, RuntimeOptions(threads=1)))
    except UnicodeError:  # a piece of a token that llama.cpp gives
        return "refused, UnicodeError"


# Adapters


def _adapter_whole(folder: Path) -> Path:
    base, rng = write_tiny_llama(folder / "base.gguf"), np.random.default_rng(0)
    arrays = {}
    for name, rows, columns in (("blk.0.attn_q.weight", 32, 32), ("blk.1.ffn_up.weight", 64, 32)):
        arrays[f"{name}.lora_a"] = rng.normal(0, 0.3, (4, columns)).astype(np.float32)
        arrays[f"{name}.lora_b"] = rng.normal(0, 0.3, (rows, 4)).astype(np.float32)
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    write(folder / "adapter.gguf", "llama", keys, arrays)
    return base


def _adapter_mutant(draw: Draw, base: Path, path: Path) -> Path:
    whole = base.with_name("adapter.gguf")
    path = path.with_name(path.name + ".gguf")
    path.write_bytes(damaged(draw, whole.read_bytes(), gguf.read_header(whole).data_offset))
    return path


def _adapter_attempt(path: Path) -> str:
    from edgeguard.backends import open_backend

    base = path.with_name("base.gguf")
    return _evaluate(open_backend(base, RuntimeOptions(threads=1, lora=path)))


# ONNX


def _onnx_whole(folder: Path) -> Path:
    from edgeguard.convert import convert

    return convert(write_tiny_llama(folder / "tiny.gguf"), folder / "onnx", to="onnx-fp32").path


def _onnx_mutant(draw: Draw, whole: Path, path: Path) -> Path:
    """Bytes of the graph damaged, or shapes, sizes and places that are sound by themselves."""
    import onnx

    shutil.copytree(whole, path)
    graph = path / "model.onnx"
    if draw.random() < 0.4:
        data = graph.read_bytes()
        graph.write_bytes(damaged(draw, data, len(data)))
        return path
    model = onnx.load_model(graph, load_external_data=False)
    for _ in range(draw.choice([1, 1, 2])):
        _wrong_shape(draw, model.graph)
    graph.write_bytes(model.SerializeToString())
    return path


def _wrong_shape(draw: Draw, graph: Any) -> None:
    number = draw.choice([*NASTY[:-1], -1, *PLAUSIBLE])
    kind = draw.randrange(4)
    if kind == 0:
        tensor = draw.choice(graph.initializer)
        if tensor.dims:
            tensor.dims[draw.randrange(len(tensor.dims))] = number
    elif kind == 1:
        entries = [entry for tensor in graph.initializer for entry in tensor.external_data]
        if entries:
            draw.choice(entries).value = draw.choice([str(number), "", "x", "../model.onnx", "9" * 5000])
    elif kind == 2:
        dims = draw.choice([*graph.input, *graph.output]).type.tensor_type.shape.dim
        if dims:
            dim = draw.choice(dims)
            dim.dim_value = number
            if draw.random() < 0.3:
                dim.dim_param = draw.choice(["n", "", "batch"])
    else:
        tensor = draw.choice(graph.initializer)
        tensor.data_type = draw.randrange(30)


def _onnx_attempt(path: Path) -> str:
    from edgeguard.backends import open_backend

    return _evaluate(open_backend(path, RuntimeOptions(threads=1)))


# Tokenizers


def _tokenizer_whole(folder: Path) -> list[dict[str, bytes]]:
    from edgeguard.formats.tokenizer import tokenizer_files

    paths = [write_tiny_llama(folder / f"{vocab}.gguf", vocab=vocab) for vocab in ("bpe", "spm")]  # type: ignore[arg-type]
    return [tokenizer_files(gguf.read_header(path)) for path in paths]


def _tokenizer_mutant(draw: Draw, whole: list[dict[str, bytes]], path: Path) -> Path:
    files = draw.choice(whole)
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    name = draw.choice(["tokenizer.json", "tokenizer.json", "tokenizer.json", *files])
    if draw.random() < 0.4:
        (path / name).write_bytes(damaged(draw, files[name], len(files[name])))
    else:
        values = json.loads(files[name])
        _wrong_value(draw, values)
        (path / name).write_text(json.dumps(values))
    return path


_STEPS: list[Any] = [
    {"type": "Replace", "pattern": {"String": " "}, "content": "x" * 5000},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "ab"}] * 40},
    {"type": "Prepend", "prepend": "y" * 100_000},
    {"type": "NFKD"},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(x|xx)*z"}, "behavior": "Removed", "invert": True},
    {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 999, "pair": []},
    {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="},
]


def _wrong_value(draw: Draw, values: Any) -> None:
    """Something in a JSON value replaced."""
    place = values
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = draw.choice(keys)
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            break
        place = inner
    new = [None, True, -1, 0, 2**31, 2**63, 1e400, "", "x" * 1000, "\ud800", [], {}, [[]] * 1000, *_STEPS]
    place[key] = draw.choice(new)


def _tokenizer_attempt(path: Path) -> str:
    vocabulary = read_vocabulary(path)
    for text in (TEXT, "a" * 20_000, " " * 20_000, "ab" * 5000 + "!"):
        vocabulary.encode(text)
    return "encoded"


# Templates

_PIECES = (
    *("{{ messages[0].content }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ 'a' * 3000000000 }}"),
    *("{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}", "{{ 9 ** 9999999 }}"),
    *("{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "{{ x.y }}"),
    *("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{{ lipsum(n=99999999) }}", "{{ range(99999) | list }}"),
    *(
        "{% macro g(n) %}{% if n %}{{ g(n-1) }}{{ g(n-1) }}{% endif %}{% endmacro %}{{ g(90) }}",
        "{{ '%999999999d' % 1 }}",
    ),
    *("{{ ([[0] * 9999] * 9999) | tojson }}", "{{ 'a'.center(999999999) }}", "{{ 'a' | indent(99999999) }}"),
    *("{{ '{:>999999999}'.format(1) }}", "{{ messages | batch(999999999, 1) | list }}", "{% include 'x' %}"),
    *("{{ raise_exception('no') }}", "{{ ''.__class__ }}", "{% if", "{{ " + "(" * 3000 + "1", "\x00", "<|im_start|>"),
    *("{{ 'aaaa' | replace('', 'b' * 99999) | replace('', 'c' * 99999) }}", "{% generation %}x{% endgeneration %}"),
)


def _template_mutant(draw: Draw, whole: None, path: Path) -> Path:
    path = path.with_name(path.name + ".jinja")
    pieces = [draw.choice(_PIECES) for _ in range(draw.choice([0, 1, 1, 2]))]
    text = "".join(draw.sample([*pieces, CHATML], len(pieces) + 1))
    if draw.random() < 0.3:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(["", "{", "%}", "'", "{{", "|", "*9"]) + text[at + draw.choice([0, 1, 5]) :]
    path.write_text(text)
    return path


def _vocabulary(*names: str) -> Vocabulary:
    """Tokens are bytes, and ChatML's control tokens with those of other names."""
    control = {name: 256 + i for i, name in enumerate(dict.fromkeys(("<|im_start|>", "<|im_end|>", *names)))}
    pieces = [*(bytes([b]) for b in range(256)), *[b""] * len(control)]
    return Vocabulary(pieces, control, eog=frozenset({257}), bos=None, encode=lambda text: list(text.encode()))


def _template_attempt(path: Path) -> str:
    from edgeguard.prompt import compile_prompt
    from edgeguard.rows.record import Message

    prompter = compile_prompt(load_profile("instruct"), path.read_text(), _vocabulary())
    prompter.parts([Message("user", "one"), Message("assistant", "two"), Message("user", "three")])
    return "rendered"


# Profiles


def _profile_mutant(draw: Draw, whole: list[str], path: Path) -> Path:
    path = path.with_name(path.name + ".toml")
    text = draw.choice(whole)
    if draw.random() < 0.4:
        data = text.encode()
        path.write_bytes(damaged(draw, data, len(data)))
        return path
    for _ in range(draw.choice([1, 1, 2])):
        text = _wrong_line(draw, text)
    path.write_text(text)
    return path


_PATTERNS = (
    *("({verdict=safe}|{verdict=unsafe})*", "({category}|){999}", "(((a*)*)*)*b", "{verdict=safe}", "..." * 50),
    *("(|a|aa)*" * 40 + "{verdict=safe}|{verdict=unsafe}", "(" * 3000 + ")" * 3000, "a{99999}{verdict=safe}", "[^a"),
    "{verdict=safe}|{verdict=unsafe}(\\n{category}(, {category})*)?",
)


def _wrong_line(draw: Draw, text: str) -> str:
    """A pattern, a prompt's text or any line replaced by what may be right by itself."""
    kind, piece, new = draw.randrange(4), draw.choice(_PIECES), draw.choice(_PATTERNS)
    if kind == 0:
        return re.sub(r"^pattern = .*$", lambda _: f"pattern = '{new}'", text, count=1, flags=re.MULTILINE)
    if kind == 1:
        return re.sub(r'^text = """\n', lambda m: m[0] + piece.replace("\x00", ""), text, count=1, flags=re.MULTILINE)
    lines = text.split("\n")
    at = draw.randrange(len(lines))
    line = lines[at]
    if kind == 2:
        return "\n".join([*lines[:at], *draw.choice([[], [line, line], [line[::-1]]]), *lines[at + 1 :]])
    numbers = re.sub(r"\d+", lambda _: str(draw.choice(NASTY)), line)
    return "\n".join([*lines[:at], draw.choice([numbers, line.replace('"', "'"), line.upper()]), *lines[at + 1 :]])


def _profile_attempt(path: Path) -> str:
    from edgeguard.answers import Answers
    from edgeguard.description import describe
    from edgeguard.prompt import compile_prompt

    profile = load_profile(path)
    describe(profile).row()
    vocabulary = _vocabulary(*profile.prompt.control, *profile.stop)
    prompter = compile_prompt(profile, CHATML, vocabulary)
    Answers(profile.answer, vocabulary, prompter.stops)
    return "compiled"


# Calibrations


def _calibration_mutant(draw: Draw, whole: list[bytes], path: Path) -> Path:
    path = path.with_name(path.name + ".json")
    data = draw.choice(whole)
    if draw.random() < 0.5:
        path.write_bytes(damaged(draw, data, len(data)))
    else:
        values = json.loads(data)
        _wrong_value(draw, values)
        path.write_text(json.dumps(values))
    return path


def _calibration_attempt(path: Path) -> str:
    found = read_calibration(path)
    for map_ in found.maps.values():
        map_(np.linspace(0, 1, 5))
    return "read"


GGUF = Kind(_gguf_whole, _gguf_mutant, _gguf_attempt)
ADAPTER = Kind(_adapter_whole, _adapter_mutant, _adapter_attempt)
ONNX = Kind(_onnx_whole, _onnx_mutant, _onnx_attempt)
TOKENIZER = Kind(_tokenizer_whole, _tokenizer_mutant, _tokenizer_attempt)
TEMPLATE = Kind(lambda folder: None, _template_mutant, _template_attempt)
PROFILE = Kind(
    lambda folder: [
        path.read_text()
        for path in sorted((ROOT / "edgeguard/profiles").glob("*.toml"))
        if "\nrefused = " not in path.read_text()
    ],
    _profile_mutant,
    _profile_attempt,
)
CALIBRATION = Kind(
    lambda folder: [path.read_bytes() for path in sorted((ROOT / "models/edgeguard-135m").glob("calibration-*.json"))],
    _calibration_mutant,
    _calibration_attempt,
)
