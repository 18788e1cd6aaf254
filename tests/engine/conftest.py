from __future__ import annotations

from tests.engines import llama_cpp_command as llama_cpp_command
