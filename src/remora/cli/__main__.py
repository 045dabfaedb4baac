"""`python -m remora.cli`."""

from remora.cli.main import main

main()
