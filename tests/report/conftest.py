"""Reports in a real browser: Debian's Chromium, driven through its own driver."""

import importlib.util
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "a\u2028b\u202e & {{script}} ${1}",
    "'\"><svg onload=alert(1)>",
)


@pytest.fixture(scope="session")
def made_run():
    """`made_run(folder, trials=..., layers=..., names=...)` of `benchmarks/report/made_run.py`."""
    spec = importlib.util.spec_from_file_location("made_run", ROOT / "benchmarks" / "report" / "made_run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.made_run


@pytest.fixture(scope="session")
def hostile_run(made_run, tmp_path_factory):
    """A finished run of a model whose layers have hostile names."""
    return made_run(tmp_path_factory.mktemp("hostile") / "run", trials=40, layers=8, names=HOSTILE)


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """One Chromium for all tests, without a window and without network of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    options = Options()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1280,1000", f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(chromedriver, env={**os.environ, "HOME": str(profile)}))
    yield started
    started.quit()


class Page:
    """A page that is open in the browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address):
        self.driver.get_log("browser")
        self.driver.get(address)
        self.wait("document.documentElement.dataset.ready !== undefined")
        return self

    def prefer(self, scheme):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition, seconds=20.0):
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            if time.monotonic() > end:
                raise AssertionError(f"still not true: {condition}; console: {self.console()}")
            time.sleep(0.02)

    def count(self, selector):
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def click(self, selector):
        """A click on every element of a selector, also of a drawing."""
        self.run("""
            const click = () => new MouseEvent("click", { bubbles: true });
            for (const one of document.querySelectorAll(arguments[0])) one.dispatchEvent(click());
        """, selector)

    def push(self, text):
        """A click on the button of the limits that says so."""
        self.run("""
            [...document.querySelectorAll("#limits button")].find((one) => one.textContent === arguments[0]).click();
        """, text)

    def texts(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def console(self):
        """Lines of the console, those of refused requests among them."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()


@pytest.fixture
def page(driver):
    """The browser; light whatever the machine prefers."""
    found = Page(driver)
    found.prefer("light")
    return found


@pytest.fixture(scope="session")
def serve():
    """Serve a run on a free port in a thread; returns its address."""
    from paretopress.dashboard import Dashboard, listen

    servers = []

    def start(run, **options):
        server = listen(Dashboard(run, **options), "127.0.0.1", 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def data_of():
    """The data that a page carries."""
    def read(path):
        text = Path(path).read_text()
        start = text.index('id="data">') + len('id="data">')
        return json.loads(text[start : text.index("</script>", start)])

    return read
