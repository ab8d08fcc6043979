"""A jobserver for Seamless: transformations arrive over HTTP, worker processes run them.

The architecture, from the outside in:

- ``cli`` and ``options``: flags and environment variables, exit codes.
- ``top`` and ``check``, which ask through ``asking`` and show through ``display``, and ``upload``:
  further commands, for people.
- ``server``: the listening process. It queues and answers, and imports no Seamless package.
- ``worker``: what runs inside each worker process, an ordinary Seamless process.
- ``transport``: lets seamless-remote run on the standard library alone.
- ``messages``, ``progress``, ``receipts``: what crosses between the two.
- ``errors``, ``http1``, ``processtree``, ``peer``, ``passwordfile``, ``spool``: what several know;
  pure standard library.
"""

__version__ = "1.0.0"
