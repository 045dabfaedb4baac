"""Decides what runs and lives where: cost model, devices and links, policies. Pure, without torch."""
