"""The worker: one device context, its programs and its values."""
