"""`vllm-chill crd`: what a cluster has to know before it can have models, scaling policies and variants."""

from __future__ import annotations

import click

from vllm_chill.cli.output import json_option, print_json
from vllm_chill.core.objects import Json

_HEAD = "# Made from the fields of vllm_chill.api; `vllm-chill crd` prints it.\n"


def crd_yaml(made: Json) -> str:
    """A CustomResourceDefinition as a file to apply."""
    import yaml

    return _HEAD + str(yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=118))


_EPILOG = """\b
Examples:
  vllm-chill crd | kubectl apply -f -
"""


@click.command(name="crd", short_help="Print the CustomResourceDefinitions to apply.", epilog=_EPILOG)
@json_option
def print_crd(as_json: bool) -> None:
    """Print the CustomResourceDefinitions that let a cluster have models, scaling policies and variants.

    They are YAML, one document each; --json prints one List of them, which kubectl takes too.
    """
    from vllm_chill.api.crd import crds

    if as_json:
        print_json({"apiVersion": "v1", "kind": "List", "items": list(crds())})
        return
    click.echo("---\n".join(map(crd_yaml, crds())), nl=False)
