"""Files for people who report, contribute or cite: the forms of issues, the checklist, CITATION.cff, SECURITY.md."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
KINDS = {"textarea", "input", "dropdown", "checkboxes", "markdown"}  # of GitHub's forms


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_github_requires(path):
    form = load(path)
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels", "title"}
    assert all(field["type"] in KINDS and field["attributes"]["label"] for field in form["body"])
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_a_bug_comes_with_the_installation_and_a_script():
    fields = {field["id"]: field for field in load(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"]}
    assert fields.keys() == {"installation", "command", "expected", "seen"}
    assert all(field["validations"]["required"] for field in fields.values())
    assert "`ssd info --report-bug`" in fields["installation"]["attributes"]["description"]
    assert load(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}


def test_the_citation_is_of_this_version():
    citation = load(ROOT / "CITATION.cff")
    project = (ROOT / "pyproject.toml").read_text()
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1]
    assert citation["license"] == re.search(r'^license = "(.+)"$', project, re.MULTILINE)[1]
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {citation['version']} ")


def test_no_file_names_the_address_of_a_repository():
    """There is none yet; a wrong one would send reports to strangers."""
    files = [*GITHUB.rglob("*.yml"), *GITHUB.rglob("*.md"), *(ROOT / name for name in ("SECURITY.md", "CITATION.cff"))]
    files += [ROOT / "CODE_OF_CONDUCT.md", ROOT / "docs" / "releasing.md"]
    assert [path.name for path in files if re.search(r"github\.com|github\.io", path.read_text())] == []
