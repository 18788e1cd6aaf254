"""The command line as a program that ends, in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

import pytest

from vllm_chill.cli import main


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


def ended(*arguments: str) -> Ended:
    """What a command line ends with, and what it has printed."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["vllm-chill", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert isinstance(end.value.code, int)
    return Ended(end.value.code, out.getvalue(), err.getvalue())
