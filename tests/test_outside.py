"""The gate as real programs meet it: a browser on a foreign page, tunnels of sshd, another network.

Needs root, and Debian's chromium, openssh-server, openssh-client and iproute2; CI has them.
"""

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.stack import PATIENCE, free_port, temporary_directory, wait_until
from tests.test_access import AS_ROOT, Served, ask
from tests.test_faults import Faults

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
# What a page on the internet may try: each ends in what it could read, or in how it failed.
ATTEMPTS = """
const server = SERVER, job = JOB;
const tries = {
  cancel_blindly: () => fetch(`${server}/cancel-transformation/${job}`,
                              {method: "POST", mode: "no-cors"}).then(() => "sent"),
  cancel_with_a_form: () => new Promise(done => {
    const frame = document.createElement("iframe");
    frame.name = "frame";
    document.body.append(frame);
    const form = document.createElement("form");
    form.action = `${server}/cancel-transformation/${job}`;
    form.method = "POST";
    form.target = "frame";
    document.body.append(form);
    frame.onload = () => done("sent");
    form.submit();
  }),
  beacon: async () => `sent: ${navigator.sendBeacon(`${server}/cancel-transformation/${job}`)}`,
  read_health: () => fetch(`${server}/healthcheck`).then(answer => answer.text()),
  read_status: () => fetch(`${server}/transformation-status/${job}`).then(answer => answer.text()),
  read_page: () => fetch(`${server}/`, {credentials: "include"}).then(answer => answer.text()),
};
(async () => {
  const found = {};
  for (const [name, attempt] of Object.entries(tries)) {
    try { found[name] = await attempt(); } catch (error) { found[name] = `failed: ${error}`; }
  }
  await fetch("/report", {method: "POST", body: JSON.stringify(found)});
})();
"""


class ForeignSite(ThreadingHTTPServer):
    """A site with one page that tries all that; `report` is what came of it."""

    daemon_threads = True

    def __init__(self, server, job):
        self.report = {}
        script = ATTEMPTS.replace("SERVER", json.dumps(server)).replace("JOB", json.dumps(job))
        page = f"<!doctype html><title>x</title><body><script>{script}</script></body>".encode()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(page if self.path == "/" else b"")

            def do_POST(self):
                site.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(b"")

            def reply(self, body):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,)).start()

    def close(self):
        self.shutdown()
        self.server_close()


