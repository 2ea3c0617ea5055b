"""Settings every test shares."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its handler keeps the captured stream of the first test
os.environ.setdefault("W2SD_TRACEBACK", "1")  # an error that nobody foresaw is a failure of a test

import pytest
import screen
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pages are looked at with playwright")
    if screen.chromium() is None:
        pytest.skip("pages are looked at with chromium, and there is none: apt-get install chromium, or set CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=screen.chromium())
        yield launched
        launched.close()


@pytest.fixture
def open_page(chromium, request):
    """A function that opens an address; in the end no error was made and nothing was asked of any network."""
    troubles, contexts = [], []

    def opened(address, width=1280, height=900, allowed=("file:", "data:", "blob:")):
        context = chromium.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(allowed) else troubles.append(asked.url))
        page.goto(str(address))
        return page

    opened.troubles = troubles
    yield opened
    for context in contexts:
        context.close()
    assert troubles == []
