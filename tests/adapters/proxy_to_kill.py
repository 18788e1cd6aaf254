"""A process that runs a command by a ProcessBackend and waits to be killed: what is left of the command then?

usage: proxy_to_kill.py COMMAND [ARGUMENT ...]; the command's output is passed on, `ready` follows.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

from tests.adapters.contract import Seen, is_ready
from tests.probing import probed
from vllm_chill.adapters.process import Command, ProcessBackend
from vllm_chill.core.target import TargetRef
from vllm_chill.proxy.upstream import UpstreamPool


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main() -> None:
    ref, seen = TargetRef("test", "killed"), Seen()
    async with (
        ProcessBackend(Command(tuple(sys.argv[1:])), say) as process,
        aclosing(UpstreamPool()) as pool,
        asyncio.TaskGroup() as tasks,
    ):
        backend = probed(process, pool)
        tasks.create_task(backend.watch(ref, seen))
        await backend.scale(ref, 1)
        await seen.until(is_ready)
        say("ready")
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main())
