"""A page that says something else than what happens is found out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs.blocks import Reader, blocks_of, is_as_shown

HERE = {"PATH": os.environ["PATH"]}


def page(block: str, said: str = "", language: str = "console") -> str:
    return f"Some words.\n\n{said}\n```{language}\n{block}\n```\n"


def read(folder: Path, text: str) -> int:
    with Reader(folder, HERE, seconds=20.0, patience=0.3) as reader:
        return reader.read(text)


# --- what is in a page ---


def test_a_console_block_has_its_commands_with_what_they_print() -> None:
    [block] = blocks_of(page("$ one \\\n    more\n1\n2\n$ two"))
    assert [(command.text, command.shown) for command in block.commands] == [
        ("one \\\n    more", ("1", "2")),
        ("two", ()),
    ]


def test_other_languages_are_no_commands() -> None:
    assert blocks_of(page("a: 1", language="yaml")) == []


def test_a_comment_is_for_the_next_block_alone() -> None:
    text = page("$ one", "<!-- not run: it needs a GPU -->") + page("$ two")
    assert [block.not_run for block in blocks_of(text)] == ["it needs a GPU", None]


def test_a_comment_that_nobody_understands_is_an_error() -> None:
    with pytest.raises(ValueError, match="nobody knows how to run a block 'backwards'"):
        blocks_of(page("$ one", "<!-- run: backwards -->"))


# --- what is shown ---


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        pytest.param(["phase   ready, for 2s"], "phase      ready, for 1m13s", id="times"),
        pytest.param(
            ["2026-11-21 8", "since 2026-11-21T08:00:00Z"], "2026-11-22 8\nsince 2026-11-22T09:13:05Z", id="days"
        ),
        pytest.param(["endpoints 127.0.0.1:41397"], "endpoints 10.2.0.7:8000", id="addresses"),
        pytest.param(["vllm-6c9f7d5b8-x2x4k up"], "vllm-7d8f5c6b99-abcde up", id="pods"),
        pytest.param(["vllm-chill 0.1.0"], "vllm-chill 0.2.1.dev3+g1a2b3c4", id="versions"),
        pytest.param(["a", "...", "z"], "a\nb\nc\nz", id="lines between"),
        pytest.param(["a", "...", "z"], "a\nz", id="no lines between"),
        pytest.param(['{"id": ...'], '{"id": "7", "model": "m"}', id="the rest of a line"),
    ],
)
def test_what_is_another_one_each_time_does_not_matter(shown: list[str], printed: str) -> None:
    assert is_as_shown(tuple(shown), printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        pytest.param(["phase asleep, for 2s"], "phase ready, for 2s", id="another word"),
        pytest.param(["replicas 0"], "replicas 1", id="another number"),
        pytest.param(["a"], "a\nb", id="a line more"),
        pytest.param(["a", "b"], "a", id="a line less"),
        pytest.param(["404"], "200", id="another status"),
    ],
)
def test_anything_else_does(shown: list[str], printed: str) -> None:
    assert not is_as_shown(tuple(shown), printed)


# --- what happens ---


def test_a_page_is_typed_in_its_order_in_one_terminal(tmp_path: Path) -> None:
    text = page("NAME=there\nmkdir there", language="sh") + page('$ cd "$NAME"\n$ basename "$PWD"\nthere')
    assert read(tmp_path, text) == 2


@pytest.mark.parametrize(
    "text", [page("$ echo one\ntwo"), page("$ false"), page("false", language="sh"), page("true; false", language="sh")]
)
def test_a_page_that_is_wrong_fails(text: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="line 4: "):
        read(tmp_path, text)


def test_what_takes_its_time_is_looked_at_again(tmp_path: Path) -> None:
    text = page("$ echo -n x >> seen; cat seen; echo\nxxx", "<!-- run: again until it is so, for 20 s -->")
    assert read(tmp_path, text) == 1


def test_what_is_not_run_is_not_run(tmp_path: Path) -> None:
    assert read(tmp_path, page("$ touch there", "<!-- not run: it would be there -->")) == 0
    assert not (tmp_path / "there").exists()


def test_another_terminal_goes_on_beside_it_and_is_looked_at_in_the_end(tmp_path: Path) -> None:
    said = "<!-- run: in another terminal -->"
    text = page("$ tail -n +1 -f seen\none\ntwo", said) + page("echo two >> seen", language="sh")
    (tmp_path / "seen").write_text("one\n")
    assert read(tmp_path, text) == 2
    with pytest.raises(AssertionError, match="line 4: "):
        read(tmp_path, text.replace("\ntwo", "\nthree"))


def test_ctrl_c_ends_the_other_terminal(tmp_path: Path) -> None:
    begin = page('$ sh -c "echo $$ > pid; echo up; exec sleep 60"\nup', "<!-- run: in another terminal -->")
    text = (
        begin + "\n<!-- run: Ctrl-C in the other terminal -->\n" + page('test ! -e "/proc/$(cat pid)"', language="sh")
    )
    assert read(tmp_path, text) == 3
