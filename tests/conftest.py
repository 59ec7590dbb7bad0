from __future__ import annotations

from tests.lab.opened import open_checkout


def pytest_configure() -> None:
    open_checkout()
