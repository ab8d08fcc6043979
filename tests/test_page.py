"""The status page in a real browser, on a real server with jobs in every state."""

import contextlib
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from axe_core_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from tests.constants import constants
from tests.stack import PATIENCE, Jobserver, wait_until
from tests.test_outside import CHROMIUM
from tests.test_running import OnAStore

MARKUP = "<img src=x onerror=alert(1)>"
DONE = "def power(base, exponent):\n    print('computing')\n    return base ** exponent\n"
FAILED = "def divide(n):\n    print('dividing')\n    return n / 0\n"
CRASHED = "def crash(n):\n    import os\n    os._exit(3)\n"
NEVER = "def never(n):\n    return n\n"
HOSTILE = (
    f"'''x'''\nresult = {MARKUP!r}; print(result + '</pre><script>alert(2)</script>\\u202e')\n"
)
HELD = (
    "def simulate(gate, n):\n    import os, time\n    print('step', n, flush=True)\n"
    "    while not os.path.exists(gate): time.sleep(0.01)\n    print('over')\n    return n\n"
)
OUTER = (
    "def outer(gate):\n    from seamless.transformer import direct\n"
    "    def inner(gate):\n        import os, time\n        print('inside it', flush=True)\n"
    "        while not os.path.exists(gate): time.sleep(0.01)\n        return 1\n"
    "    return direct(inner)(gate)\n"
)
NO_JOBS = {"jobs": [], "more": False}
SCREENSHOTS = os.environ.get("SEAMLESS_JOBSERVER_TEST_SCREENSHOTS")
DRAWN = re.compile(r'^<\w+ class="(?:block|swatch|tick|sign)\b')
"""What axe cannot measure the contrast of: what overlaps on the timeline, and single signs."""
LIMIT = PATIENCE * 1000
"""In milliseconds, as Playwright has it."""
WORKERS = 2


def _ask_often(route):
    """Serve the page's own module, which asks ten times as often as for people: tests wait for it."""
    answer = route.fetch()
    module = answer.text()
    hurried = module.replace("const PAUSE = 3000;", "const PAUSE = 300;")
    assert hurried != module, "the page has another pause"
    route.fulfill(response=answer, body=hurried)


class Tabs(OnAStore):
    """One server and one browser for all tests; each test has a tab of its own."""

    shares_store = True
    workers = WORKERS

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        stack = contextlib.ExitStack()
        cls.addClassCleanup(stack.close)
        cls.server = Jobserver(
            cls.directory / "watched",
            cls.store.parameters(read_folder=True),
            workers=cls.workers,
            flags=("--timeout", "3600"),
            env=constants(cls.directory, {"server.overview.FRESH": 0.05}),
        )
        stack.callback(cls.server.stop)
        cls.gate = cls.directory / "gate"
        cls.callers = stack.enter_context(ThreadPoolExecutor(8))
        stack.callback(cls.gate.touch)
        cls.playwright = stack.enter_context(sync_playwright())
        cls.browser = cls.playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=CHROMIUM
        )
        stack.callback(cls.browser.close)
        cls.jobs = {}
        cls.prepare()

    @classmethod
    def prepare(cls):
        """Bring the server into the state that the tests look at."""

    @classmethod
    def run_job(cls, code, **inputs):
        request = cls.store.request(code, **inputs)
        return request["tf_checksum"], cls.callers.submit(cls.server.run, request)

    @classmethod
    def wait_for(cls, found, what):
        wait_until(lambda: found(cls.server.request("GET", "/status").json), what)

    @contextlib.contextmanager
    def tab(self, fragment="", complaint=None, **options):
        """Yield a tab with the page; whatever its console complains of fails the test.

        A `complaint` of the browser's own about an answer is expected.
        """
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = self.browser.new_context(**options)
        self.addCleanup(context.close)
        complaints, elsewhere = [], []
        page = context.new_page()
        page.set_default_timeout(LIMIT)
        own = f"http://127.0.0.1:{self.server.port}/"

        def hear(message):
            expected = complaint is not None and complaint in message.text
            if message.type in ("error", "warning") and not expected:
                complaints.append(message.text)

        page.route("**/poller.js", _ask_often)
        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith(own) or elsewhere.append(request.url),
        )
        try:
            page.goto(own + fragment)
            yield page
        finally:
            context.close()
        self.assertEqual(complaints, [])
        self.assertEqual(elsewhere, [])

    def overview(self, page):
        page.wait_for_selector("#recent tbody tr")
        return page

    def shoot(self, page, name):
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=f"{SCREENSHOTS}/page-{name}.png", full_page=name != "narrow")

    def check_accessible(self, page):
        found = Axe().run(page)
        told = []
        for one in found["violations"] + found["incomplete"]:
            nodes = [
                node["html"][:200]
                for node in one["nodes"]
                if not (one["id"] == "color-contrast" and DRAWN.search(node["html"]))
            ]
            if nodes:
                told.append(f"{one['id']}: {one['help']}: {nodes[:3]}")
        self.assertEqual(told, [])

    def answering(self, page, address, **answer):
        """Have what the page asks for at an address be answered so."""
        page.route(re.compile(address), lambda route: route.fulfill(**answer))


