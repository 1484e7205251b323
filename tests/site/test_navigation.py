"""Where a reader is and may go: tabs, the pages of a section, the menu; all follow from `nav` in mkdocs.yml."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, edit

from scripts.pages.registry import OVERVIEWS
from scripts.project import Project
from scripts.site.build import build
from scripts.site.gather import about, gather, settings
from scripts.site.render import render

NAV = """
nav:
  - Home: index.md
  - Models: [models/index.md, By task: tasks/index.md, A new page: new/index.md]
  - Compare: compare/index.md
  - Long: [long/index.md, {pages}]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with this theme, and with a `nav` of a short section and of one of 20 pages."""
    project = Project(tmp_path_factory.mktemp("navigation") / "tiny")
    shutil.copytree(ROOT / "tests/tiny", project.root, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "overrides", project.root / "overrides")
    for name in ("new/index", "long/index", *(f"long/{i}" for i in range(20))):
        (project.docs / name).parent.mkdir(parents=True, exist_ok=True)
        (project.docs / f"{name}.md").write_text(f"---\nhide: [navigation]\n---\n# Of {name}\n", "utf-8")
    written = project.root / "mkdocs.yml"
    features = "font: false, custom_dir: overrides, features: [navigation.tabs, navigation.prune]"
    edit(written, "font: false", features)
    edit(written, '"https://example.org/tiny"}', '"https://example.org/tiny", scope: /}')
    pages = ", ".join(f"Long {i}: long/{i}.md" for i in range(20))
    written.write_text(written.read_text("utf-8") + NAV.format(pages=pages), "utf-8")
    render(project, gather(project))
    assert build(project)
    return project.site


def part(page: Path, opened: str) -> str:
    """The first `nav` of these classes, with its end."""
    found = re.search(rf'<nav class="{opened}".*?</nav>', (page / "index.html").read_text("utf-8"), re.DOTALL)
    return found[0] if found else ""


def links(text: str) -> list[str]:
    return re.findall(r"<a [^>]*>(?:<span[^>]*>)?([^<]+)<", text)


def active_tabs(page: Path) -> list[str]:
    return re.findall(r"md-tabs__item--active[^<]*<a[^>]*>([^<]+)<", part(page, "md-tabs"))


def test_a_page_of_the_nav_stands_with_the_others_of_its_section_and_on_home(site: Path) -> None:
    assert links(part(site / "tasks", "subnav")) == ["Models", "A new page"]
    assert links(part(site / "new", "subnav")) == ["Models", "By task"]
    home = (site / "index.html").read_text("utf-8")
    assert re.findall(r'<a href="(tasks/|new/)">(By task|A new page)</a>', home) == [
        ("tasks/", "By task"),
        ("new/", "A new page"),
    ]


def test_a_page_that_the_nav_does_not_list_stands_in_the_section_above_it(site: Path) -> None:
    assert active_tabs(site / "models/alpha") == ["Models"]
    assert links(part(site / "models/alpha", "subnav")) == ["Models", "By task", "A new page"]
    (pair,) = [path for path in (site / "compare").iterdir() if path.is_dir()]
    assert active_tabs(pair) == ["Compare"]
    assert links(part(pair, "subnav")) == ["Compare"], "the way back"
    assert part(site / "compare", "subnav") == "", "a section of one page leads nowhere"


def test_the_menu_holds_the_pages_of_each_short_section_wherever_one_is_and_no_generated_page(site: Path) -> None:
    for page in (site, site / "models/alpha", site / "compare"):
        text = (page / "index.html").read_text("utf-8")
        menu = text[text.index('<nav class="md-nav md-nav--primary') : text.index('data-md-component="content"')]
        told = links(menu)
        assert {"By task", "A new page", "Long"} <= set(told)
        assert not {"Long 7", "Alpha", "Beta"} & set(told)
    assert "Long 7" in (site / "long/3/index.html").read_text("utf-8")


def test_every_overview_has_its_place_in_the_nav() -> None:
    listed = re.findall(r"[\w/-]+\.md", str(settings(Project(ROOT))["nav"]))
    assert OVERVIEWS.keys() - set(listed) == set()
    assert len(listed) == len(set(listed))


def test_home_leads_to_each_overview_within_a_section() -> None:
    found = [address for _, address in about(Project(ROOT)).within]
    assert {"tasks/", "licensing/", "detectors/", "scaling/"} <= set(found)
    assert not {"models/", "choose/", "reference/", "about/cluster.md"} & set(found)


def test_home_has_the_title_of_the_site_and_says_nothing_of_another(ready: Project) -> None:
    home = (ready.docs / "index.md").read_text("utf-8")
    assert home.startswith('---\ntitle: "Tiny"\n')
    assert "Model Comparisons" not in home
