"""What vllm-chill tells of itself: metrics, logs. Every name is declared once, here."""