class Page(Tabs):
    """With jobs in every state."""

    @classmethod
    def prepare(cls):
        for name, code in (("failed", FAILED), ("crashed", CRASHED), ("hostile", HOSTILE)):
            cls.jobs[name], answer = cls.run_job(code, n=1)
            answer.result(PATIENCE)
        for exponent in range(20):
            cls.jobs["done"], answer = cls.run_job(DONE, base=2, exponent=exponent)
            answer.result(PATIENCE)
        for number in range(WORKERS):
            cls.jobs["running"], _ = cls.run_job(HELD, gate=str(cls.gate), n=number)
        cls.wait_for(lambda status: len(status["running"]) == WORKERS, "they run")
        cls.jobs["canceled"], answer = cls.run_job(NEVER, n=1)
        cls.wait_for(lambda status: status["waiting_count"] == 1, "it waits")
        cls.server.cancel(cls.jobs["canceled"])
        answer.result(PATIENCE)
        cls.jobs["waiting"], _ = cls.run_job(NEVER, n=2)
        cls.wait_for(
            lambda status: [job["checksum"] for job in status["waiting"]] == [cls.jobs["waiting"]],
            "the other one waits",
        )


class Overview(Page):
    def test_it_shows_what_runs_waits_and_has_ended_and_how(self):
        with self.tab() as page:
            self.overview(page)
            headline = f"{WORKERS} running, 1 waiting"
            self.assertEqual(page.inner_text("#overview-heading"), headline)
            self.assertIn(headline, page.title())
            self.assertEqual(page.inner_text("#running").count("simulate"), WORKERS)
            self.assertEqual(page.locator("#waiting tbody tr").count(), 1)
            recent = page.inner_text("#recent")
            for words in ("done", "failed", "crashed", "canceled", "power", "divide", "crash"):
                self.assertIn(words, recent)
            self.assertIn("ZeroDivisionError", page.inner_text("#failures"))
            self.assertIn("exit code 3", page.inner_text("#failures"))
            self.assertIn("Up", page.inner_text("#pill"))
            self.assertIn(str(self.server.port), page.inner_text("#server"))
            self.assertIn("processes of", page.inner_text("#server"))
            self.assertEqual(page.locator("#timeline .lane").count(), WORKERS)
            running = page.locator("#timeline .block[data-state=running]")
            self.assertEqual(running.count(), WORKERS)

    def test_it_is_accessible_in_light_dark_and_narrow_and_at_twice_the_size(self):
        for name, options in (
            ("light", {"color_scheme": "light"}),
            ("dark", {"color_scheme": "dark"}),
            ("narrow", {"viewport": {"width": 360, "height": 740}}),
            ("zoomed", {"viewport": {"width": 640, "height": 450}, "device_scale_factor": 2}),
        ):
            with self.subTest(name), self.tab(**options) as page:
                self.overview(page)
                self.check_accessible(page)
                overflow = "document.documentElement.scrollWidth - innerWidth"
                self.assertLessEqual(page.evaluate(overflow), 0, "nothing is cut off")
                page.click("text=2 min")
                self.shoot(page, name)

    def test_outcomes_are_filtered_and_jobs_found(self):
        rows = "#recent tbody tr"
        with self.tab() as page:
            self.overview(page)
            page.click("#recent .choices >> text=crashed")
            expect(page.locator(rows)).to_have_count(1, timeout=LIMIT)
            page.click("#recent .choices >> text=all")
            page.fill("#recent input", "divi")
            expect(page.locator(rows)).to_have_count(1, timeout=LIMIT)
            page.fill("#recent input", self.jobs["crashed"][:10])
            expect(page.locator(rows)).to_contain_text("crash", timeout=LIMIT)
            page.fill("#recent input", "nothing like it")
            expect(page.locator("#recent .empty")).to_be_visible(timeout=LIMIT)

    def test_it_is_used_with_the_keyboard_alone(self):
        with self.tab() as page:
            self.overview(page)
            for _ in range(40):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.classList.contains('block')"):
                    break
            first = page.evaluate("document.activeElement.getAttribute('href')")
            page.keyboard.press("ArrowLeft")
            second = page.evaluate("document.activeElement.getAttribute('href')")
            self.assertNotEqual(first, second)
            page.keyboard.press("Enter")
            page.wait_for_selector("#job:not([hidden])")
            self.assertEqual(page.evaluate("document.activeElement.tagName"), "H1")

    def test_names_and_output_cannot_be_markup(self):
        with self.tab() as page:
            self.overview(page)
            self.assertIn(MARKUP, page.inner_text("#recent"))
            self.assertEqual(page.locator("#recent img, #timeline img").count(), 0)
            page.goto(page.url.partition("#")[0] + f"#/jobs/{self.jobs['hostile']}")
            output = page.locator("pre.output")
            expect(output).to_contain_text("<script>", timeout=LIMIT)
            self.assertNotIn("\u202e", output.inner_text(), "nothing turns the direction of text")
            self.assertEqual(page.locator("#job script, #job img").count(), 0)

    def test_ten_thousand_jobs_do_not_slow_it(self):
        lines = self.server.request("GET", "/status").json
        job = next(one for one in lines["ended"] if one["state"] == "done")
        answers = []

        def serve(route):
            """Answer as the server does: a thousand at most, and more each time."""
            latest = 1000 * (len(answers) + 1)
            answers.append(latest)
            ended = []
            for seq in range(latest - 999, latest + 1):
                ago = (10_000 - seq) / 20
                moments = {name: job[name] - ago for name in ("received", "started", "ended")}
                ended.append({**job, **moments, "seq": seq, "number": 10_000 + seq})
            route.fulfill(json={**lines, "ended": ended, "latest": latest})

        with self.tab() as page:
            page.route(re.compile(r"/status\?"), serve)
            page.route(re.compile(r"/jobs\?"), lambda route: route.fulfill(json=NO_JOBS))
            page.reload()
            self.overview(page)
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable")
            before = self.busy_seconds(session)
            while len(answers) < 10:
                page.wait_for_event("response", lambda answer: "/status?" in answer.url)
            # What is left to do for the last answer is done before this is answered.
            page.evaluate("new Promise((done) => requestIdleCallback(done))")
            each = (self.busy_seconds(session) - before) / 9
            self.assertLess(each, 2.0, "seconds of work for an answer with a thousand jobs")
            self.assertEqual(page.locator("#recent tbody tr").count(), 100)
            self.assertLessEqual(page.locator("#timeline .block").count(), 400 * WORKERS)
            self.assertLess(page.locator("*").count(), 12_000)

    def busy_seconds(self, session):
        """Return for how long the browser has worked on the page: scripts, styles and layout."""
        metrics = {
            one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]
        }
        return metrics["TaskDuration"]

    def test_failures_that_the_page_has_not_loaded_are_shown_and_listed(self):
        status = self.server.request("GET", "/status").json
        newest = [job for job in status["ended"] if job["state"] == "done"][-3:]
        with self.tab() as page:
            page.route(
                re.compile(r"/status\?"),
                lambda route: route.fulfill(json={**status, "ended": newest}),
            )
            page.route(
                re.compile(r"/jobs\?before=\d+&limit=500"),
                lambda route: route.fulfill(json=NO_JOBS),
            )
            page.reload()
            expect(page.locator("#failures")).to_contain_text("ZeroDivisionError", timeout=LIMIT)
            self.assertIn("exit code 3", page.inner_text("#failures"))
            page.click(".tile a")
            rows = page.locator("#recent tbody tr")
            expect(rows).to_have_count(2, timeout=LIMIT)
            self.assertEqual(page.evaluate("document.activeElement.id"), "recent-heading")

    def test_failures_among_jobs_that_it_was_not_told_of_are_asked_for(self):
        status = self.server.request("GET", "/status").json
        done = next(job for job in status["ended"] if job["state"] == "done")
        old = [
            {**done, "state": "failed", "problem": "Old.", "number": 900 + n, "seq": 900 + n}
            for n in range(4)
        ]
        many = [{**done, "number": 2000 + n, "seq": 2000 + n} for n in range(1000)]
        newest = {**old[0], "problem": "New.", "number": 1500, "seq": 1500}
        totals = {**status["totals"], "failed": 5}
        answers = [
            {**status, "ended": old, "latest": 903, "totals": totals},
            {**status, "ended": many, "latest": 2999, "totals": totals},
        ]
        listed = {"jobs": [newest, *old[:0:-1]], "more": True}
        with self.tab() as page:
            page.route(
                re.compile(r"/status\?"),
                lambda route: route.fulfill(json=answers[0] if len(answers) == 2 else answers[-1]),
            )
            page.route(re.compile(r"/jobs\?"), lambda route: route.fulfill(json=NO_JOBS))
            page.route(re.compile(r"/jobs\?.*state="), lambda route: route.fulfill(json=listed))
            page.reload()
            expect(page.locator("#failures")).to_contain_text("Old.", timeout=LIMIT)
            answers.pop(0)
            expect(page.locator("#failures")).to_contain_text("New.", timeout=LIMIT)

    def test_a_name_that_comes_late_is_shown(self):
        status = self.server.request("GET", "/status").json
        (waiting,) = status["waiting"]
        names = [None, "late"]
        with self.tab() as page:
            page.route(
                re.compile(r"/status\?"),
                lambda route: route.fulfill(
                    json={**status, "waiting": [{**waiting, "name": names[0]}]}
                ),
            )
            page.reload()
            expect(page.locator("#waiting .job-name")).to_contain_text("unnamed", timeout=LIMIT)
            names.pop(0)
            expect(page.locator("#waiting .job-name")).to_have_text("late", timeout=LIMIT)

    def test_jobs_that_were_dropped_do_not_crowd_out_real_failures(self):
        status = self.server.request("GET", "/status").json
        lost = next(job for job in status["ended"] if job["state"] == "failed")
        many = [
            {**lost, "state": "lost", "problem": "Dropped.", "number": 900 + n, "seq": 900 + n}
            for n in range(8)
        ]
        totals = {**status["totals"], "lost": len(many)}
        shown = {**status, "ended": status["ended"] + many, "totals": totals, "latest": 908}
        with self.tab() as page:
            page.route(re.compile(r"/status\?"), lambda route: route.fulfill(json=shown))
            page.reload()
            expect(page.locator("#failures li")).to_have_count(4, timeout=LIMIT)
            reasons = page.inner_text("#failures")
            for words in ("ZeroDivisionError", "exit code 3"):
                self.assertIn(words, reasons)
            self.assertEqual(reasons.count("Dropped."), 2)

    def test_the_focus_stays_on_the_timeline_when_its_block_is_merged(self):
        status = self.server.request("GET", "/status").json
        now = status["time"]
        job = {**status["running"][0], "worker": 1}
        before = {**job, "number": 800, "seq": 800, "state": "done"}
        before |= {"started": now - 0.4, "ended": now - 0.3}
        merged = {**job, "seq": 801, "state": "done", "started": now - 0.35, "ended": now - 0.3}
        answers = [
            {**status, "running": [{**job, "started": now - 100}], "ended": []},
            {**status, "running": [], "ended": [before, merged], "latest": 801},
        ]
        with self.tab() as page:
            page.route(
                re.compile(r"/status\?"),
                lambda route: route.fulfill(json=answers[0] if len(answers) == 2 else answers[-1]),
            )
            page.route(re.compile(r"/jobs\?"), lambda route: route.fulfill(json=NO_JOBS))
            page.reload()
            page.focus(".block[data-state=running]")
            answers.pop(0)
            page.wait_for_selector(".block[data-several]")
            self.assertTrue(page.evaluate("document.activeElement.matches('.block')"))

    def test_skip_links_lead_past_what_comes_first(self):
        with self.tab() as page:
            self.overview(page)
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            self.assertEqual(page.evaluate("document.activeElement.id"), "main")
            page.focus("#skip-to-recent")
            page.keyboard.press("Enter")
            self.assertEqual(page.evaluate("document.activeElement.id"), "recent-heading")

    def test_it_says_how_to_open_it_and_which_packages_it_runs_with(self):
        with self.tab() as page:
            self.overview(page)
            facts = page.inner_text("#server")
            port = self.server.port
            self.assertIn(f"http://127.0.0.1:{port}/", facts)
            self.assertIn(f"ssh -N -L {port}:127.0.0.1:{port} ", facts)
            for name in ("seamless-core", "seamless-transformer", "seamless-remote"):
                self.assertRegex(facts, rf"{name} \d")

    def test_a_server_on_every_address_is_not_said_to_be_opened_at_that(self):
        status = self.server.request("GET", "/status").json
        server = {**status["server"], "listening": "0.0.0.0:5533"}
        with self.tab() as page:
            page.route(
                re.compile(r"/status\?"),
                lambda route: route.fulfill(json={**status, "server": server}),
            )
            page.reload()
            self.overview(page)
            self.assertNotIn("0.0.0.0", page.inner_text(".bar"))
            self.assertIn("http://127.0.0.1:5533/", page.inner_text("#server"))
            self.assertIn("ssh -N -L 5533:127.0.0.1:5533 ", page.inner_text("#server"))

    def test_what_needs_somebodys_attention_is_said_first(self):
        status = self.server.request("GET", "/status").json
        server, (worker, *others) = status["server"], status["workers"]
        shown = [status]
        with self.tab() as page:
            page.route(re.compile(r"/status\?"), lambda route: route.fulfill(json=shown[0]))
            page.reload()
            self.overview(page)
            notices = page.locator("#notices .notice")
            expect(notices).to_have_count(0, timeout=LIMIT)
            for change, words in (
                (
                    {"server": {**server, "exposed": True}},
                    f"Others can get in without a password: {server['access']}",
                ),
                ({"server": {**server, "ending": True}}, "It is ending: it takes no new jobs"),
                (
                    {"workers": [{**worker, "state": "down"}, *others]},
                    f"Worker {worker['number']} is down: it is being started again.",
                ),
                (
                    {"workers": [{**worker, "state": "down", "problem": "No memory."}, *others]},
                    f"Worker {worker['number']} is down: No memory.",
                ),
            ):
                shown[0] = {**status, **change}
                with self.subTest(words):
                    # The texts of one notice alone; there is no other.
                    expect(notices).to_contain_text([words], timeout=LIMIT)
            self.check_accessible(page)

    def test_it_counts_down_to_its_end_while_nobody_uses_it(self):
        status = self.server.request("GET", "/status").json
        shown = [status]
        with self.tab() as page:
            page.route(re.compile(r"/status\?"), lambda route: route.fulfill(json=shown[0]))
            page.reload()
            self.overview(page)
            for timeout, left, bar, rule in (
                (None, None, r"^up [^·]+$", "It stays up, however long nobody uses it."),
                (600, None, r" · in use$", "It ends after 10 min without a request or a running"),
                (600, 90.5, r" · ends in 1 min \d\d s if unused$", "That is at "),
            ):
                server = {**status["server"], "idle_timeout": timeout, "idle_left": left}
                shown[0] = {**status, "server": server}
                with self.subTest(bar):
                    life = expect(page.locator("#life"))
                    life.to_have_text(re.compile(bar), timeout=LIMIT)
                    expect(page.locator("#server")).to_contain_text(rule, timeout=LIMIT)

    def test_its_addresses_are_there_to_be_copied(self):
        port = self.server.port
        with self.tab() as page:
            self.overview(page)
            for what, text in (
                ("the address", f"http://127.0.0.1:{port}/"),
                ("the command", f"ssh -N -L {port}:127.0.0.1:{port} "),
            ):
                button = f'[aria-label="Copy {what}"]'
                page.click(f"#server {button}")
                told = page.locator(f"#server .copyable:has({button}) [role=status]")
                words = re.compile("^(Copied|It is selected)")
                expect(told).to_have_text(words, timeout=LIMIT)
                selected = page.evaluate("getSelection().toString()")
                self.assertTrue(selected.startswith(text), selected)


