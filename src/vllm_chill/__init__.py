"""vllm-chill: a reverse proxy that wakes vLLM when a request comes and puts it to sleep when nobody uses it."""
