"""What all commands print in the same way: JSON for programs, errors, and what an exit status means."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from vllm_chill.errors import AskFailed, CannotBeAsked, ChillError, NotAllowed, TimeOver

USAGE = 2
INTERRUPTED = 130

EXIT_STATUSES: dict[int, str] = {
    0: "done",
    AskFailed.exit_status: "the answer is no: no such model, a start that failed, a number out of bounds",
    USAGE: "the command cannot be used so: an option, a file, or a setting",
    CannotBeAsked.exit_status: "the proxy, or the cluster, cannot be asked",
    NotAllowed.exit_status: "the key or token is missing, or is not for this",
    TimeOver.exit_status: "what was waited for did not come in time",
    INTERRUPTED: "ended by Ctrl-C",
}
"""What the commands end with; scripts rely on it."""

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Give a command the option that has it print JSON, and its errors too."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, and an error as JSON too.")(command)


def json_or_output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a command that had --output json before it had --json: it takes both."""

    @functools.wraps(command)
    def either(*arguments: Any, as_json: bool, output: str, **options: Any) -> Any:
        return command(*arguments, as_json=as_json or output == "json", **options)

    kinds = click.Choice(["text", "json"])
    option = click.option("--output", type=kinds, default="text", hidden=True, help="json is the same as --json.")
    return json_option(option(either))


def print_json(answer: bytes | object) -> None:
    """Print a JSON text, or what is to become one, as people can read it too."""
    value = json.loads(answer) if isinstance(answer, bytes) else answer
    click.echo(json.dumps(value, indent=2))


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, also one that cannot be understood as a whole."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in own


def print_error(error: ChillError | click.ClickException, *, as_json: bool) -> int:
    """Print an error to standard error; the exit status that goes with it."""
    status, code = USAGE, "usage"
    if isinstance(error, AskFailed):
        status, code = error.exit_status, error.code
    elif isinstance(error, click.ClickException):
        status = error.exit_code
    if as_json:
        answer = error.answer if isinstance(error, AskFailed) and error.answer is not None else None
        click.echo(json.dumps(answer or _envelope(_message(error), code), indent=2), err=True)
    elif isinstance(error, click.ClickException):
        error.show(sys.stderr)
    else:
        for line in error.message.splitlines():
            click.echo(f"vllm-chill: {line}", err=True)
    return status


def _message(error: ChillError | click.ClickException) -> str:
    return error.format_message() if isinstance(error, click.ClickException) else error.message


def _envelope(message: str, code: str) -> dict[str, object]:
    """An error that no proxy has told, in the shape of those that one tells."""
    return {"error": {"message": message, "type": "command_error", "code": code, "param": None}}
