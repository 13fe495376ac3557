"""Pages against the rules of axe-core, in both themes and from wide windows to narrow ones."""

from typing import TYPE_CHECKING, Literal

from axe_playwright_python.sync_playwright import Axe

if TYPE_CHECKING:
    from playwright.sync_api import Page

VIEWS: tuple[tuple[Literal["light", "dark"], int], ...] = (
    ("light", 1280),
    ("dark", 768),
    ("dark", 390),
    ("light", 320),  # as a window of 1280 pixels, enlarged to 400 %
)
# of WCAG 2.2 AA, which axe leaves out unless it is asked
_RULES = {"rules": {"target-size": {"enabled": True}}}
# what readers may set (WCAG 1.4.12); of elements, as the policy allows no style sheet
_SPACED = """() => {
  for (const node of document.querySelectorAll("body *")) {
    Object.assign(node.style, { letterSpacing: "0.12em", wordSpacing: "0.16em", lineHeight: 1.5 });
    if (node.tagName === "P") node.style.marginBottom = "2em";
  }
}"""
# buttons, links and cells whose text is cut off
_CUT = """() => [...document.querySelectorAll("button, .button, nav a, th, td, label, dd, dt")]
  .filter((node) => node.clientWidth > 1 && node.scrollWidth > node.clientWidth + 1
    && getComputedStyle(node).display !== "inline").map((node) => node.outerHTML.slice(0, 80))"""
# until what observes a size has seen the new one, as a picture does that is as wide as its place
_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_TOO_WIDE = "() => document.documentElement.scrollWidth > innerWidth"


def broken_rules(page: "Page") -> list[tuple[str, list[object]]]:
    """What axe-core finds on the page as it is: the rule, and the first elements that break it."""
    found = Axe().run(page, options=_RULES).response["violations"]
    return [(rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in found]


def misfits(page: "Page") -> list[tuple[str, object]]:
    """What is cut off, or makes the page too wide."""
    cut = page.evaluate(_CUT)
    return [("does not fit", cut)] if cut or page.evaluate(_TOO_WIDE) else []


def space(page: "Page") -> None:
    """Give the elements of the page the spacing that readers may set."""
    page.evaluate(_SPACED)


def faults(page: "Page") -> list[tuple[object, ...]]:
    """All that is wrong with the page as it is, in every view; then it has readers' spacing."""
    found: list[tuple[object, ...]] = []
    for spacing in (False, True):
        for theme, width in VIEWS:
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            page.set_viewport_size({"width": width, "height": 900})
            page.evaluate(_FRAMES)
            rules = [] if spacing else broken_rules(page)
            found += [(theme, width, spacing, *each) for each in [*rules, *misfits(page)]]
        space(page)
    return found
