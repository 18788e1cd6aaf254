"""What was saved, for whoever asks."""

from __future__ import annotations

from aiohttp import web
from msgspec import to_builtins

from vllm_chill.api.savings import savings_answer
from vllm_chill.control.savings import Savings
from vllm_chill.errors import BadRequest

MOST_DAYS = 100_000
"""As many as anybody can ask for: more than there are."""
_DIGITS = 9


class SavingsPage:
    """The answer to GET /proxy/savings. `price` is that of a GPU-hour, None where nobody says."""

    def __init__(self, savings: Savings | None = None, price: float | None = None, currency: str = "USD") -> None:
        self._savings = savings or Savings()
        self._price = price
        self._currency = currency

    def priced(self, price: float | None, currency: str) -> None:
        """Take another price."""
        self._price, self._currency = price, currency

    async def tell(self, request: web.BaseRequest) -> web.Response:
        """What was counted until now, here and by other proxies. Raises BadRequest."""
        answer = savings_answer(await self._savings.refreshed(), self._price, self._currency, _days(request))
        return web.json_response(to_builtins(answer))


def _days(request: web.BaseRequest) -> int | None:
    match request.query.get("days"):
        case None:
            return None
        case text if text.isascii() and text.isdecimal() and len(text) <= _DIGITS and int(text) <= MOST_DAYS:
            return int(text)
        case other:
            raise BadRequest(f'days="{other}" is not known; give a number of days from 0 to {MOST_DAYS}.')
