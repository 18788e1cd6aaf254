"""What the proxy's pages have in common: one style, and headers that let nothing but the page itself run in it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from aiohttp import hdrs

_STYLE = "/* page.css */\n"


def template(name: str) -> str:
    """A page's template, with the style in it that all have."""
    folder = Path(__file__).parent
    style = (folder / "page.css").read_text("utf-8")
    return (folder / name).read_text("utf-8").replace(_STYLE, style)


def html_headers(template: str) -> dict[str, str]:
    """The headers of a page that is made from this template: it is not kept, and runs what is in the template."""
    return {
        hdrs.CONTENT_TYPE: "text/html; charset=utf-8",
        hdrs.CACHE_CONTROL: "no-store",
        hdrs.VARY: hdrs.ACCEPT,
        "Content-Security-Policy": (
            f"default-src 'none'; style-src {_hash(template, 'style')}; script-src {_hash(template, 'script')}; "
            "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
        ),
        "Referrer-Policy": "same-origin",  # the button says with it where to come back to
        "X-Content-Type-Options": "nosniff",
    }


def _hash(template: str, tag: str) -> str:
    """The only content of this element that the page may have."""
    content = template.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
