"""The dashboard: one page, put together from its files whenever somebody opens it, so that none of it is kept.

The rule: it is the same for everybody and knows nothing. Its script asks for what it shows, as any client may, and
writes it as text, so that no name of a model or of a client is ever read as anything else.
"""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import hdrs, web

from vllm_chill.web.page import html_headers

_FOLDER = Path(__file__).with_name("dashboard_page")
_PART = re.compile(r"/\* ([a-z]+\.(?:css|js)) \*/\n")


async def page(request: web.BaseRequest) -> web.Response:
    """The page. Without the slash at its end a path is led to it, as what the page asks for is relative to that."""
    if not request.raw_path.partition("?")[0].endswith("/"):
        return web.Response(status=308, headers={hdrs.LOCATION: "proxy/"})
    text = read()
    return web.Response(body=text.encode(), headers=html_headers(text))


def read() -> str:
    """The whole page, with its style and its script in it."""
    page = (_FOLDER / "page.html").read_text("utf-8")
    return _PART.sub(lambda found: (_FOLDER / found[1]).read_text("utf-8"), page)
