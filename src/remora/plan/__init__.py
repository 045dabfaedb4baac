"""The planner: what runs where, at what cost, and why. Pure; the simulator runs the same code."""
