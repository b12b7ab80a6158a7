"""One HTML file that shows a registration: no network, no program but a browser.

`write` takes a `kreg.io.Alignment`; ``kreg register`` calls it.
"""

from kreg.report.page import write

__all__ = ["write"]
