"""What a model folder's configurations say of tokens: what ends an answer, what begins a prompt, the chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeguard.errors import ModelError, shown
from edgeguard.formats.bounded_json import DOWNLOAD, MAX_TOKENIZER, find_object, member, read_text
from edgeguard.formats.gguf import MAX_TEMPLATE
from edgeguard.formats.tokenizer.names import FILL_ENDS, fill_id


@dataclass(frozen=True)
class Config:
    """A configuration of the folder, as read."""

    source: Path
    values: Mapping[str, Any]


def read_configs(folder: Path) -> dict[str, Config]:
    """The configurations that may name tokens, {} for those that are missing. Raises ModelError."""
    names = ("tokenizer_config.json", "generation_config.json", "config.json", "genai_config.json")
    found = {name: Config(folder / name, _values(folder / name)) for name in names}
    genai = found["genai_config.json"]
    found["genai_config.json"] = Config(genai.source, member(genai.source, genai.values, "model", dict, {}))
    return found


def declared_ends(configs: Mapping[str, Config], ids: Mapping[str, int], n: int) -> set[int]:
    """The ids that are said to end an answer, or are known to. Raises ModelError for ids of no token."""
    ends = {i for kind in FILL_ENDS if (i := fill_id(ids, kind)) is not None}
    for config in configs.values():
        ends.update(_config_ids(config, "eos_token_id", n))
    name = _token_name(configs["tokenizer_config.json"], "eos_token")
    return ends | ({ids[name]} if name is not None and name in ids else set())


def _config_ids(config: Config, key: str, n: int) -> list[int]:
    """One id or several; none where the key is missing."""
    value = config.values.get(key)
    found = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < n for i in found):
        raise ModelError(f"{config.source}: {key} is {shown(value)}, ids below {n} are needed; {DOWNLOAD}")
    return found


def _token_name(config: Config, key: str) -> str | None:
    value = config.values.get(key)
    if isinstance(value, dict):  # as transformers writes an AddedToken
        value = value.get("content")
    if not isinstance(value, str | None):
        raise ModelError(f"{config.source}: {key} is {shown(value)}, a token's text is needed; {DOWNLOAD}")
    return value


def declared_bos(
    configs: Mapping[str, Config], ids: Mapping[str, int], n: int, *, otherwise: Callable[[], int | None]
) -> int | None:
    """The id that prompts begin with, None for none; what `otherwise` gives where no configuration says. ModelError."""
    config = configs["tokenizer_config.json"]
    says = config.values.get("add_bos_token")
    if not isinstance(says, bool | None):
        raise ModelError(f"{config.source}: add_bos_token is {shown(says)}, true or false is needed; {DOWNLOAD}")
    if says is None:
        return otherwise()
    if not says:
        return None
    name = _token_name(config, "bos_token")
    named = [ids[name]] if name is not None and name in ids else []
    declared = [i for other in configs.values() for i in _config_ids(other, "bos_token_id", n)]
    for i in (*named, *declared):
        return i
    raise ModelError(
        f"{config.source}: add_bos_token is true, and no file names a bos_token that is a token; {DOWNLOAD}"
    )


def read_chat_template(folder: Path) -> str | None:
    """A model folder's default chat template, Jinja from a stranger; None if it has none. Raises ModelError.

    From chat_template.jinja, tokenizer_config.json or chat_template.json, the first that has one.
    """
    folder = Path(folder)
    source = folder / "chat_template.jinja"
    if source.is_file():
        return _template(source, read_text(source, max_bytes=MAX_TOKENIZER))
    for name in ("tokenizer_config.json", "chat_template.json"):
        source = folder / name
        value = _values(source).get("chat_template")
        if isinstance(value, list):
            value = _default_template(source, value)
        if value is not None:
            return _template(source, value)
    return None


def _default_template(source: Path, entries: list[Any]) -> str | None:
    if not all(isinstance(e, dict) and isinstance(e.get("name"), str) and "template" in e for e in entries):
        raise ModelError(
            f'{source}: chat_template is {shown(entries)}, a list of {{"name", "template"}} is needed; {DOWNLOAD}'
        )
    named = {entry["name"]: entry["template"] for entry in entries}
    only = next(iter(named.values())) if len(named) == 1 else None
    return named.get("default", only)


def _template(source: Path, value: object) -> str | None:
    if not isinstance(value, str) or len(value) > MAX_TEMPLATE:
        raise ModelError(f"{source}: the chat template is not a text of at most {MAX_TEMPLATE} characters; {DOWNLOAD}")
    return value or None


def _values(source: Path) -> dict[str, Any]:
    return find_object(source, max_bytes=MAX_TOKENIZER) or {}
