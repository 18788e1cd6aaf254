"""Each adapter is one port for one world. Adapters know nothing of the controller, and nothing of each other."""
