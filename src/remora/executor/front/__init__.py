"""The front: port, authentication, sessions and stored bytes. It imports no torch."""
