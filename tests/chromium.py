"""The browser of the tests, and how long they wait for it."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Milliseconds. On a machine that does much else, a page takes more than Playwright's half minute.
PATIENCE = 240_000
