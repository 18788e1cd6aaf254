"""How many replicas one target should have, from 1 to N: what was measured, a policy, and the decision. Pure."""
