"""The listening process: it queues and answers, and imports no Seamless package.

- From start to end: ``lifecycle``, ``workingdirectory``, ``ending``, ``idle``, ``statusfile``,
  ``guardian``, ``eventlog``.
- Connections: ``http`` takes in what ``acceptor`` accepts, and ``connection`` serves it;
  ``access``, ``doorstep``, ``loopback``, ``refusals`` and ``places`` say who gets in, and
  ``hangups`` notices who goes.
- Requests: ``requestreader``, ``routes``, ``payload``, ``response``.
- Jobs, on one event loop, which ``bridge`` leads to: ``service`` with ``ledger``, ``jobs``,
  ``hosting``, ``attempt``, ``failures`` and ``errands``.
- Workers: ``slots``, ``slot``, ``workers``, ``casualties``. The states of jobs and slots move by
  ``transitions``.
- For people who watch: ``watching``, ``overview``, ``journal``, ``joboutput``, ``exposition``,
  ``metrics`` and the files of ``page``.
"""
