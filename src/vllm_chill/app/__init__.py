"""The whole program put together: settings in, a running proxy or a running controller out.

Each is imported by its own name, as the controller would otherwise carry the proxy along.
"""

from importlib.metadata import version

VERSION = version("vllm-chill")
