"""Placement: what runs and lives where, what it costs, and why. Pure: facts in, plans and explanations out."""
