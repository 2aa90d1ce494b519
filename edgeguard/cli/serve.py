"""`edgeguard serve`: the guard behind HTTP."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import (
    calibration_options,
    load_arguments,
    models_options,
    reported_errors,
    search_options,
    workers_option,
)
from edgeguard.cli.say import say
from edgeguard.cli.score import estimator_option, window_option
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.serve.served import Opening

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.+)\Z", re.DOTALL)
_LIMITS = (
    "max_body",
    "max_inputs",
    "max_tokens",
    "queue",
    "timeout",
    "body_timeout",
    "connections",
    "drain",
)


@click.command(
    epilog="""\b
Examples:
  edgeguard serve
  edgeguard serve --categories openai --policy-file policies.toml
  edgeguard serve --host 0.0.0.0 --api-key-file keys.txt -m small=edgeguard-135m:q8_0 -m big=guard.gguf
\b
Then:
  curl http://127.0.0.1:8080/v1/moderations -H content-type:application/json -d '{"input": "How do I bake bread?"}'"""
)
@models_options
@workers_option
@estimator_option
@search_options
@calibration_options
@window_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: a free one")
@click.option(
    "--categories",
    metavar="openai|FILE",
    help="Names of /v1/moderations: OpenAI's, or those of a TOML file [default: the guard's own]",
)
@click.option(
    "--policy-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML with named thresholds, review bands, calibrations; clients ask for MODEL@POLICY. Read again at SIGHUP",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="KEY or NAME KEY a line; needed where other machines can reach --host. Read again at SIGHUP",
)
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="That a Host header may have besides this machine's own"
)
@click.option(
    "--cors-origin", multiple=True, metavar="ORIGIN", help="Of web pages that may ask, as https://example.org"
)
@click.option("--max-body", type=click.IntRange(1024), default=4 << 20, show_default=True, help="Bytes of a request")
@click.option("--max-inputs", type=click.IntRange(1), default=256, show_default=True, help="Records of a request")
@click.option("--max-tokens", type=click.IntRange(1), default=32768, show_default=True, help="Of a record's texts")
@click.option(
    "--queue", type=click.IntRange(1), default=1024, show_default=True, help="Records that may wait; more get 429"
)
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="Seconds of a request"
)
@click.option(
    "--body-timeout", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="Of its coming in"
)
@click.option("--connections", type=click.IntRange(1), default=1024, show_default=True, help="Open at once")
@click.option("--drain", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds to finish at SIGTERM")
@click.option("--log-text", is_flag=True, help="The log has the texts too; by default nothing of them is kept")
@click.option("--skip-self-test", is_flag=True, help="Serve a guard that does not tell its profile's two texts apart")
def serve(**options: Any) -> None:
    """Serve a guard over HTTP: OpenAI's /v1/moderations, edgeguard's own rows, and a page to try it.

    POST /v1/moderations, /v1/chat/moderations, /v1/score, /beta/litellm_basic_guardrail_api;
    GET /v1/models, /health, /ready, /metrics, and / in a browser. The scores are those of `edgeguard score`, bit for
    bit, whoever else asks. Each request is a line of JSON on stderr, without its text. SIGTERM ends the server when it
    has answered what it has taken.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise click.UsageError("the server needs more packages: pip install 'edgeguard[serve]'") from None
    with reported_errors():
        from edgeguard.serve.server import serve as serve_forever

        code = serve_forever(_taken(options), write=say, tell=lambda line: say(f"edgeguard: {printable(line)}"))
    sys.exit(code)


def _taken(options: dict[str, Any]) -> Any:
    from edgeguard.serve.limits import ServeLimits
    from edgeguard.serve.state import ServeOptions

    limit = {name: options.pop(name) for name in _LIMITS}
    try:
        limits = ServeLimits(
            body_bytes=limit["max_body"],
            inputs=limit["max_inputs"],
            tokens=limit["max_tokens"],
            queue=limit["queue"],
            seconds=limit["timeout"],
            body_seconds=limit["body_timeout"],
            connections=limit["connections"],
            drain_seconds=limit["drain"],
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--queue") from None
    own = {
        "host": options.pop("host"),
        "port": options.pop("port"),
        "limits": limits,
        "categories": options.pop("categories"),
        "policy_file": options.pop("policy_file"),
        "api_key_file": options.pop("api_key_file"),
        "allow_hosts": options.pop("allow_host"),
        "origins": options.pop("cors_origin"),
        "log_text": options.pop("log_text"),
        "self_tested": not options.pop("skip_self_test"),
    }
    return ServeOptions(_openings(**options), **own)


def _openings(*, models: tuple[str, ...], workers: int | None, **options: Any) -> tuple[Opening, ...]:
    """The models that are named, each opened by the same options."""
    from edgeguard.serve.served import Opening

    found = []
    for given in models or (None,):
        name, path = _named(given) if given is not None else (None, None)
        arguments = load_arguments(model=path, **options)
        found.append(Opening(name, {**arguments, "workers": workers}))
    names = [opening.name for opening in found if opening.name is not None]
    if len(set(names)) < len(names):
        raise click.BadParameter(f"two models are called {max(names, key=names.count)}", param_hint="--model")
    return tuple(found)


def _named(given: str) -> tuple[str | None, Path]:
    """NAME=MODEL, or MODEL alone; a file that is called so is itself."""
    named = None if Path(given).exists() else _NAMED.match(given)
    return (None, Path(given)) if named is None else (named[1], Path(named[2]))
