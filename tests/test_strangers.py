"""What strangers can do who are not let in: to a server that is short of something, or in numbers.

Most of it needs root, since there must be another user who is refused.
"""

import contextlib
import errno
import functools
import ipaddress
import os
import resource
import shutil
import socket
import subprocess
import unittest
from unittest import mock

from seamless_jobserver.server import peer
from seamless_jobserver.server.access import AccessRules, Gate, Refused, Standing
from tests.stack import PATIENCE
from tests.test_access import AS_ROOT, STRANGER, Served, as_user, ask


def status_of(address, port):
    """Return the status of an answer, or 0 where there is none."""
    try:
        return ask(address, port)[0]
    except OSError:
        return 0


class Shortage(unittest.TestCase):
    def test_only_an_address_that_is_not_here_is_foreign(self):
        gate = Gate(AccessRules())
        client = mock.Mock(getpeername=lambda: ("203.0.113.1", 4000))
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EACCES):
            failing = mock.Mock(side_effect=OSError(number, os.strerror(number)))
            with self.subTest(errno.errorcode[number]):
                with (
                    mock.patch("socket.socket", failing),
                    self.assertRaisesRegex(Refused, "cannot be found out"),
                ):
                    gate.admit(client)
                bound = mock.Mock(side_effect=OSError(number, os.strerror(number)))
                with (
                    mock.patch("socket.socket.bind", bound),
                    self.assertRaises(peer.Unknown),
                ):
                    peer.is_local(ipaddress.ip_address("203.0.113.1"))
        self.assertIs(gate.admit(client), Standing.ADMITTED)


@AS_ROOT
@unittest.skipUnless(shutil.which("ip"), "there is no ip(8)")
class Exhaustion(Served):
    def test_no_stranger_gets_in_however_few_descriptors_are_left(self):
        # An address of this machine that is no loopback address: it has to be recognized.
        address = f"198.18.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
        for change in ("del", "add"):
            subprocess.run(
                ["ip", "addr", change, f"{address}/32", "dev", "lo"],
                check=change == "add",
                capture_output=True,
                timeout=PATIENCE,
            )
        self.addCleanup(
            subprocess.run, ["ip", "addr", "del", f"{address}/32", "dev", "lo"], check=True
        )
        server = self.start("--host", "0.0.0.0")
        pid = server.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        self.assertEqual(ask(address, server.port), (200, "OK"))
        heard = set()
        for left in range(8):
            used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
            free = [number for number in range(10_000) if number not in used]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[left], before[1]))
            with contextlib.ExitStack() as stack:
                for _ in range(3):
                    # Those of the owner take some more of them.
                    held = stack.enter_context(socket.socket())
                    held.connect((address, server.port))
                    heard.add(
                        as_user(STRANGER, functools.partial(short, status_of, address, server.port))
                    )
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        self.assertLessEqual(heard, {0, 403})
        self.assertIn(403, heard)
        self.assertEqual(ask(address, server.port), (200, "OK"), "it has recovered")


def short(function, *arguments):
    """Call `function`, which is not to wait longer than a moment for anything."""
    with mock.patch("tests.test_access.PATIENCE", 1.0):
        return function(*arguments)


del Served  # it is no test itself
