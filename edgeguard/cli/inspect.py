"""`edgeguard inspect`: what a model file is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import reported_errors
from edgeguard.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from edgeguard.builtin import BuiltIn, Form
    from edgeguard.inspection.built_in import BuiltInInspection
    from edgeguard.inspection.types import Adapter, File, Inspection, ModelShape, Numbers, Provenance, Token, Tokenizer

_KINDS = {"gguf": "model", "onnx": "model", "checkpoint": "Hugging Face checkpoint", "adapter": "LoRA adapter"}
_TEMPLATE_LINES, _TEMPLATE_CHARS = 3, 150
_SHORTEST_HASH = 12  # characters of a hash in a column that has no room for all


@click.command(epilog="Example: edgeguard inspect model.gguf --tensors")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="Every tensor too: its name, shape, type and bytes")
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON object")
def inspect(model: Path | None, tensors: bool, as_json: bool) -> None:
    """Show what MODEL is: a GGUF or ONNX file, a folder with one, a checkpoint, a LoRA adapter, a built-in guard.

    A built-in guard is named NAME[@VERSION][:FORM]: then it says too where the form's files are, whether they are those
    that were released, or how to make them. A model of a hub is named hf:ORG/REPO[:FILE][@REVISION]. Without MODEL,
    the model that the built-in guard stands on.

    Shows its size, quantization, tokenizer, chat template, the profile that fits, how it was made, and whether
    edgeguard can score with it. The files are read and hashed, no model is loaded. Exit code 1 only if it cannot be
    read at all.
    """
    with reported_errors():
        from edgeguard.builtin import base_model, find_form
        from edgeguard.hub import resolved
        from edgeguard.inspection import inspect_model

        given = resolved(model, checkpoint=True)
        named = None if given is None else find_form(given)
        if named is not None:
            _built_in(*named, tensors=tensors, as_json=as_json)
            return
        found = inspect_model(base_model() if given is None else given)
        if as_json:
            _echo_json(found.row(tensors=tensors))
        else:
            _print(found, tensors=tensors)


def _echo_json(row: dict[str, Any]) -> None:
    """Escaped beyond what JSON asks for: a terminal obeys some of what a stranger's strings may hold."""
    import json

    click.echo(json.dumps(row).replace("\x7f", "\\u007f"))


def _built_in(guard: BuiltIn, form: str | None, *, tensors: bool, as_json: bool) -> None:
    """A built-in guard's form: the one that its name stands for, where none is named."""
    from edgeguard.inspection.built_in import inspect_built_in

    found = inspect_built_in(guard, _form(guard, form))
    if as_json:
        _echo_json(found.row(tensors=tensors))
        return
    _print_facts([*_built_in_facts(found), *([] if found.model else [("make it", _making(found))])])
    for part in filter(None, (found.model, found.adapter)):
        click.echo()
        _print(part, tensors=tensors)


def _form(guard: BuiltIn, name: str | None) -> Form:
    """As `edgeguard score` opens it; on a machine without a runtime, the first that it would."""
    from edgeguard.backend import RuntimeOptions
    from edgeguard.errors import ModelError
    from edgeguard.forms import chosen

    if name is not None:
        return guard.form(name)
    try:
        return chosen(guard, None, RuntimeOptions())
    except ModelError:
        return guard.form(guard.default[0])


def _making(found: BuiltInInspection) -> str:
    """What to type for files that are not there."""
    from edgeguard.builtin import ADAPTER

    guard, form = found.guard, found.form
    if found.base is None:
        return guard.pull_command
    if form.name == ADAPTER:
        return "pip install --force-reinstall edgeguard"
    return f"edgeguard score --model {guard.called}:{form.name} makes it at its first use"


def _built_in_facts(found: BuiltInInspection) -> Iterator[tuple[str, str]]:
    from edgeguard.backends import opener
    from edgeguard.builtin import ADAPTER

    guard, form = found.guard, found.form
    yield "guard", f"{guard.name}, {guard.release}: {guard.description}"
    fitted = "calibrated" if guard.calibration(form, "marginal") else "not calibrated"
    yield (
        "form",
        f"{form.name}, for {opener(form.kind).name}, {fitted}; there are {', '.join(f.name for f in guard.forms)}",
    )
    if found.model is None and form.name == ADAPTER:
        yield "files", f"the base model, {guard.base_name}, is not on this machine"
    elif found.model is None:
        yield "files", f"not made yet; they will be in {found.folder}"
    elif found.whole:
        yield "files", "as they were released, by their hashes"
    else:
        yield "files", "not those that were released, by their hashes: not used, but made anew"


