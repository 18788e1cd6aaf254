"""`vllm-chill top`: a live view of a running proxy. Its lines are values, made from a status; only `app` draws."""
