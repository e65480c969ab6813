import sys

import pytest

from reward_sdk.errors import ConfigError
from reward_sdk.templates import template


def test_what_a_template_is_given_is_escaped_and_what_it_lacks_is_an_error(tmp_path):
    jinja2 = pytest.importorskip("jinja2")
    (tmp_path / "page.html").write_text("<p>{{ text }}</p>")
    page = template(tmp_path, "page.html")
    assert page.render(text="<script>") == "<p>&lt;script&gt;</p>"
    with pytest.raises(jinja2.UndefinedError):
        page.render()


def test_without_jinja_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r"pip install 'valor-rrg\[report\]'"):
        template(tmp_path, "page.html")
