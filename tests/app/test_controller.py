from __future__ import annotations

import subprocess
import sys

_CODE = """
import sys, vllm_chill.app.controller
found = sorted(name for name in sys.modules if name.startswith("vllm_chill.proxy"))
sys.exit("the proxy too: " + ", ".join(found) if found else 0)
"""


def test_the_controller_does_not_carry_the_proxy_along() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
