"""The table of claims and the tests that show them, held together from both sides."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from edgeproxy.policy.claims import ClaimKind, all_claims, claims_of

ROOT = Path(__file__).parents[1]

# Every claim that the five services make. One that is gone from the table would be a promise that nobody looks after.
IDS = {
    "opusgate": "OG-1 OG-2a OG-2b OG-2c OG-2d OG-2e OG-3a OG-3b OG-4 OG-5 OG-6a OG-6b OG-6c OG-7a OG-7b OG-8a OG-8b"
    " OG-9 OG-10 OG-11",
    "opuslive": "OL-1 OL-2a OL-2b OL-3a OL-3b OL-3c OL-4a OL-4b OL-4c OL-4d OL-5a OL-5b OL-5c OL-6 OL-7 OL-8a OL-8b"
    " OL-9 OL-10a OL-10b OL-10c OL-11 OL-12",
    "opusmax": "OL-1 OL-2a OL-2b OL-3a OL-3b OL-3c OL-4a OL-4b OL-4c OL-4d OL-5a OL-5b OL-5c OL-7 OL-8a OL-8b OL-9"
    " OL-10a OL-10b OL-10c OL-11 OL-12 OM-3 OM-6",
    "opulon": "OP-1 OP-2 OP-3a OP-3b OP-3c OP-4 OP-5a OP-5b OP-5c OP-6 OP-7a OP-7b OP-8 OP-9 OP-10a OP-10b OP-10c"
    " OP-11",
    "ominigate": "OI-1a OI-1b OI-1c OI-1d OI-2a OI-2b OI-2c OI-2d OI-3a OI-3b OI-4 OI-5 OI-6 OI-7 OI-8",
}
KINDS = {"opuslive": (19, 4), "opusmax": (20, 4)}  # enforce and workflow together, page


def marked(source: str) -> dict[str, set[str]]:
    """Return the claims that the tests of a file are marked with, by name. Those in classes carry the class's name."""
    found: dict[str, set[str]] = defaultdict(set)
    tree = ast.parse(source)
    classes = {inner: outer.name for outer in tree.body if isinstance(outer, ast.ClassDef) for inner in outer.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            name = f"{classes[node]}::{node.name}" if node in classes else node.name
            found[name] |= set()
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.claims":
                    found[name] |= {each.value for each in decorator.args if isinstance(each, ast.Constant)}
                if "skip" in ast.unparse(decorator):
                    found[name] |= {"skipped"}
    return found


@cache
def marks() -> dict[str, set[str]]:
    """Return every test there is and the claims that it is marked with."""
    return {
        f"{path.relative_to(ROOT).as_posix()}::{name}": claims
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name, claims in marked(path.read_text(encoding="utf-8")).items()
    }


@pytest.mark.parametrize("name", IDS)
def test_every_claim_is_in_the_table_and_no_other(name):
    assert [claim.id for claim in claims_of(name)] == IDS[name].split()


def test_there_are_as_many_of_each_kind_as_are_made():
    for name, (done, said) in KINDS.items():
        kinds = [claim.kind for claim in claims_of(name)]
        assert (len(kinds) - kinds.count(ClaimKind.PAGE), kinds.count(ClaimKind.PAGE)) == (done, said)


def test_every_test_that_is_named_is_there_names_the_claim_and_is_not_skipped():
    wrong = []
    for claim in all_claims().values():
        own = {test for test in claim.tests if claim.id in marks().get(test, ())}
        shared = {test for each in all_claims().values() for test in each.tests if each.id in marks().get(test, ())}
        wrong += [f"{claim.id}: {test} is not there" for test in claim.tests if test not in marks()]
        wrong += [f"{claim.id}: {test} is not marked" for test in claim.tests if test not in own | shared]
        wrong += [f"{claim.id}: {test} is skipped" for test in claim.tests if "skipped" in marks().get(test, ())]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_mark_stands_in_the_table():
    wrong = [
        f"{test} is marked {claim}, whose row in claims.toml does not name it"
        for test, claims in marks().items()
        for claim in claims - {"skipped"}
        if claim not in all_claims() or test not in all_claims()[claim].tests
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_served_has_a_test_for_every_claim_that_needs_no_page_that_is_missing(name):
    bare = [claim.id for claim in claims_of(name) if not claim.tests and "pages" not in claim.needs]
    assert not bare
    for claim in claims_of(name):
        direct = [test for test in claim.tests if claim.id in marks()[test]]
        assert direct or claim.needs, claim.id


def test_marks_are_found_in_functions_and_classes():
    text = """
@pytest.mark.claims("A-1", "A-2")
@pytest.mark.parametrize("x", [1])
async def test_one(x): ...
class TestIt:
    @pytest.mark.claims("A-3")
    @pytest.mark.skipif(True, reason="never")
    def test_two(self): ...
    def not_a_test(self): ...
def test_three(): ...
"""
    assert marked(text) == {"test_one": {"A-1", "A-2"}, "TestIt::test_two": {"A-3", "skipped"}, "test_three": set()}
