"""The status page in a real browser, on a real server with jobs in every state."""

import contextlib
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from axe_core_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from tests.stack import PATIENCE, Jobserver, wait_until
from tests.test_outside import CHROMIUM
from tests.test_running import OnAStore

MARKUP = "<img src=x onerror=alert(1)>"
DONE = "def power(base, exponent):\n    print('computing')\n    return base ** exponent\n"
FAILED = "def divide(n):\n    print('dividing')\n    return n / 0\n"
CRASHED = "def crash(n):\n    import os\n    os._exit(3)\n"
NEVER = "def never(n):\n    return n\n"
HOSTILE = f"'''x'''\nresult = {MARKUP!r}; print(result + '</pre><script>alert(2)</script>')\n"
HELD = (
    "def simulate(gate, n):\n    import os, time\n    print('step', n, flush=True)\n"
    "    while not os.path.exists(gate): time.sleep(0.01)\n    print('over')\n    return n\n"
)
SCREENSHOTS = os.environ.get("SEAMLESS_JOBSERVER_TEST_SCREENSHOTS")
DRAWN = re.compile(r'^<\w+ class="(?:block|swatch|tick|sign)\b')
"""What axe cannot measure the contrast of: what overlaps on the timeline, and single signs."""
LIMIT = PATIENCE * 1000
"""In milliseconds, as Playwright has it."""
WORKERS = 2


class Tabs(OnAStore):
    """One server and one browser for all tests; each test has a tab of its own."""

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
        cls.wait_for(lambda status: status["waiting_count"] == 1, "it waits")


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
            expect(page.locator("pre.output")).to_contain_text("<script>", timeout=LIMIT)
            self.assertEqual(page.locator("#job script, #job img").count(), 0)

    def test_ten_thousand_jobs_do_not_slow_it(self):
        lines = self.server.request("GET", "/status").json
        job = next(one for one in lines["ended"] if one["state"] == "done")
        many = []
        for seq in range(1, 10_001):
            moments = {
                name: job[name] - (10_000 - seq) / 20 for name in ("received", "started", "ended")
            }
            many.append({**job, **moments, "seq": seq, "number": 10_000 + seq})
        with self.tab() as page:

            def serve(route):
                route.fulfill(json={**lines, "ended": many, "latest": 10_000})

            page.route(re.compile(r"/status\?"), serve)
            page.reload()
            self.overview(page)
            self.assertEqual(page.locator("#recent tbody tr").count(), 100)
            self.assertLessEqual(page.locator("#timeline .block").count(), 400 * WORKERS)
            self.assertLess(page.locator("*").count(), 12_000)


class OneJob(Page):
    def test_each_state_is_shown_with_what_explains_it(self):
        for name, state, message, output in (
            ("done", "done", None, "computing"),
            ("failed", "failed", "ZeroDivisionError", "dividing"),
            ("crashed", "crashed", "exit code 3", None),
            ("canceled", "canceled", "canceled", None),
            ("waiting", "waiting", None, None),
            ("running", "running", None, f"step {WORKERS - 1}"),
        ):
            with self.subTest(name), self.tab(f"#/jobs/{self.jobs[name]}") as page:
                expect(page.locator("#job .badge")).to_contain_text(state, timeout=LIMIT)
                self.assertEqual(page.inner_text("#job code.checksum >> nth=0"), self.jobs[name])
                if message is not None:
                    self.assertIn(message, page.inner_text("pre.message"))
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


class Silence(OnAStore):
    def test_a_server_that_ends_is_noticed_and_its_successor_found(self):
        first = Jobserver(self.directory / "first", {}, workers=1)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{first.port}/")
            pill = expect(page.locator("#pill"))
            pill.to_contain_text("Up", timeout=LIMIT)
            first.stop()
            pill.to_contain_text("No answer", timeout=LIMIT)
            expect(page.locator("#connection")).to_contain_text("No answer since", timeout=LIMIT)
            second = Jobserver(
                self.directory / "second", {}, workers=1, flags=("--port", str(first.port))
            )
            try:
                pill.to_contain_text("Up", timeout=LIMIT)
            finally:
                browser.close()
                second.stop()


del Tabs, Page  # they are no tests themselves
