from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from vllm_chill.adapters.kubernetes.client import connect
from vllm_chill.adapters.kubernetes.credentials import Access, InCluster, Kubeconfig, Places, find
from vllm_chill.errors import NoCredentials, SettingError

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def kubeconfig(server: str | None = "http://127.0.0.1:1", user: Mapping[str, object] | None = None) -> str:
    cluster = {"server": server} if server else {"insecure-skip-tls-verify": True}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": dict(user) if user else {"token": "secret"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
    )


def certificate() -> str:
    """Any certificate that this machine's Python comes with will do."""
    context = ssl.create_default_context()
    return ssl.DER_cert_to_PEM_cert(context.get_ca_certs(binary_form=True)[0])


@pytest.fixture
def account(tmp_path: Path) -> Path:
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text("first\n")
    (folder / "ca.crt").write_text(certificate())
    return folder


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A machine with nothing on it."""
    return Places({}, tmp_path / "serviceaccount", tmp_path / "config")


async def load(path: Path) -> Access:
    return await find(str(path), Places({}, path.parent, path.parent / "no")).load()


def test_without_any_credentials_it_says_where_it_looked_and_the_ways_on(places: Places) -> None:
    with pytest.raises(NoCredentials) as error:
        find(None, places)
    for words in (
        "--kubeconfig and KUBECONFIG are not set",
        "KUBERNETES_SERVICE_HOST is not set",
        str(places.kubeconfig),
        "`vllm-chill demo`",
        "`--backend process`",
    ):
        assert words in error.value.message


def test_a_pod_without_a_token_is_told_so(places: Places) -> None:
    with pytest.raises(NoCredentials, match="this pod has no service account token"):
        find(None, Places(POD, places.service_account, places.kubeconfig))


def test_a_named_kubeconfig_comes_first_then_a_pods_account_then_the_usual_file(
    places: Places, account: Path, tmp_path: Path
) -> None:
    named = tmp_path / "named"
    named.write_text(kubeconfig())
    places.kubeconfig.write_text(kubeconfig())
    in_a_pod = Places(POD, account, places.kubeconfig)
    assert isinstance(find(str(named), in_a_pod), Kubeconfig)
    assert isinstance(find(None, in_a_pod), InCluster)
    assert isinstance(find(None, places), Kubeconfig)


async def test_a_pods_token_is_read_anew_each_time_and_its_authority_kept(account: Path) -> None:
    credentials = InCluster(POD, account)
    before = await credentials.load()
    (account / "token").write_text("second")
    after = await credentials.load()
    assert (before.server, before.authorization) == ("https://10.0.0.1:443", "Bearer first")
    assert after.authorization == "Bearer second"
    assert after.tls is before.tls


async def test_a_pod_on_ipv6(account: Path) -> None:
    access = await InCluster({**POD, "KUBERNETES_SERVICE_HOST": "fd00::1"}, account).load()
    assert access.server == "https://[fd00::1]:443"


async def test_a_pods_broken_authority_is_a_setting_error(account: Path) -> None:
    (account / "ca.crt").write_text("nonsense")
    with pytest.raises(SettingError, match=r"ca\.crt is not a certificate"):
        await InCluster(POD, account).load()


@pytest.mark.parametrize("token", [b"", b" \n", b"a\nb", b"\xff\xfe"])
async def test_a_pods_token_that_is_none_is_a_setting_error(token: bytes, account: Path) -> None:
    (account / "token").write_bytes(token)
    with pytest.raises(SettingError, match="the service account cannot be read"):
        await InCluster(POD, account).load()


async def test_a_kubeconfig_with_a_token(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(kubeconfig())
    access = await load(file)
    assert (access.server, access.authorization) == ("http://127.0.0.1:1", "Bearer secret")


async def test_a_kubeconfig_with_a_login_command_runs_it_each_time(tmp_path: Path) -> None:
    command = tmp_path / "login"
    command.write_text(
        f"#!/bin/sh\necho x >>{tmp_path}/runs\n"
        'echo \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"t"}}\'\n'
    )
    command.chmod(0o755)
    file = tmp_path / "config"
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(command)}}
    file.write_text(kubeconfig(user=user))
    credentials = find(str(file))
    for _ in range(2):
        assert (await credentials.load()).authorization == "Bearer t"
    assert (tmp_path / "runs").read_text() == "x\nx\n"


async def test_several_kubeconfigs_are_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(kubeconfig())
    (tmp_path / "b").write_text(kubeconfig("http://127.0.0.1:2"))
    access = await find(f"{tmp_path}/missing:{tmp_path}/a:{tmp_path}/b").load()
    assert access.server == "http://127.0.0.1:1"


def test_a_kubeconfig_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"kubeconfig '.*/nope' does not exist: correct --kubeconfig or KUBECONFIG"):
        find(f"{tmp_path}/nope")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "does not have the form of a kubeconfig", id="empty"),
        pytest.param("{", "does not have the form of a kubeconfig", id="not YAML"),
        pytest.param("just words", "does not have the form of a kubeconfig", id="not a mapping"),
        pytest.param("a: b", "current-context", id="something else"),
        pytest.param(kubeconfig().replace("current-context: x", "current-context: y"), "name y", id="no such context"),
        pytest.param(kubeconfig(server=None), "its current cluster has no server", id="no server"),
        pytest.param(
            kubeconfig("https://127.0.0.1:1", {"client-certificate": "/nope", "client-key": "/nope"}),
            "/nope",
            id="a certificate that is not there",
        ),
        pytest.param(
            kubeconfig(user={"exec": {"apiVersion": "v1", "command": "/nope"}}), "/nope", id="no such login command"
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_broken_kubeconfig_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    with pytest.raises(SettingError) as error:
        await load(file)
    assert error.value.message.startswith(f"kubeconfig '{file}' cannot be used: ")
    assert words in error.value.message
    assert "\n" not in error.value.message


async def test_connecting_makes_no_call(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(kubeconfig())
    async with connect(str(file)) as api:
        assert api is not None


def test_a_pod_does_not_pay_for_the_library_that_reads_kubeconfigs() -> None:
    code = "import sys, vllm_chill.adapters.kubernetes.deployment; sys.exit('kubernetes_asyncio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
