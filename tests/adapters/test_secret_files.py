from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from vllm_chill.adapters.secret_files import SecretFile, keys_file, upstream_key_file
from vllm_chill.core.keys import Keys, hashed
from vllm_chill.errors import SettingError

structlog.reset_defaults()


def entry(secret: str) -> str:
    return f"keys: [{{name: a, key: '{hashed(secret)}'}}]"


class Kept:
    """What a file was last said to hold."""

    def __init__(self, path: Path) -> None:
        self.keys = Keys()
        self.times = 0
        self.file: SecretFile[Keys] = keys_file(path, self._use)

    def _use(self, keys: Keys) -> None:
        self.keys = keys
        self.times += 1

    def knows(self, secret: str) -> bool:
        return self.keys.find(secret.encode()) is not None


def test_a_file_that_has_not_changed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(entry("one"))
    kept = Kept(path)
    for _ in range(3):
        kept.file.look()
    assert kept.times == 1
    assert kept.knows("one")


def test_a_file_that_was_written_over_or_moved_into_place_counts_at_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(entry("one"))
    kept = Kept(path)
    path.write_text(entry("other"))
    with capture_logs() as logs:
        kept.file.look()
    assert kept.knows("other")
    assert not kept.knows("one")
    assert [line["event"] for line in logs] == ["the file was read anew"]
    (tmp_path / "next").write_text(entry("third"))
    (tmp_path / "next").replace(path)
    kept.file.look()
    assert kept.knows("third")


def test_a_secret_whose_links_kubernetes_swaps_counts_at_the_next_look(tmp_path: Path) -> None:
    for name, secret in (("..1", "one"), ("..2", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(entry(secret))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys").symlink_to("..data/keys")
    kept = Kept(tmp_path / "keys")
    assert kept.knows("one")
    (tmp_path / "..data_tmp").symlink_to("..2")
    os.replace(tmp_path / "..data_tmp", tmp_path / "..data")  # noqa: PTH105 - a link itself is moved
    kept.file.look()
    assert kept.knows("two")


@pytest.mark.parametrize("bad", ["keys: [", "keys: [{name: a, key: sk-PLAIN}]", None, b"\xff\xfe"])
def test_a_file_that_is_no_good_changes_nothing_and_is_told_of_once(tmp_path: Path, bad: str | bytes | None) -> None:
    path = tmp_path / "keys"
    path.write_text(entry("one"))
    kept = Kept(path)
    if bad is None:
        path.unlink()
    else:
        path.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    with capture_logs() as logs:
        for _ in range(3):
            kept.file.look()
    [line] = logs
    assert line["event"] == "what was in the file before counts yet"
    assert line["cause"].startswith(f"--api-keys-file {path}: ")
    assert "sk-PLAIN" not in str(line)
    assert kept.knows("one")
    path.write_text(entry("two"))
    kept.file.look()
    assert kept.knows("two")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "the file cannot be read: No such file or directory"),
        ("keys: 1", 'give "keys:" with a list, as `vllm-chill keys new NAME` prints it'),
        (b"\xff", "the file is no text in UTF-8"),
        ("#" * (5 << 20), "the file is larger than 4 MiB"),
    ],
)
def test_at_the_start_it_has_to_be_good(tmp_path: Path, content: str | bytes | None, sentence: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingError) as caught:
        Kept(path)
    assert caught.value.message == f"--api-keys-file {path}: {sentence}"


def test_the_engines_key_is_what_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "key"
    used: list[bytes] = []
    path.write_text("  engine-key\n")
    file = upstream_key_file(path, used.append)
    path.write_text("another-key")
    file.look()
    assert used == [b"Bearer engine-key", b"Bearer another-key"]


@pytest.mark.parametrize("text", ["", "two words", "a\r\nX: y", "schlüssel"])
def test_a_key_that_no_header_can_have_is_refused_and_not_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(SettingError) as caught:
        upstream_key_file(path, print)
    assert caught.value.message == (
        f"--upstream-api-key-file {path}: it is to have one key and nothing else, without spaces"
    )
