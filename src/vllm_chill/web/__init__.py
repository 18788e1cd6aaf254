"""The listening side: which request goes where, the proxy's own pages, and the end of it all."""
