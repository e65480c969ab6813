"""Says at the end which stacks were run for real, and with which versions."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = {
    "test_trl": "trl", "test_verl": "verl", "test_swift": "ms-swift", "test_openrlhf": "openrlhf",
    "test_nemo_gym": "nemo-gym", "test_verifiers": "verifiers",
}  # fmt: skip


def pytest_terminal_summary(terminalreporter):
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", [])]
    for module, package in PACKAGES.items():
        number = sum(f"contract/{module}.py::" in nodeid for nodeid in passed)
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if number:
            terminalreporter.write_line(f"run for real: {package} {found}: {number} tests passed")
