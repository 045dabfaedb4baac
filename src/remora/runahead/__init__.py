"""Run-ahead: what a program says next, how far to run ahead of it, and what to undo. Decisions only."""
