"""How frames and bulk bytes travel: over HTTP, inside a process, or through a link that misbehaves."""
