"""Messages, frames and their limits. Everything here is checked before anything is allocated."""
