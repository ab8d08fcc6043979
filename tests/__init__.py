"""The tests: ``python -m unittest`` runs them all, against real parts.

``stack`` starts those parts: the hashserver, the database and the jobserver, each as a process.
Environment variables point the tests at other subjects, or have them do more:

- ``SEAMLESS_JOBSERVER_TEST_PYTHON``: the interpreter whose environment holds the jobserver, when
  it is another than that of the tests (one without aiohttp, say).
- ``SEAMLESS_JOBSERVER_TEST_UPSTREAM``: the path of upstream's command, installed in an environment
  of its own; the protocol tests then run over it too.
- ``SEAMLESS_JOBSERVER_TEST_RACES``: how many connections of another user try to get in.
- ``SEAMLESS_JOBSERVER_TEST_SCREENSHOTS``: a directory for pictures of the status page.
"""