class OneJob(Page):
    def test_each_state_is_shown_with_what_explains_it(self):
        for name, state, message, output in (
            ("done", "done", None, "computing"),
            ("failed", "failed", "ZeroDivisionError", "dividing"),
            ("crashed", "crashed", "exit code 3", None),
            ("canceled", "canceled", None, None),
            ("waiting", "waiting", None, None),
            ("running", "running", None, f"step {WORKERS - 1}"),
        ):
            with self.subTest(name), self.tab(f"#/jobs/{self.jobs[name]}") as page:
                expect(page.locator("#job .badge")).to_contain_text(state, timeout=LIMIT)
                self.assertEqual(page.inner_text("#job code.checksum >> nth=0"), self.jobs[name])
                if message is None:
                    self.assertEqual(page.locator("pre.message").count(), 0)
                else:
                    self.assertIn(message, page.inner_text("pre.message"))
                if name == "canceled":
                    self.assertIn("It never began", page.inner_text("#job"))
                if name == "crashed":
                    self.assertRegex(page.inner_text("#job .facts"), r"Wall time\n\d")
                if output is not None:
                    expect(page.locator("pre.output")).to_contain_text(output, timeout=LIMIT)
                self.assertIn("code", page.inner_text("#job table >> nth=0"))
                self.check_accessible(page)
                cancelable = page.locator("text=Cancel this job").is_visible()
                self.assertEqual(cancelable, name in ("waiting", "running"))
                if name == "failed":
                    self.shoot(page, "job")

    def test_a_job_is_canceled_after_a_question(self):
        request = self.store.request(NEVER, n=3)
        answers = []
        caller = threading.Thread(target=lambda: answers.append(self.server.run(request)))
        caller.start()
        self.wait_for(lambda status: status["waiting_count"] == 2, "it waits")
        with self.tab(f"#/jobs/{request['tf_checksum']}") as page:
            page.click("text=Cancel this job")
            self.assertIn("Its caller is told at once", page.inner_text(".confirm"))
            page.click("text=No, let it go on")
            page.click("text=Cancel this job")
            page.click("text=Yes, cancel it")
            expect(page.locator(".answer")).to_contain_text("It is canceled", timeout=LIMIT)
        caller.join(PATIENCE)
        self.assertEqual(answers[0].text, "Transformation was canceled")

    def test_a_job_that_is_not_known_is_explained(self):
        with self.tab(f"#/jobs/{'ab' * 32}", complaint="404 (Not Found)") as page:
            heading = expect(page.locator("#job h1"))
            heading.to_have_text("Unknown job", timeout=LIMIT)
            self.check_accessible(page)

    def test_what_became_of_a_cancellation_is_told_as_the_server_has_it(self):
        for told, answer in (
            ("It was not canceled: it is done.", {"json": {"canceled": False, "status": "done"}}),
            ("it answers 503: It is ending.", {"status": 503, "body": "It is ending."}),
        ):
            with (
                self.subTest(told),
                self.tab(f"#/jobs/{self.jobs['waiting']}", complaint="503") as page,
            ):
                self.answering(page, "/cancel-transformation/", **answer)
                page.click("text=Cancel this job")
                page.click("text=Yes, cancel it")
                expect(page.locator(".answer")).to_contain_text(told, timeout=LIMIT)
                self.assertTrue(page.evaluate("document.activeElement.matches('.answer')"))
                self.assertTrue(page.locator("text=Cancel this job").is_visible())
        self.assertEqual(self.server.job_status(self.jobs["waiting"]), "running")

    def test_before_a_job_is_canceled_it_is_said_what_becomes_of_its_work(self):
        status = self.server.request("GET", "/status").json
        for reclaims, words in (
            (False, "the process runs on until the job ends, and its worker is busy until then"),
            (True, "the process that runs it is ended, with all that it has started"),
        ):
            server = {**status["server"], "reclaims": reclaims}
            with self.subTest(words), self.tab(f"#/jobs/{self.jobs['running']}") as page:
                self.answering(page, r"/status\?", json={**status, "server": server})
                page.reload()
                page.click("text=Cancel this job")
                question = page.locator(".confirm")
                expect(question).to_contain_text(words, timeout=LIMIT)
                # Whoever presses Enter once too often cancels nothing.
                focused = page.evaluate("document.activeElement.textContent")
                self.assertEqual(focused, "No, let it go on")
                page.keyboard.press("Enter")
                expect(question).to_be_hidden(timeout=LIMIT)
        self.assertEqual(self.server.job_status(self.jobs["running"]), "running")


