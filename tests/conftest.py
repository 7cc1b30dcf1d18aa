"""Tests use two threads, no network, and small generated images."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import make_set

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
SHARED = Path(__file__).parents[1].parent / "shared"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

TALK = ("gpu", "quic", "background-networking", "component-update", "sync")  # what a quiet browser goes without


def pytest_collection_modifyitems(items):
    for item in items:
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs ../shared"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if "browser" in item.keywords and CHROMIUM is None:
            item.add_marker(pytest.mark.skip(reason="needs Chromium"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Also where a test before chose another number: sums are bit-equal only over equal threads."""
    torch.set_num_threads(THREADS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Only what needs ../shared, a GPU or a browser may skip."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not {"shared", "gpu", "browser"} & set(item.keywords):
        why = f"{item.nodeid}: skipped, but needs neither ../shared nor a GPU nor a browser"
        report.outcome, report.longrepr = "failed", why
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def chromium() -> str | None:
    """The machine's browser."""
    return CHROMIUM


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> Path:
    return make_set(tmp_path_factory.mktemp("tiny") / "disks", count=24, unlabelled=6)


@pytest.fixture(scope="module")
def module_path(tmp_path_factory) -> Iterator[Path]:
    """A folder that goes with the module's last test: pytest keeps those of `tmp_path_factory` to the end of all."""
    path = tmp_path_factory.mktemp("module")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator:
    """The machine's browser, running."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", *(f"--disable-{one}" for one in TALK), "--no-first-run"]
        )
        yield opened
        opened.close()
