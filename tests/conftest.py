"""What every test has."""

from __future__ import annotations

import asyncio

# pytest-asyncio asks for the current loop before a first test, and Python 3.11 makes one then that nobody closes.
asyncio.set_event_loop(None)
