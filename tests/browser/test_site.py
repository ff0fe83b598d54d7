"""The site of docs/, opened from its folder: its search works, and it loads only its own files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_page import CHROMIUM, HANG, browser, pytestmark  # noqa: F401

pytest.importorskip("zensical", reason="pip install -r requirements-docs.lock")
ROOT = Path(__file__).resolve().parents[2]


def test_the_search_works_without_a_server(browser, tmp_path):  # noqa: F811
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    subprocess.run([sys.executable, "-m", "zensical", "build"], cwd=tmp_path, check=True)
    page, asked = browser.new_page(), []
    page.set_default_timeout(HANG)
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "site/index.html").as_uri())
    page.get_by_role("button", name="Search").click()
    page.get_by_placeholder("Search").fill("inoculation")
    page.locator("a", has_text=re.compile("Inoculation adapters")).first.click()
    page.wait_for_url("**/design.html*")
    assert asked and all(url.startswith(("file:", "data:", "about:")) for url in asked)
