"""`vllm-chill`, also as `python -m vllm_chill`.

`serve` idles for most of its life, and what reads its command line and its settings (click, pydantic) would be a fifth
of the memory that it idles with. So a process of their own reads them, while this one imports what it serves with.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from vllm_chill.adapters.authorities import without_authorities
from vllm_chill.errors import SettingError

if TYPE_CHECKING:
    from vllm_chill.settings.serve import Settings

_BOTH_NEED = ("asyncio", "importlib.metadata", "structlog", "vllm_chill.core.switching", "vllm_chill.settings.plain")
"""What takes time to import and the reader needs too: it is imported once, and all else while the other imports."""


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] != ["serve"]:
        from vllm_chill.cli import main as command_line

        command_line()
        return
    try:
        _serve()
    except SettingError as error:
        sys.stderr.write("".join(f"vllm-chill: {line}\n" for line in error.message.splitlines()))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(1)


def _serve() -> None:
    """`vllm-chill serve`. It ends as the reader did where there is nothing to serve, as after --help."""
    for name in _BOTH_NEED:
        import_module(name)
    receiving, sending = os.pipe()
    reader = os.fork()
    if reader == 0:
        os.close(receiving)
        _read(sending)
    os.close(sending)
    try:
        with without_authorities():
            import aiohttp  # noqa: F401
        from vllm_chill.app.serve import begin
        from vllm_chill.settings.plain import taken

        with os.fdopen(receiving, "rb") as told:
            text = told.read()
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1])
    if code < 0:
        sys.exit(f"vllm-chill: the process that reads the settings was ended by signal {-code}")
    if code or not text:
        sys.exit(code)
    begin(*taken(text))


def _read(sending: int) -> NoReturn:
    """The reader's life: the command line as ever, but that `serve` hands over what it was asked to do."""
    from vllm_chill.cli import main as command_line
    from vllm_chill.settings.plain import handed

    def hand_over(settings: Settings, command: tuple[str, ...]) -> None:
        with os.fdopen(sending, "wb") as told:
            told.write(handed(settings, command))

    code = 0
    try:
        command_line(hand_over)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    # Not an end as of any process: what was registered to run at the end is for the one that serves.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
