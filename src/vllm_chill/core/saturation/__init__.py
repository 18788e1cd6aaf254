"""How many replicas the variants of one model have, by how saturated they are. Pure.

What is known (`fleet`) is judged (`saturation` or `spare`: capacity that is lacking, and that could go), kept steady
(`steady`), dealt out over the variants at the least cost (`optimize`), kept to the GPUs that there are (`limit`) and to
what zero means (`idle`); `decide` has them in their order, with the trail of each step.
"""
