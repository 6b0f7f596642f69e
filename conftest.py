"""What the project's own test suites share."""

pytest_plugins = ["pytester"]
