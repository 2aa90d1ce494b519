r"""A Hugging Face tokenizer.json as edgeguard's Vocabulary, and such files made from a GGUF header.

The law: for a GGUF, the vocabulary read from its `tokenizer_files` is the one that llama.cpp has, and gives
the same ids for every text. For that the patterns below are llama.cpp's, in the words of the regex engine
that `tokenizers` has, Oniguruma. Where the two cannot agree:

- A control token is never written by text here. llama.cpp lets merges make one, where a file has such merges.
- Two tokens of type "user defined" that overlap in a text ("ab" and "bcd" in "abcd"): the first of them is
  taken here, the longest by llama.cpp.
- Two SentencePiece pieces of equal score: llama.cpp merges the leftmost, and a list of merges knows no such rule. So
  they are refused. Scores of real vocabularies differ; those of runs of spaces in old files of Gemma do not, and newer
  converters write these with spaces for ▁, to be found in a text before all else.
- A vocabulary with several names for one fill-in-the-middle token ("<PAD>" and "<fim_pad>"): llama.cpp takes
  the first of a hash table, here it is the first of `FILL_NAMES`.
- A token of a byte-level vocabulary that is not in GPT-2's letters writes its text here, as in `tokenizers`;
  llama.cpp writes "[UNK_BYTE_…]". No text is encoded as such a token.
- llama.cpp's table is Unicode 15.1. What Unicode 16 added is taken out of the patterns below; `tokenizers`
  before 0.21 still knows no letters of Unicode 15.
"""

from edgeguard.formats.tokenizer.configs import read_chat_template
from edgeguard.formats.tokenizer.folder import read_vocabulary
from edgeguard.formats.tokenizer.from_gguf import begins_with, tokenizer_files
from edgeguard.formats.tokenizer.gguf_tokens import Tokens, read_tokens
from edgeguard.formats.tokenizer.tokenizer_json import kinds_of

__all__ = [
    "Tokens",
    "begins_with",
    "kinds_of",
    "read_chat_template",
    "read_tokens",
    "read_vocabulary",
    "tokenizer_files",
]
