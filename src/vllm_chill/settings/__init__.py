"""Settings: those of the proxy in `serve`, those of the controller of variants in `controller`."""
