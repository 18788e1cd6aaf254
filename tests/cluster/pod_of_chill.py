"""What the control plane's node runs in place of the image vllm-chill:TAG: the program, with what its pod would have.

pod_of_chill.py KUBECONFIG ARGUMENT...

The rule: it is the pod's ServiceAccount, with a token that the API server gave for it, and nothing more; KUBECONFIG, an
administrator's, is used to ask for that token alone. It listens on the pod's own address.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ACCOUNT = "vllm-chill"
SRC = Path(__file__).parents[2] / "src"


def main(admin: str, *arguments: str) -> None:
    asked = ("kubectl", "--kubeconfig", admin, "--namespace", os.environ["POD_NAMESPACE"], "create", "token", ACCOUNT)
    token = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    config = yaml.safe_load(Path(admin).read_text())
    config["users"] = [{"name": each["name"], "user": {"token": token}} for each in config["users"]]
    kubeconfig = Path(tempfile.mkdtemp()) / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    there = os.environ | {"KUBECONFIG": str(kubeconfig), "HOST": os.environ["POD_IP"], "PYTHONPATH": str(SRC)}
    os.execve(sys.executable, (sys.executable, "-m", "vllm_chill", *arguments), there)


if __name__ == "__main__":
    main(*sys.argv[1:])
