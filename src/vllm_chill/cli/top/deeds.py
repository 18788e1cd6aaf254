"""What a view asks of the proxy for one target: to wake it, to put it to sleep, what its engine wrote."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from vllm_chill.api.choice import OperationDone
from vllm_chill.api.status import TargetStatus
from vllm_chill.cli.asking import Proxy
from vllm_chill.cli.top.table import name_of
from vllm_chill.core.routing import Route
from vllm_chill.errors import AskFailed

_LOGS = "/proxy/logs"
_LINES = 20


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing to ask; `beginning` is what to say meanwhile, and `end` what to say when it is done."""

    beginning: str
    end: str
    path: str
    model: str | None

    @classmethod
    def wake(cls, target: TargetStatus) -> Deed:
        """Wake it, and wait for nothing: it is seen how it goes on."""
        name = name_of(target)
        path = f"{Route.PROXY_START.value}?wait=false"
        return cls(f"Waking {name} …", f"{name} is being woken.", path, target.model)

    @classmethod
    def sleep(cls, target: TargetStatus) -> Deed:
        """Put it to sleep."""
        name = name_of(target)
        return cls(f"Putting {name} to sleep …", f"{name} is asleep.", Route.PROXY_STOP.value, target.model)

    def ask(self, proxy: Proxy) -> None:
        """Ask it, and return when it is done. Raises AskFailed."""
        body = {} if self.model is None else {"model_id": self.model}
        proxy.post(self.path, body, OperationDone, waits=True)


def output_of(proxy: Proxy, target: TargetStatus) -> list[str] | None:
    """The last lines that its engine wrote; None where the proxy does not tell them."""
    query = {"lines": str(_LINES)} | ({} if target.model is None else {"model": target.model})
    try:
        return list(proxy.lines(f"{_LOGS}?{urlencode(query)}"))[-_LINES:]
    except AskFailed:
        return None
