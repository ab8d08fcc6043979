"""What runs inside each worker process: an ordinary Seamless process that runs one job at a time.

It imports nothing of ``server``; the executor's pipe is the only way between the two.
"""
