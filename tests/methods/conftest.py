"""Of the behaviour matrix what a backbone refuses is left out here; that it does refuse is a test of its own."""

from helpers_methods import refusal


def pytest_collection_modifyitems(items):
    def refused(item):
        given = getattr(getattr(item, "callspec", None), "params", {})
        return "variant" in given and refusal(given["variant"], given.get("family"))

    items[:] = [item for item in items if not refused(item)]
