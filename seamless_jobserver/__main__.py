"""``python -m seamless_jobserver``: the command, where its script is not on the PATH."""

from seamless_jobserver.cli import main

# Spawned workers import this module again under another name, and must not start a server.
if __name__ == "__main__":
    raise SystemExit(main())
