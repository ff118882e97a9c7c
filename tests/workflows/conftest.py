"""The order of the tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the page come first.

    Test processes take tests from each other's ends, and each opens a browser for those it gets.
    """
    items.sort(key=lambda item: item.path.name != "test_page.py")