def _print(found: Inspection, *, tensors: bool) -> None:
    from edgeguard.cli.screen.console import plain_console

    console = plain_console()
    _print_facts(_facts(found))
    if found.quantization.types:
        console.print()
        console.print(_types_table(found))
    for title, files in (("file", found.files), ("beside", found.beside)):
        if len(found.files) > 1 or title == "beside":
            _print_files(title, files)
    if tensors:
        console.print()
        console.print(_tensors_table(found))


def _print_facts(found: Iterable[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from edgeguard.cli.screen.console import plain_console

    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in found:
        color = {"usable": "green", "not usable": "red", "note": "yellow", "make it": "yellow"}.get(label, "")
        facts.add_row(Text(label, f"bold {color}"), Text(printable(value), color))
    plain_console().print(facts)


# Facts, a label and a line each; a label is not repeated


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    """What there is to say, as text that is not escaped yet."""
    yield "path", str(found.path)
    yield "kind", f"{_KINDS[found.kind]}, {found.format}, {_size(sum(f.n_bytes for f in found.files))}"
    yield "sha256", found.sha256
    if found.name or (found.architecture and not found.adapter):
        yield "model", ", ".join(filter(None, (found.architecture, found.name)))
    yield from _adapter_facts(found.adapter)
    yield from _shape_facts(found)
    if found.tokenizer:
        yield from _tokenizer_facts(found.tokenizer)
    if found.kind != "adapter":
        yield from _template_facts(found.chat_template)
        yield "profile", _profile(found)
    if found.provenance:
        yield from _provenance_facts(found.provenance)
    for notice in found.notices:
        yield "note", notice
    if not found.problems:
        yield "usable", "edgeguard can score with it"
    for i, problem in enumerate(found.problems):
        yield "" if i else "not usable", problem


def _adapter_facts(adapter: Adapter | None) -> Iterator[tuple[str, str]]:
    if adapter is None:
        return
    yield "base", adapter.base or "not said"
    rank = ", ".join(map(str, adapter.ranks)) or "not known"
    yield "LoRA", f"rank {rank}, alpha {'not said' if adapter.alpha is None else f'{adapter.alpha:g}'}"
    layers: dict[str, int] = {}
    for name in adapter.changes:
        plain = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        layers[plain] = layers.get(plain, 0) + 1
    changes = ", ".join(name if n == 1 else f"{name} ({n})" for name, n in layers.items())
    yield "changes", f"{len(adapter.changes):,} matrices: {changes}" if changes else "nothing"


def _shape_facts(found: Inspection) -> Iterator[tuple[str, str]]:
    shape, quantization = found.shape, found.quantization
    if shape.n_weights:
        bits = f"{quantization.bits:.2f} bits a weight"
        yield "weights", f"{shape.n_weights:,} in {quantization.name}, {bits}"
    for rounding, n in quantization.activations.items():
        yield "", f"activations of {n} matrices: {rounding}"
    parts = (
        shape.n_layer and f"{shape.n_layer}{f' of width {shape.width}' if shape.width else ''}",
        shape.n_head and f"{_heads(shape.n_head)} heads",
        shape.n_head_kv and f"{_heads(shape.n_head_kv)} KV heads",
        shape.head and f"{shape.head} a head",
    )
    if any(parts):
        yield "layers", ", ".join(str(part) for part in parts if part)
    yield from _context_facts(shape)


def _context_facts(shape: ModelShape) -> Iterator[tuple[str, str]]:
    trained = f"{shape.n_ctx_train:,} tokens in training" if shape.n_ctx_train else ""
    memory = f"{shape.memory} memory" if shape.memory else ""
    unfit = ", which edgeguard cannot use" if shape.memory == "recurrent" else ""
    if trained or memory:
        yield "context", ", ".join(filter(None, (trained, memory))) + unfit
    if each := shape.kv_bytes_per_token:
        whole = f", {_size(each * shape.n_ctx_train)} in all" if shape.n_ctx_train else ""
        yield "", f"{each:,} bytes a token of {shape.kv_type} keys and values{whole}"


def _heads(numbers: Numbers) -> str:
    if isinstance(numbers, int):
        return str(numbers)
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _tokenizer_facts(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    kind = f"{tokenizer.model}, pre-tokenizer {tokenizer.pre}" if tokenizer.pre else tokenizer.model
    control = "" if tokenizer.n_control is None else f", {tokenizer.n_control:,} of them control tokens"
    yield "tokenizer", f"{kind}, {tokenizer.n_tokens:,} tokens{control}"
    if tokenizer.bos:
        put = {True: ", put before each prompt", False: ", not put before prompts", None: ""}
        yield "", f"begin: {_token(tokenizer.bos)}{put[tokenizer.adds_bos]}"
    yield "", f"end: {', '.join(map(_token, tokenizer.ends)) or 'not known'}"


def _token(token: Token) -> str:
    return f"{token.text} ({token.id})"


def _template_facts(template: str | None) -> Iterator[tuple[str, str]]:
    if template is None:
        yield "template", "none"
        return
    yield "template", f"{len(template):,} characters, beginning"
    lines = template[:_TEMPLATE_CHARS].strip("\n").split("\n")[:_TEMPLATE_LINES]
    shown = len("\n".join(lines))
    for i, line in enumerate(lines, 1):
        yield "", f"{line}{'…' if i == len(lines) and shown < len(template.strip()) else ''}"


def _profile(found: Inspection) -> str:
    if found.profile:
        return f"{found.profile}, told by the file"
    if found.profiles:
        return f"several fit; pass --profile with one of {', '.join(found.profiles)}"
    general = "`instruct` for a general chat model, " if found.chat_template else ""
    return f"not certain; pass --profile with {general}a name from `edgeguard profiles`, or a TOML file"


def _provenance_facts(made: Provenance) -> Iterator[tuple[str, str]]:
    states = {
        "as converted": "as converted: the hashes in its manifest are those of the files",
        "changed since": f"changed since, against its manifest: {', '.join(made.changed)}",
        "not known": "no manifest beside it: it may have changed since",
    }
    options = "".join(f", {key} {value}" for key, value in made.options.items())
    yield "made", f"edgeguard convert --to {made.to}{options}"
    yield "", states[made.state]
    for source in made.sources:
        yield "", " ".join(filter(None, ("from", source.role, source.file)))
        yield "", f"  {source.sha256}"
    if made.tools:
        yield "", "by " + ", ".join(f"{tool} {version}" for tool, version in made.tools.items())


def _size(n_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"


# Tables


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Columns, those of numbers with a > before their name; nothing in the rows is taken for markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        if name.startswith(">"):
            table.add_column(name[1:], justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _types_table(found: Inspection) -> Table:
    types = found.quantization.types
    columns = ("type", ">tensors", ">weights", ">bytes", ">bits a weight")
    rows = [
        (t.type_name, f"{t.n_tensors:,}", f"{t.n_weights:,}", f"{t.n_bytes:,}", f"{t.bits:.2f}" if t.n_weights else "")
        for t in types
    ]
    if len(types) > 1:
        tensors, weights, n_bytes = (
            sum(getattr(t, f"n_{what}") for t in types) for what in ("tensors", "weights", "bytes")
        )
        rows.append(("together", f"{tensors:,}", f"{weights:,}", f"{n_bytes:,}", f"{found.quantization.bits:.2f}"))
    return _table(columns, rows)


def _tensors_table(found: Inspection) -> Table:
    rows = [(t.name, " × ".join(map(str, t.shape)), t.type_name, f"{t.n_bytes:,}") for t in found.tensors]
    return _table(("tensor", "shape", "type", ">bytes"), rows)


def _print_files(title: str, files: Sequence[File]) -> None:
    """Name, bytes, and as much of the hash as there is room for."""
    from edgeguard.cli.screen.console import plain_console

    if not files:
        return
    console = plain_console()
    names, sizes = max(len(printable(f.name)) for f in files), max(len(f"{f.n_bytes:,}") for f in files)
    room = max(_SHORTEST_HASH, console.width - names - max(sizes, 5) - 4)
    rows = [(f.name, f"{f.n_bytes:,}", f.sha256 if room >= 64 else f.sha256[: room - 1] + "…") for f in files]
    console.print()
    console.print(_table((title, ">bytes", "sha256"), rows))