class Unusual(Tabs):
    """One worker, with jobs that are canceled and run on, or run inside another."""

    workers = 1

    def setUp(self):
        self.gate = self.directory / self.id().rpartition(".")[2]
        self.addCleanup(self.gate.touch)

    def tearDown(self):
        self.gate.touch()
        self.wait_for(
            lambda status: not status["running"] and not status["canceled_running"], "it is over"
        )

    def test_a_canceled_job_whose_work_goes_on_is_seen_everywhere(self):
        checksum, answer = self.run_job(HELD, gate=str(self.gate), n=7)
        named = lambda status: [job["name"] for job in status["running"]] == ["simulate"]  # noqa: E731
        self.wait_for(named, "it runs")
        with self.tab(f"#/jobs/{checksum}") as page:
            page.click("text=Cancel this job")
            page.click("text=Yes, cancel it")
            self.assertIn("canceled", answer.result(PATIENCE).text)
            lead = page.locator("#job .lead")
            expect(lead).to_contain_text("still holds worker 1", timeout=LIMIT)
            expect(page.locator("#job")).to_contain_text("step 7", timeout=LIMIT)
            self.assertEqual(page.locator("pre.message").count(), 0)
            self.check_accessible(page)
            page.click("text=All jobs")
            heading = page.locator("#overview-heading")
            expect(heading).to_contain_text("1 canceled, still at work", timeout=LIMIT)
            for place in ("#running", "#timeline .lane-head"):
                self.assertIn("canceled, still at work", page.inner_text(place))
                self.assertIn("simulate", page.inner_text(place))
                self.assertRegex(page.inner_text(place), r"\d+ s")
            self.check_accessible(page)
            page.goto(page.url.partition("#")[0] + f"#/jobs/{checksum}")
            expect(lead).to_contain_text("still holds worker 1", timeout=LIMIT)
            self.gate.touch()
            expect(page.locator("pre.output")).to_contain_text("over", timeout=LIMIT)
            expect(lead).not_to_contain_text("still holds", timeout=LIMIT)

    def test_a_hosted_job_leads_to_the_job_around_it(self):
        outer, _ = self.run_job(OUTER, gate=str(self.gate))
        self.wait_for(lambda status: len(status["running"]) == 2, "both run")
        running = self.server.request("GET", "/status").json["running"]
        (inner,) = (job["checksum"] for job in running if job["hosted"])
        with self.tab(f"#/jobs/{inner}") as page:
            told = page.locator(".cancel")
            expect(told).to_contain_text("cannot be stopped by itself", timeout=LIMIT)
            self.assertFalse(page.locator("text=Cancel this job").is_visible())
            self.assertEqual(page.locator(f'.cancel a[href="#/jobs/{outer}"]').count(), 1)
            self.assertNotIn("It printed nothing", page.inner_text("#job"))
            self.check_accessible(page)
            page.click("text=the output of that job")
            expect(page.locator("pre.output")).to_contain_text("inside it", timeout=LIMIT)

    def test_output_that_is_not_kept_is_not_said_to_be_none(self):
        checksum, answer = self.run_job(DONE, base=1, exponent=1)
        answer.result(PATIENCE)
        job = self.server.request("GET", f"/jobs/{checksum}", Accept="application/json").json
        gone = {**job, "output": 5000, "dropped": 5000}
        run = f"{job['number']}-{job['retries']}"
        with self.tab() as page:
            page.route(re.compile(rf"/jobs/{checksum}$"), lambda route: route.fulfill(json=gone))
            page.route(
                re.compile(rf"/jobs/{checksum}/log"),
                lambda route: route.fulfill(
                    body="", headers={"Output-Run": run, "Output-Start": "5000"}
                ),
            )
            page.goto(page.url.partition("#")[0] + f"#/jobs/{checksum}")
            words = "What it printed is not kept any more (5.0 kB)"
            expect(page.locator("#job")).to_contain_text(words, timeout=LIMIT)

    def test_eight_tabs_on_running_jobs_are_all_answered(self):
        checksum, _ = self.run_job(HELD, gate=str(self.gate), n=8)
        self.wait_for(lambda status: status["running"], "it runs")
        with self.tab(f"#/jobs/{checksum}") as page:
            own = page.url
            tabs = [page, *(page.context.new_page() for _ in range(7))]
            for tab in tabs[1:]:
                tab.goto(own)
            for tab in tabs:
                output = expect(tab.locator("pre.output"))
                output.to_contain_text("step 8", timeout=LIMIT)
                expect(tab.locator("#pill")).to_contain_text("Up", timeout=LIMIT)

    def test_an_empty_server_and_what_is_asked_before_canceling_are_accessible(self):
        status = self.server.request("GET", "/status").json
        totals = dict.fromkeys(status["totals"], 0)
        empty = {**status, "ended": [], "latest": 0, "totals": totals}
        with self.tab() as page:
            page.route(re.compile(r"/status\?"), lambda route: route.fulfill(json=empty))
            page.reload()
            expect(page.locator("#running")).to_contain_text("No job yet", timeout=LIMIT)
            self.check_accessible(page)
        checksum, _ = self.run_job(HELD, gate=str(self.gate), n=9)
        self.wait_for(lambda status: status["running"], "it runs")
        with self.tab(f"#/jobs/{checksum}") as page:
            page.click("text=Cancel this job")
            self.check_accessible(page)

    def test_a_job_that_ends_while_it_is_asked_about_has_nothing_to_cancel_any_more(self):
        checksum, answer = self.run_job(HELD, gate=str(self.gate), n=10)
        self.wait_for(lambda status: status["running"], "it runs")
        with self.tab(f"#/jobs/{checksum}") as page:
            page.click("text=Cancel this job")
            self.gate.touch()
            answer.result(PATIENCE)
            told = expect(page.locator(".answer"))
            told.to_contain_text("nothing to cancel any more", timeout=LIMIT)
            self.assertFalse(page.locator("text=Yes, cancel it").is_visible())
            self.assertTrue(page.evaluate("document.activeElement.matches('.answer')"))
            # Another run is another job, of which nothing was asked.
            self.run_job(HELD, gate=str(self.gate), n=10)[1].result(PATIENCE)
            told.to_have_text("", timeout=LIMIT)


