"""The chart of replays: a panel for each number of workers, a line an arm, the reference's interval shaded."""

import re

from fbsearch.pictures.regret_chart import Curve, draw_regrets


def curve(name: str, *regrets: float) -> Curve:
    return Curve(name, [(float(when), regret, regret - 0.01, regret + 0.01) for when, regret in enumerate(regrets, 1)])


def test_draw_regrets_has_a_panel_for_each_number_of_workers() -> None:
    panels = {"1 worker": [curve("a & b", 0.5, 0.1), curve("c", 0.4, 0.2)], "4 workers": [curve("c", 0.3, 0.3)]}
    svg = draw_regrets(panels, reference="c", title="Replays", caption="of two")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert texts[:2] == ["Replays", "of two"] and texts[-2:] == ["a &amp; b", "c"]
    assert [text for text in texts if "worker" in text] == ["1 worker", "4 workers"]
    assert svg.count("<polygon") == 2, "the reference is in both panels"


def test_draw_regrets_keeps_lines_inside_their_panel() -> None:
    svg = draw_regrets({"1 worker": [curve("a", *[0.9] * 1, *[0.1] * 19)]}, reference="", title="", caption="")
    heights = [
        float(y) for points in re.findall(r'<polyline points="([^"]*)"', svg) for y in re.findall(r",(\S+)", points)
    ]
    assert min(heights) == 120 and "<polygon" not in svg
    assert "<svg" in draw_regrets({}, reference="", title="nothing", caption="")
