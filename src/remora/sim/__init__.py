"""What a recorded program would take on other links, devices and executors: simulated event by event."""
