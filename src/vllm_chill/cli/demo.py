"""`vllm-chill demo`: the whole thing on one machine, with a demo engine in the place of vLLM."""

from __future__ import annotations

import sys
from datetime import datetime

import click

from vllm_chill.core.target import Asleep, Draining, Endpoint, Failed, Ready, Target, Waking

_WELCOME = """\
vllm-chill demo: a proxy on {url}, and behind it a demo engine.
The demo engine is no model and needs no GPU: it stands where vLLM would, and says so in its answers.
It is not running yet. It starts with the first request and ends {idle} after the last one.

Try this in another terminal:

  1. A request while nothing runs: it is held for about {load:g} s until the engine is ready, then streamed.

     curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{{"model": "demo", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'

  2. The same again: it is answered at once, as the engine is awake.

  3. How it is, and when it will sleep:

     vllm-chill status --url {url}

     or {url}/proxy/ in a browser, with who waits and a button to wake it.

  4. Wait {idle}, and ask for the status again: the engine is gone, and with it what it held.

Ctrl-C ends the demo. What happens:
"""


class Narrator:
    """A recorder that tells a person what happens, a line each."""

    def __init__(self, idle: str) -> None:
        self._idle = idle

    def changed(self, before: Target, after: Target, now: float) -> None:
        """Tell of a new phase."""
        match before.phase, after.phase:
            case _, Waking():
                self._say("a request came: the demo engine is started, and the request is held")
            case Waking(since=since), Ready():
                self._say(f"the engine is ready after {now - since:.1f} s: what was held is answered now")
            case _, Draining():
                self._say(f"nobody has used it for {self._idle}: the engine is told to end")
            case Draining(), Asleep():
                self._say("the engine is gone; the next request starts it again")
            case _, Failed(cause=cause):
                self._say(f"the engine failed: {cause}")
            case _:
                pass

    def progressed(self, target: Target, now: float) -> None:
        """The phases tell enough."""

    def answered(self, now: float) -> None:
        """The phases tell enough."""

    def departed(self, endpoint: Endpoint) -> None:
        """The phases tell enough."""

    def held(self, seconds: float) -> None:
        """Tell of a request that had to wait."""
        self._say(f"a request was held for {seconds:.1f} s")

    def scaled(self, target: Target, replicas: int, error: str | None) -> None:
        """The phases tell enough."""

    def _say(self, text: str) -> None:
        click.echo(f"  {datetime.now().astimezone():%H:%M:%S}  {text}")


@click.command(short_help="Show the whole thing here, with a demo engine.")
@click.option("--port", default="8080", metavar="PORT", help="Port of the proxy, on 127.0.0.1. [default: 8080]")
@click.option(
    "--idle-timeout", default="15s", metavar="DURATION", help="Sleep when unused for this long. [default: 15s]"
)
@click.option(
    "--load-seconds",
    default=3.0,
    type=click.FloatRange(0, 600),
    help="How long the demo engine takes to load. [default: 3]",
)
def demo(port: str, idle_timeout: str, load_seconds: float) -> None:
    """Show the whole thing on this machine with a demo engine: no model, no GPU, nothing to install."""
    from vllm_chill.app.plan import Plan
    from vllm_chill.app.serve import run
    from vllm_chill.settings.serve import load_settings
    from vllm_chill.telemetry.logs import configure_logging

    flags = {
        "backend": "process",
        "host": "127.0.0.1",
        "port": port,
        "idle_timeout": idle_timeout,
        "drain_timeout": "5s",
        "log_level": "warning",
        "state_dir": "",  # a demo leaves nothing behind
    }
    settings = load_settings(flags)
    engine = (
        *(sys.executable, "-m", "vllm_chill.demo_engine", "--model", "demo"),
        *("--port", "{port}", "--load-seconds", str(load_seconds)),
    )
    configure_logging(settings.log_format, settings.log_level)

    def welcome(host: str, bound: int) -> None:
        click.echo(_WELCOME.format(url=f"http://{host}:{bound}", idle=idle_timeout, load=load_seconds))

    plan = Plan(settings, engine, name="demo-engine")
    run(plan, recorders=(Narrator(idle_timeout),), listening=welcome)
