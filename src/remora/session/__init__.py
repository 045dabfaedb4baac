"""The session: composes recording, uploads, sends, waits, reconnects. Public surface: connect, disconnect, stats."""
