"""A model folder's tokenizer.json, and the configurations beside it, as a Vocabulary."""

from __future__ import annotations

from pathlib import Path

from edgeguard.backend import Vocabulary
from edgeguard.errors import ModelError
from edgeguard.formats.bounded_json import DOWNLOAD
from edgeguard.formats.tokenizer.configs import declared_bos, declared_ends, read_configs
from edgeguard.formats.tokenizer.library import load_encoder
from edgeguard.formats.tokenizer.names import END_NAMES, end_ids
from edgeguard.formats.tokenizer.tokenizer_json import TokenizerJson, pieces, read_tokenizer_json


def read_vocabulary(folder: Path, *, n_vocab: int | None = None) -> Vocabulary:
    """The vocabulary of a model folder, from its tokenizer.json and the configurations beside it.

    n_vocab  length of the model's next-token rows, which may be padded: the rest are unused tokens. None: as
             many as the tokenizer has

    Control tokens are the special ones among the added tokens, and those of names that end an answer. Raises
    ModelError for a missing or broken file, for a tokenizer that is no BPE, and for one larger than `n_vocab`.
    """
    folder = Path(folder)
    source = folder / "tokenizer.json"
    if not source.is_file():
        raise _no_tokenizer(folder)
    tokenizer = read_tokenizer_json(source)
    ids, n = tokenizer.ids, _length(tokenizer, n_vocab)
    configs = read_configs(folder)
    eog = end_ids(ids, declared_ends(configs, ids, n))
    control = {token.name: token.id for token in tokenizer.added if token.special}
    control |= {name: ids[name] for name in END_NAMES if ids.get(name) in eog}
    encoder = load_encoder(tokenizer, control)
    return Vocabulary(
        pieces=pieces(tokenizer, control, n),
        control=control,
        eog=eog,
        bos=declared_bos(configs, ids, n, otherwise=lambda: encoder.put_in_front(n)),
        encode=encoder.ids,
    )


def _no_tokenizer(folder: Path) -> ModelError:
    if not folder.is_dir():
        return ModelError(f"{folder} is not a folder; give the model's folder, with its tokenizer.json")
    if any((folder / name).is_file() for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")):
        return ModelError(
            f"{folder} has a SentencePiece model and no tokenizer.json; load it with transformers' "
            "AutoTokenizer.from_pretrained and write the tokenizer.json with save_pretrained"
        )
    return ModelError(f"{folder} has no tokenizer.json; {DOWNLOAD}, or copy the file from the original model")


def _length(tokenizer: TokenizerJson, n_vocab: int | None) -> int:
    n = max(tokenizer.ids.values()) + 1
    if n_vocab is not None and n_vocab < n:
        raise ModelError(
            f"{tokenizer.source} has tokens up to id {n - 1}, the model gives {n_vocab} probabilities; they are not "
            f"of the same model, {DOWNLOAD}"
        )
    return n if n_vocab is None else n_vocab
