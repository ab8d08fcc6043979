"""The floor: jobs run by a bare script, with no server at all. Run as a script, not imported.

It fetches the inputs of a job, has `run_transformation_dict` run it, and stores the result with
confirmation. Inputs come from the read folder, opened, read and checked, or else all together from
the hashserver, through seamless-remote and the aiohttp that it asks for, on one event loop with
connections that stay open. Nothing of this project is used. A line of JSON on standard input holds
a list of run requests; the answer is a line with the seconds that each took.
"""

import asyncio
import hashlib
import json
import sys
import time
from typing import Any


def main() -> None:
    """Serve lists of jobs until standard input ends."""
    import seamless.config
    from seamless import Buffer, Checksum
    from seamless.caching.buffer_cache import get_buffer_cache
    from seamless_remote import buffer_remote
    from seamless_transformer.run import run_transformation_dict

    parameters = json.loads(sys.argv[1])
    folder = parameters["buffer"][0].get("directory")
    seamless.config.set_remote_clients(parameters, in_remote=True)

    def read(checksum: str) -> Any:
        with open(f"{folder}/{checksum[:2]}/{checksum}", "rb", buffering=0) as file:
            content = file.read()
        assert hashlib.sha256(content).hexdigest() == checksum
        return Buffer(content, checksum=Checksum(checksum))

    async def fetch(checksums: list[str]) -> list[Any]:
        return await asyncio.gather(*[buffer_remote.get_buffer(Checksum(c)) for c in checksums])

    async def store(checksum: Any) -> None:
        assert await buffer_remote.write_buffer(checksum, get_buffer_cache().get(checksum))

    def run(job: dict[str, Any]) -> float:
        begun = time.perf_counter()
        transformation = job["transformation_dict"]
        pins = [value[2] for name, value in transformation.items() if not name.startswith("__")]
        inputs = [read(pin) for pin in pins] if folder else loop.run_until_complete(fetch(pins))
        # The calls for inputs find them in Seamless's weak cache while the list is held.
        result = run_transformation_dict(
            transformation,
            Checksum(job["tf_checksum"]),
            job["tf_dunder"],
            scratch=True,
            require_value=True,
        )
        del inputs
        loop.run_until_complete(store(Checksum(result)))
        return time.perf_counter() - begun

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps([run(job) for job in json.loads(line)]), flush=True)


if __name__ == "__main__":
    main()