@contextlib.contextmanager
def browser(address, *flags):
    """Have a real browser look at `address` for as long as the block runs."""
    with temporary_directory() as profile:
        process = subprocess.Popen(
            [shutil.which("chromium"), *CHROMIUM, f"--user-data-dir={profile}", *flags, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.communicate(timeout=PATIENCE)


@unittest.skipUnless(shutil.which("chromium"), "there is no chromium")
class ABrowser(Faults):
    def test_a_page_of_another_site_can_neither_cancel_nor_read(self):
        server = self.start()
        request = self.gated()
        checksum = request["tf_checksum"]
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(server.run, request)
            self.await_run()
            for name in ("127.0.0.1", "localhost"):  # another port, and another site
                site = ForeignSite(f"http://{name}:{server.port}", checksum)
                try:
                    with browser(
                        f"http://127.0.0.1:{site.server_port}/", "--remote-debugging-port=0"
                    ):
                        report = wait_until(lambda s=site: s.report, "the page has tried it all")
                finally:
                    site.close()
                with self.subTest(name):
                    for attempt, found in report.items():
                        if attempt.startswith("read"):
                            self.assertTrue(found.startswith("failed: "), f"{attempt}: {found}")
                    self.assertEqual(server.job_status(checksum), "running")
            metrics = server.request("GET", "/metrics").text
            refused = re.search(r"_refused_total (\d+)\n", metrics)
            self.assertGreaterEqual(int(refused[1]), 6)
            # A program of the owner can.
            self.assertTrue(server.cancel(checksum)["canceled"])
            answer.result(PATIENCE)

    def test_a_name_that_is_bound_anew_to_this_machine_reads_nothing(self):
        server = self.start()
        rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
        for name, expected in (("evil.example", b"--allow-host"), ("localhost", b"OK")):
            address = f"http://{name}:{server.port}/healthcheck"
            with self.subTest(name), browser(address, rules, "--dump-dom") as process:
                self.assertIn(expected, process.communicate(timeout=PATIENCE)[0])


@AS_ROOT
@unittest.skipUnless(Path("/usr/sbin/sshd").exists(), "there is no sshd")
class Tunnels(Served):
    def test_a_tunnel_is_its_users_own(self):
        server = self.start()
        self.start_sshd()
        for user, status in (("root", 200), ("nobody", 403)):
            with self.subTest(user), self.tunnel(user, server.port) as port:
                self.assertEqual(ask("127.0.0.1", port)[0], status)

    def start_sshd(self):
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / name)],
                check=True,
                timeout=PATIENCE,
            )
        shutil.copy(self.directory / "user.pub", self.directory / "authorized")
        self.directory.chmod(0o755)
        (self.directory / "authorized").chmod(0o644)
        self.port = free_port()
        settings = self.directory / "sshd_config"
        settings.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.directory}/host\n"
            f"AuthorizedKeysFile {self.directory}/authorized\nStrictModes no\nUsePAM no\n"
            f"PermitRootLogin yes\nPidFile {self.directory}/pid\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        daemon = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(settings)],
            stderr=open(self.directory / "sshd.log", "wb"),  # noqa: SIM115 - the child's to hold
        )
        self.addCleanup(daemon.wait, PATIENCE)
        self.addCleanup(daemon.terminate)

    @contextlib.contextmanager
    def tunnel(self, user, target):
        port = free_port()
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        options += ["-o", "ExitOnForwardFailure=yes", "-o", "ConnectionAttempts=20", "-N"]
        client = subprocess.Popen(
            [
                *("ssh", "-i", str(self.directory / "user"), "-p", str(self.port), *options),
                *("-L", f"127.0.0.1:{port}:127.0.0.1:{target}", f"{user}@127.0.0.1"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:

            def open_():
                self.assertIsNone(client.poll(), (self.directory / "sshd.log").read_text())
                try:
                    http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
                except OSError:
                    return False
                return True

            wait_until(open_, "the tunnel is open")
            yield port
        finally:
            client.terminate()
            client.wait(PATIENCE)


@AS_ROOT
@unittest.skipUnless(shutil.which("ip"), "there is no ip(8)")
class AnotherNetwork(Served):
    def test_another_network_namespace_is_elsewhere(self):
        # Its sockets are not in the tables of this one, although they are on the same machine.
        space = f"jobserver-{os.getpid()}"
        link, net = f"js{os.getpid() % 100000}", f"10.{os.getpid() % 200 + 20}.77"
        inside = ["ip", "netns", "exec", space]
        for command in (
            f"ip netns add {space}",
            f"ip link add {link} type veth peer name {link}p",
            f"ip link set {link}p netns {space}",
            f"ip addr add {net}.1/24 dev {link}",
            f"ip link set {link} up",
            f"ip -n {space} addr add {net}.2/24 dev {link}p",
            f"ip -n {space} link set {link}p up",
        ):
            subprocess.run(command.split(), check=True, timeout=PATIENCE)
        self.addCleanup(subprocess.run, ["ip", "netns", "del", space], check=True, timeout=PATIENCE)
        fetch = (
            "import sys, urllib.request, urllib.error\n"
            "asked = urllib.request.Request(sys.argv[1])\n"
            "for word in sys.argv[2:]: asked.add_header('Authorization', word)\n"
            "try: print(urllib.request.urlopen(asked, timeout=20).status)\n"
            "except urllib.error.HTTPError as error: print(error.code, error.read().decode())\n"
        )
        password = self.directory / "password"
        password.write_text("open sesame\n")
        password.chmod(0o600)
        secret = ("--password-file", str(password))
        token = base64.b64encode(b"me:open sesame").decode()
        for flags, expected, *credentials in (
            (("--allow", f"{net}.0/24"), "200"),
            (secret, "401 401: This jobserver asks for a password"),
            (secret, "401", "Basic bWU6d3Jvbmc="),
            (secret, "200", f"Basic {token}"),
            ((*secret, "--allow", "192.0.2.0/24"), "403", f"Basic {token}"),
            (("--allow", "192.0.2.0/24"), "403 403: This jobserver takes no connections from your"),
            ((), "200"),
        ):
            server = self.start("--host", "0.0.0.0", *flags)
            with self.subTest(flags):
                answer = subprocess.run(
                    [
                        *(*inside, "python3", "-c", fetch),
                        *(f"http://{net}.1:{server.port}/healthcheck", *credentials),
                    ],
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    check=True,
                )
                self.assertTrue(answer.stdout.startswith(expected), answer.stdout)
                self.assertEqual(
                    ask("127.0.0.1", server.port), (200, "OK"), "the owner is asked nothing"
                )
                self.assertNotIn("sesame", server.log)
            server.stop()
            shutil.rmtree(server.directory)


del Faults, Served  # they are no tests themselves
