"""`vllm-chill completion`: the script that has a shell complete its commands, options and models."""

from __future__ import annotations

import os
from typing import ClassVar

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

_EPILOG = """\b
For this shell, and for every one from now on:
  eval "$(vllm-chill completion bash)"
  echo 'eval "$(vllm-chill completion bash)"' >> ~/.bashrc

\b
  source <(vllm-chill completion zsh)
  echo 'source <(vllm-chill completion zsh)' >> ~/.zshrc

\b
  vllm-chill completion fish > ~/.config/fish/completions/vllm-chill.fish
"""

# Click's own hands over the words that bash has split the line into, also at the colons that names of models have,
# and at equals signs. Here it is the line up to the cursor.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value
    response=$(env COMP_LINE="${COMP_LINE:0:$COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
%(complete_var)s=bash_complete "$1" 2> /dev/null)
    COMPREPLY=()
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s 2> /dev/null || complete -F %(complete_func)s %(prog_name)s
"""


class LineComplete(BashComplete):
    """Completion for bash, from the line as it is typed."""

    source_template: ClassVar[str] = _BASH

    def source(self) -> str:
        """The script, whichever bash is going to read it."""
        return self.source_template % self.source_vars()

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is typed, and that one."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        typed = "" if not words or line[-1:].isspace() else words.pop()
        return words[1:], typed

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """What may stand there, without what bash takes for words before it."""
        found = super().get_completions(args, incomplete)
        value = incomplete.partition("=")[2] if incomplete.startswith("-") else incomplete
        kept = max((value.rfind(sign) + 1 for sign in ":=" if sign in os.environ.get("COMP_WORDBREAKS", "")), default=0)
        for item in found:
            if item.type == "plain":
                item.value = item.value[kept:]
        return found


def use_line() -> None:
    """Have bash be completed from the line."""
    add_completion_class(LineComplete)


@click.command(short_help="Print the script that completes commands in your shell.", epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that has SHELL complete the commands, their options, and the names of models.

    The models are those of the proxy that --url or VLLM_CHILL_URL names; while it cannot be asked there are none.
    """
    from vllm_chill.cli import COMPLETE_VARIABLE, NAME, cli

    use_line()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, NAME, COMPLETE_VARIABLE).source(), nl=False)