class Silence(Tabs):
    workers = 1

    def test_a_server_that_ends_is_noticed_and_its_successor_found(self):
        first = Jobserver(self.directory / "first", {}, workers=1, flags=("--timeout", "900"))
        self.addCleanup(first.stop)
        page = self.browser.new_page()
        self.addCleanup(page.close)
        page.goto(f"http://127.0.0.1:{first.port}/")
        pill = expect(page.locator("#pill"))
        pill.to_contain_text("Up", timeout=LIMIT)
        first.stop()
        pill.to_contain_text("No answer", timeout=LIMIT)
        expect(page.locator("#connection")).to_contain_text("No answer since", timeout=LIMIT)
        self.assertNotIn("Idle", page.inner_text("h1"))
        self.assertNotIn("ends in", page.inner_text(".bar"))
        self.check_accessible(page)
        page.goto(page.url.partition("#")[0] + f"#/jobs/{'ab' * 32}")
        told = page.locator("#job .lead")
        expect(told).to_contain_text("it cannot be reached", timeout=LIMIT)
        self.check_accessible(page)
        second = Jobserver(
            self.directory / "second", {}, workers=1, flags=("--port", str(first.port))
        )
        self.addCleanup(second.stop)
        pill.to_contain_text("Up", timeout=LIMIT)
        expect(page.locator("#job h1")).to_have_text("Unknown job", timeout=LIMIT)

    def test_a_successors_jobs_are_not_taken_for_those_before_of_the_same_number(self):
        gates = [self.directory / f"gate-{n}" for n in range(2)]
        done = [self.store.request(DONE, base=7, exponent=n) for n in range(2)]
        held = [self.store.request(HELD, gate=str(gate), n=1) for gate in gates]
        first = self.one(done, held[0])
        pages = [self.browser.new_page() for _ in range(2)]
        overview, job = pages
        for page in pages:
            self.addCleanup(page.close)
            page.route("**/poller.js", _ask_often)
        checksum = done[1]["tf_checksum"]
        overview.goto(f"http://127.0.0.1:{first.port}/")
        job.goto(f"http://127.0.0.1:{first.port}/#/jobs/{checksum}")
        running = expect(overview.locator("#running .job-link"))
        running.to_contain_text(held[0]["tf_checksum"][:8], timeout=LIMIT)
        facts = expect(job.locator("#job .facts"))
        facts.to_contain_text("number 2 of this server", timeout=LIMIT)
        first.stop()
        self.one(done[::-1], held[1], port=first.port)
        running.to_contain_text(held[1]["tf_checksum"][:8], timeout=LIMIT)
        facts.to_contain_text("number 1 of this server", timeout=LIMIT)

    def one(self, done, held, port=0):
        """Return a server that has run some jobs, and runs one that is held."""
        flags = ("--grace", "0.1", "--port", str(port))
        place = self.directory / f"at-{port}"
        server = Jobserver(place, self.store.parameters(), workers=1, flags=flags)
        self.addCleanup(server.stop)
        for request in done:
            server.run(request)
        self.callers.submit(server.run, held)
        return server


del Tabs, Page  # they are no tests themselves
