"""Names of tokens that llama.cpp knows without being told: those that end an answer, those that fill in the middle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Names of tokens that end an answer.
END_NAMES = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
# Names of fill-in-the-middle tokens, looked for where no key of the header names one.
FILL_NAMES: Mapping[str, tuple[str, ...]] = {
    "pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "sep": ("<|file_sep|>",),
}
FILL_ENDS = ("pad", "rep", "sep")  # these end an answer


def end_ids(ids: Mapping[str, int], declared: Iterable[int]) -> frozenset[int]:
    """The ids that end an answer: those declared and those of well-known names, but for llama.cpp's exceptions."""
    found = {*declared, *(ids[name] for name in END_NAMES if name in ids)}
    here = {name for name in (*END_NAMES, "<|plamo:eos|>") if ids.get(name) in found}
    call = bool(here & {"<|call|>", "<|calls|>"})
    if call and here & {"<|return|>", "<|flush|>"} and "<|end|>" in here:
        found.remove(ids["<|end|>"])  # between the parts of an answer, with these
    if here & {"<|tool_response>", "<|plamo:eos|>"} and "</s>" in here:
        found.remove(ids["</s>"])  # an HTML tag, with these
    return frozenset(found)


def fill_id(ids: Mapping[str, int], kind: str) -> int | None:
    """The id of the fill-in-the-middle token of a kind, a key of FILL_NAMES; None where no name is known."""
    return next((ids[name] for name in FILL_NAMES[kind] if name in ids), None)
