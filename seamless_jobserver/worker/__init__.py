"""What runs inside each worker process: an ordinary Seamless process that runs one job at a time.

It imports nothing of ``server``. Between the two are the executor's pipes, the pipe of receipts and
a file that shows the progress of a job; nested jobs are asked for over HTTP.

- A job: ``entry``, ``execution``, ``bash``, ``nested``, ``failure``, ``naming``, ``record``.
- Its buffers: ``staging`` with ``lane``; in by ``fetching`` with ``pins``, ``nearby``,
  ``readfolders`` and ``inputcache``, out by ``storing``, or ``unserved``; ``confirmations`` and
  ``safekeeping`` once it has a result.
- Apart from the next one: ``isolation``, ``leftovers``, ``limits``, ``capture``, ``memory``; from
  other threads: ``syntaxtrees``.
- What it takes: ``measure``, ``memorypeak``.
- ``storecheck``, for the command ``check``.
"""
