"""The page contains everything, escapes everything and loads nothing."""

import base64
import configparser
import hashlib
import html
import html.parser
import pathlib
import re
import sys

import pytest
from analysis_examples import HOSTILE, empty_analysis, example_analysis

from retinanet_jax.analysis.page import render
from retinanet_jax.analysis.plots import short_name

ROOT = pathlib.Path(__file__).parent.parent.parent
# Elements of HTML that have no end tag.
VOID = ("br", "hr", "img", "input", "link", "meta")


class Elements(html.parser.HTMLParser):
    """Collects the elements of a page, and checks that each one ends where it should."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(page.decode())
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def plain_page():
    """The page of as many categories as there are hostile names."""
    return render(example_analysis([f"name {i}" for i in range(len(HOSTILE))]))


@pytest.fixture(scope="module")
def hostile_page():
    return render(example_analysis(HOSTILE))


def test_a_name_cannot_add_an_element_or_an_attribute(plain_page, hostile_page):
    plain, hostile = Elements(plain_page), Elements(hostile_page)

    def counts(page):
        tags = [tag for tag, _ in page.elements]
        return {tag: tags.count(tag) for tag in sorted(set(tags) - {"path", "g", "use", "defs"})}

    assert counts(hostile) == counts(plain)
    assert len(hostile.named("script")) == 1
    assert not [key for _, attributes in hostile.elements for key in attributes if key[:2] == "on"]


def test_every_name_is_on_the_page_as_it_is(hostile_page):
    texts = set(Elements(hostile_page).texts)
    for name in HOSTILE:
        assert short_name(name, 60) in texts, name


def test_nothing_is_loaded_from_elsewhere(hostile_page):
    page = Elements(hostile_page)
    for tag, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert re.match("data:|#|$", attributes.get(key) or ""), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttp", hostile_page.decode())


def test_a_browser_runs_only_the_script_of_the_page(hostile_page):
    (script,) = re.findall(r"<script>(.*?)</script>", hostile_page.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policies = [
        attributes["content"]
        for attributes in Elements(hostile_page).named("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert f"script-src 'sha256-{digest}'" in policies[0]
    assert "default-src 'none'" in policies[0]


def test_the_same_analysis_is_the_same_page(plain_page):
    assert render(example_analysis([f"name {i}" for i in range(len(HOSTILE))])) == plain_page


def test_an_analysis_in_which_everything_is_undefined_is_a_page():
    page = Elements(render(empty_analysis()))
    assert not page.named("svg")
    assert not page.named("img")
    text = " ".join(page.texts)
    for sentence in ("No number of this analysis", "No image has an error.", "Undefined: there"):
        assert sentence in text
    assert not re.search(r"\b(None|nan)\b", text)


def test_commands_in_advice_are_code_and_everything_else_is_text():
    advice = {"title": "", "number": 1, "severity": "info", "text": "Run `a --b='<i>'`, <b>now</b>"}
    page = render(empty_analysis() | {"advice": [advice]}).decode()
    code = "Run <code>a --b=&#39;&lt;i&gt;&#39;</code>, &lt;b&gt;now&lt;/b&gt;"
    assert code in page


def test_the_page_of_a_thousand_categories_is_bounded():
    page = render(example_analysis([f"category {i}" for i in range(1000)]))
    assert len(page) < 3_000_000
    (table,) = [a for a in Elements(page).named("table") if a.get("id") == "category-table"]
    rows = re.search(r'id="category-table".*?</table>', page.decode(), re.DOTALL).group()
    assert rows.count("<tr>") == 1001
    assert table["class"] == "sortable"


def test_an_undefined_number_is_a_dash_and_is_sorted_as_undefined(plain_page):
    page = plain_page.decode()
    assert '<td class="number" data-value="0.1">0.100</td>' in page
    assert '<td class="number" data-value="">-</td>' in page


def test_a_wheel_has_the_files_of_the_page():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options.package_data"]["retinanet_jax.analysis"].split(", ")
    folder = ROOT / "retinanet_jax" / "analysis"
    assert sorted(listed) == sorted(p.name for p in folder.glob("*.*") if p.suffix != ".py")


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_an_extra_that_is_not_installed_is_one_line(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"the page of the analysis requires {module}, ") as error:
        render(empty_analysis())
    assert 'pip install "retinanet-jax[analyze]"' in str(error.value)
    assert "\n" not in str(error.value)
