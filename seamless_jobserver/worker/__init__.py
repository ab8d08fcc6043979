"""What runs inside each worker process: an ordinary Seamless process that runs one job at a time.

It imports nothing of ``server``; the executor's pipe is the only way between the two.

- A job: ``entry``, ``execution``, ``bash``, ``nested``, ``failure``, ``naming``, ``record``.
- Its buffers: ``staging`` with ``lane``, ``pins``, ``nearby``, ``readfolders`` and ``inputcache``;
  ``confirmations`` and ``safekeeping`` once it has a result.
- Apart from the next one: ``isolation``, ``limits``, ``capture``, ``memory``.
- What it takes: ``measure``, ``memorypeak``.
- ``storecheck``, for the command ``check``.
"""
