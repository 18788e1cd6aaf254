"""`vllm-chill keys new`: a new API key, and the entry for the file of keys."""

from __future__ import annotations

import secrets

import click
import yaml
from pydantic import ValidationError

from vllm_chill.api.keys_file import KeyEntry
from vllm_chill.cli.output import json_option, print_json
from vllm_chill.core.keys import hashed
from vllm_chill.errors import SettingError

_EPILOG = """\b
Examples:
  vllm-chill keys new team-a --model qwen --model 'llama-*' >> entry.yaml
  vllm-chill keys new operator --admin --json
"""
_BYTES = 32
_PREFIX = "chill-"


@click.group(short_help="Make API keys for the callers of a proxy.")
def keys() -> None:
    """Make API keys for the callers of a proxy that runs with --api-keys-file."""


@keys.command(short_help="Make a key.", epilog=_EPILOG)
@click.argument("name")
@click.option("--model", "models", multiple=True, help="A model that it may use; * in it is any text. Not given: all.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="The class in which its requests wait.")
@click.option("--requests-per-minute", type=click.IntRange(1, 10_000_000), help="How many requests it may send.")
@click.option("--admin", is_flag=True, help="It may wake, stop, switch and scale too.")
@json_option
def new(
    name: str,
    models: tuple[str, ...],
    priority: str | None,
    requests_per_minute: int | None,
    admin: bool,
    as_json: bool,
) -> None:
    """Make a key for whoever is called NAME.

    The key goes to standard error, once, and is nowhere else; the entry for the file goes to standard output, so that
    it can be appended to a file. --json prints both to standard output: {"key": KEY, "entry": ENTRY}.
    """
    secret = _PREFIX + secrets.token_urlsafe(_BYTES)
    entry: dict[str, object] = {"name": name, "key": hashed(secret)}
    if models:
        entry["models"] = list(models)
    if priority is not None:
        entry["priority"] = priority
    if requests_per_minute is not None:
        entry["requestsPerMinute"] = requests_per_minute
    if admin:
        entry["admin"] = True
    try:
        KeyEntry.model_validate(entry)
    except ValidationError:
        accepts = KeyEntry.model_fields["name"].json_schema_extra
        assert isinstance(accepts, dict)
        raise SettingError(f'"{name}" is no name for a key; give {accepts["accepts"]}') from None
    if as_json:
        print_json({"key": secret, "entry": entry})
        return
    click.echo(f'The key of "{name}", which is shown this once:\n\n  {secret}\n', err=True)
    click.echo('The entry for the file of --api-keys-file, under "keys:":\n', err=True)
    click.echo(yaml.safe_dump([entry], sort_keys=False, default_flow_style=None, width=200), nl=False)
