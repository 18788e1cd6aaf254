"""What is wrong with the surroundings of a proxy, and what to do about it: checks on what was read of them. Pure."""
