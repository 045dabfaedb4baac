"""Which executors exist: given by address, or one started on this machine."""
