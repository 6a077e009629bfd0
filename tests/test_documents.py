"""README and the documents: tables are what is kept of the runs, links lead somewhere."""

import json
import re

import pytest

from tests.documents import DOCUMENTS, ROOT, TABLES, intervals, kept, points, written

NAMES = [document.name for document in DOCUMENTS]
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEPT = ROOT / "configs" / "comparisons"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_tables_are_what_is_kept_of_the_runs(document):
    """Where it fails: python -m tests.documents, and look at what has changed."""
    text = document.read_text(encoding="utf-8")
    assert text == written(text)
    assert text.count("<!-- table: ") == text.count("<!-- end -->")
    assert not re.search(r"(?m)^(<<<<<<<|=======|>>>>>>>)", text)


def test_every_kept_table_stands_somewhere():
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    assert {*re.findall(r"<!-- table: (.*?) -->", "".join(texts))} == {*TABLES}


def test_every_difference_that_readme_tells_in_words_is_kept():
    found = {
        points(own)
        for file in KEPT.glob("*.lines.json")
        for line in kept(file.name.removesuffix(".lines.json"))
        for own in line["against"].values()
    }
    told = [*intervals(re.sub("<!-- table: .*?<!-- end -->", "", README, flags=re.S))]
    assert len(told) > 3 and {*told} <= found


def test_every_ratio_of_speed_in_readme_stands_in_the_document_on_speed():
    speed = (ROOT / "kgraft/docs/speed.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"## Speed\n(.*?)\n## ", README, re.S)
    told = re.findall(r"\d+\.\d+ \(\d+\.\d+ to \d+\.\d+\)", table)
    assert len(told) == 9
    assert all(ratio in speed for ratio in told)
    text = (KEPT / "speed-h200.results.jsonl").read_text(encoding="utf-8")
    rates = {str(round(float(own))) for own in re.findall(r"\d+(?:\.\d+)?", text)}
    for number in re.findall(r"\d+,\d+", table):
        assert number.replace(",", "") in speed
        assert number.replace(",", "") in rates


def test_a_number_that_parts_from_what_is_kept_is_seen():
    """The check can fail."""
    changed = README.replace("+3.12 (+2.67 to +3.58)", "+4.12 (+2.67 to +3.58)")
    assert changed != README and written(changed) != changed


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for place in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
        file, _, heading = place.partition("#")
        target = (document.parent / file) if file else document
        assert target.exists(), place
        if heading:
            headings = re.findall(r"(?m)^#+ (.*)$", target.read_text(encoding="utf-8"))
            known = {re.sub(r"[^\w -]", "", own.lower()).replace(" ", "-") for own in headings}
            assert heading in known, place


def test_the_kept_lines_are_of_comparisons_that_come_with_kgraft():
    for file in KEPT.glob("*.lines.json"):
        told = json.loads(file.read_text(encoding="utf-8"))
        name = re.match(r"kgraft compare comparisons/([\w-]+)", told["command"])[1]
        assert (KEPT / f"{name}.toml").is_file()
        text = (KEPT / f"{name}.toml").read_text(encoding="utf-8")
        for line in told["entries"]:
            assert line["entry"].replace(", constant pull", "") in text
