"""What the shell is told while a command line is being typed: the names of models, from the proxy.

The rule: a line that is being typed waits for nobody. A proxy that is away, slow, or wants a key that is not there
completes nothing, and says nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from vllm_chill.errors import AskFailed, SettingError

_PATIENCE_SECONDS = 1.0

Command = TypeVar("Command", bound=Callable[..., Any])


def model_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the proxy's models that begin so, each with how its model is."""
    from vllm_chill.api.choice import AvailableModels
    from vllm_chill.cli.asking import DEFAULT_URL, Proxy
    from vllm_chill.core.routing import Route

    with contextlib.suppress(AskFailed, SettingError):
        proxy = Proxy(ctx.params.get("url") or DEFAULT_URL, _PATIENCE_SECONDS)
        models = proxy.get(Route.PROXY_AVAILABLE.value, AvailableModels).models
        names = {name: model.state for model in models for name in (model.servedModelName, *model.aliases) if name}
        return [CompletionItem(name, help=state) for name, state in names.items() if name.startswith(incomplete)]
    return []


def model_argument(command: Command) -> Command:
    """Give a command the argument MODEL, which may be left out."""
    return click.argument("model", required=False, shell_complete=model_names)(command)
