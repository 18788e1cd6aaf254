"""What `serve` is asked to do, read anew for one that runs: `python -m vllm_chill.cli.read serve ...`.

It hands over on its standard output what app.reload takes; complaints are on its standard error, with exit status 2.
"""

from __future__ import annotations

import os

from vllm_chill.cli import main as command_line
from vllm_chill.settings.plain import handed
from vllm_chill.settings.serve import Settings


def main() -> None:
    """Read the command line, the environment and the file that they name."""
    told = os.dup(1)
    os.dup2(2, 1)  # what is printed, as by a library, is no part of it

    def hand_over(settings: Settings, command: tuple[str, ...]) -> None:
        with os.fdopen(told, "wb") as pipe:
            pipe.write(handed(settings, command))

    command_line(hand_over)


if __name__ == "__main__":
    main()
