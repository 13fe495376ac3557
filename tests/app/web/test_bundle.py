"""Modules in one file: as a browser would run them one by one, and no form that is not known."""

import re
from pathlib import Path

import pytest

from app.web.bundle import CannotBundle, bundle, entries

STATIC = Path(__file__).parents[3] / "app" / "web" / "static"
SOURCES = {path.stem: path.read_text() for path in STATIC.glob("*.js")}

LEAF = """export const one = 1;
export function two() { return 2; }
export async function* three() { yield one; }
export class Four {}
const PAGE = 20;
"""
MIDDLE = """import { one, two } from "./leaf.js";
const PAGE = 50;
export const five = () => one + two() + PAGE;
"""
PAGE = """import { five } from "./middle.js";
import { Four } from "./leaf.js";
const PAGE = 5;
await five(new Four(), PAGE);
"""


def test_a_module_runs_once_and_after_those_that_it_imports() -> None:
    sources = {"leaf": LEAF, "middle": MIDDLE, "page": PAGE, "other": "await 1;\n"}
    assert entries(sources) == {"page", "other"}
    assert (
        bundle(sources, "other", "page")
        == """(async () => {
await 1;
})();
const $leaf = (() => {
const one = 1;
function two() { return 2; }
async function* three() { yield one; }
class Four {}
const PAGE = 20;
return { one, two, three, Four };
})();
const $middle = (() => {
const { one, two } = $leaf;
const PAGE = 50;
const five = () => one + two() + PAGE;
return { five };
})();
(async () => {
const { five } = $middle;
const { Four } = $leaf;
const PAGE = 5;
await five(new Four(), PAGE);
})();
"""
    )


@pytest.mark.parametrize(
    "line",
    [
        'import { one as other } from "./leaf.js";',
        'import * as leaf from "./leaf.js";',
        'import "./leaf.js";',
        "export default one;",
        "export { one };",
        "export let one = 1;",
    ],
)
def test_a_form_that_is_not_known_is_refused(line: str) -> None:
    with pytest.raises(CannotBundle, match=re.escape(line)):
        bundle({"page": f"{line}\n", "leaf": LEAF}, "page")


def test_what_a_module_imports_is_exported() -> None:
    """A browser says so at once, a bundle only when the name is used."""
    for source in SOURCES.values():
        for names, module in re.findall(
            r'^import \{ (.*) \} from "\./(\w+)\.js";', source, re.MULTILINE
        ):
            exported = re.findall(r"^export (?:async )?\w+\*? (\w+)", SOURCES[module], re.MULTILINE)
            assert set(names.split(", ")) <= set(exported)
