"""A small workflow: functions that run on the jobserver, their results, one execution record."""

import asyncio
import json

import seamless.config

seamless.config.init()

import seamless  # noqa: E402
from seamless.transformer import delayed, direct  # noqa: E402
from seamless_remote import database_remote  # noqa: E402


@direct
def add(a, b):
    import os

    print("add runs in process", os.getpid())
    return a + b


@direct
def reverse(text):
    return text[::-1]


@delayed
def primes(limit):
    found = []
    for number in range(2, limit):
        if all(number % prime for prime in found):
            found.append(number)
    return found


def main():
    print("add(20, 22) =", add(20, 22), flush=True)
    print("reverse('seamless') =", reverse("seamless"), flush=True)

    transformation = primes(100)
    print("primes(100) =", transformation.run(), flush=True)

    record = asyncio.run(
        database_remote.get_execution_record(transformation.transformation_checksum)
    )
    print("execution record of primes(100):", json.dumps(record, indent=2), flush=True)
    seamless.close()


if __name__ == "__main__":
    main()
