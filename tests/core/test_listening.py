from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.listening import ListenAddress, parse_listen_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":8443", None, 8443),
        (" :8443 ", None, 8443),
        ("0.0.0.0:8443", "0.0.0.0", 8443),
        ("[::]:8443", "::", 8443),
        ("[fe80::1%eth0]:8443", "fe80::1%eth0", 8443),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("localhost:65535", "localhost", 65535),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str | None, port: int) -> None:
    assert parse_listen_address(text) == ListenAddress(host, port)


def test_zero_is_nowhere() -> None:
    assert parse_listen_address("0") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("8443", r"'8443' is not an address to listen on: give :PORT, HOST:PORT, \[IPV6\]:PORT, or 0 for none$"),
        ("", "'' is not an address to listen on: give :PORT"),
        ("::1", r"'::1' is not an address to listen on: .*, with brackets: \[::1\]:8443$"),
        ("::", r", with brackets: \[::\]:8443$"),
        (":65536", "a port is at most 65535"),
        (":https", "give :PORT"),
        ("[nothing]:1", r"\[nothing\] is not an IPv6 address"),
        ("[]:1", r"\[\] is not an IPv6 address"),
        ("http://a:1", "is not an address to listen on"),
        ("a b:1", "'a b' is not a host"),
    ],
)
def test_what_is_no_address_is_told_with_what_is(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_listen_address(text)


@given(st.sampled_from([None, "a", "127.0.0.1", "::", "fe80::1"]), st.integers(0, 65535))
def test_what_an_address_says_is_read_as_that_address(host: str | None, port: int) -> None:
    address = ListenAddress(host, port)
    assert parse_listen_address(str(address)) == address
