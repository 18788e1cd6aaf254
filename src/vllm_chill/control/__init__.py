"""The async shell round the core. It knows ports, never adapters."""
