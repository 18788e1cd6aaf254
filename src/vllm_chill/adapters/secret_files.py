"""Files with secrets that a running proxy uses: the keys of its callers, and its own key for the engines.

The rule: what is wrong with a file that was good before changes nothing: what was in it counts until there is a better
one, and one log line says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from vllm_chill.adapters.followed_file import FollowedFile
from vllm_chill.api.keys_file import read_keys
from vllm_chill.core.keys import Keys
from vllm_chill.errors import InvalidKeys, SettingError

_T = TypeVar("_T")
_TOKEN = re.compile(r"[!-~]+")


class SecretFile(Generic[_T]):
    """One file, whose content `use` is given now and after each change. Raises SettingError if it is no good now."""

    def __init__(self, file: FollowedFile, parse: Callable[[str], _T], use: Callable[[_T], None]) -> None:
        self._file = file
        self._parse = parse
        self._use = use
        self._log = structlog.get_logger("vllm_chill.secret_files")
        self._read()

    def look(self) -> None:
        """Use what is in the file if it is another one than before."""
        if self._file.changed:
            self.read_anew()

    def read_anew(self) -> None:
        """Use what is in the file now, if it is any good."""
        try:
            self._read()
        except SettingError as error:
            self._log.warning("what was in the file before counts yet", cause=error.message)
        else:
            self._log.info("the file was read anew", file=self._file.name)

    def _read(self) -> None:
        text = self._file.read()
        try:
            content = self._parse(text)
        except InvalidKeys as error:
            raise SettingError("\n".join(f"{self._file.name}: {problem}" for problem in error.problems)) from None
        self._use(content)


def keys_file(path: Path, use: Callable[[Keys], None]) -> SecretFile[Keys]:
    """That of --api-keys-file."""
    return SecretFile(FollowedFile(path, "--api-keys-file"), read_keys, use)


def upstream_key_file(path: Path, use: Callable[[bytes], None]) -> SecretFile[bytes]:
    """That of --upstream-api-key-file; `use` is given the value of the field Authorization."""
    return SecretFile(FollowedFile(path, "--upstream-api-key-file"), _authorization, use)


def _authorization(text: str) -> bytes:
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise InvalidKeys(("it is to have one key and nothing else, without spaces",))
    return f"Bearer {token}".encode()
