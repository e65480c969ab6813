"""Where the data stand that tests use and nobody commits: beside the checkout. Tests that need
them skip where they are absent.
"""

from pathlib import Path

DATA = Path(__file__).parents[3] / "shared/data"
