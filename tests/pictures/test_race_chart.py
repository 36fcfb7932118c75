"""The chart of a race: a line and a bar for each entrant, a panel for each budget, and text that is escaped."""

from xml.etree import ElementTree

from fbsearch.pictures.race_chart import Line, draw_race

CURVE = ((0.1, 0.2), (0.5, 0.6), (1.0, 0.9))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).findall(".//{*}text")]


def test_chart_has_a_panel_for_the_ends_and_one_for_each_budget() -> None:
    lines = [
        Line("a & b", [(1, 0.9, 0.02), (4, 0.95, None)], {1: [CURVE, CURVE], 4: [CURVE]}),
        Line("c", [(1, 0.5, None)], {1: [CURVE]}),
    ]
    svg = draw_race(lines, title="A race", caption="of two")
    found = texts(svg)
    assert [text for text in found if text.startswith(("at the end", "every run"))] == [
        "at the end of each budget", "every run of 1 s", "every run of 4 s",
    ]  # fmt: skip
    assert found[:2] == ["A race", "of two"] and found[-2:] == ["a & b", "c"]
    assert svg.count('stroke-width="1.1"') == 4, "a curve for each run"
    assert svg.count('stroke-width="1.2"') == 1, "a bar where there is a deviation"
    assert svg.count("<circle") == 3


def test_chart_shows_no_accuracy_above_1() -> None:
    svg = draw_race([Line("a", [(1, 1.0, 0.2)], {1: [((1.0, 1.0),)]})], title="", caption="")
    assert max(float(text[:-1]) for text in texts(svg) if text.endswith("%")) == 100


def test_chart_without_a_result_is_empty_but_valid() -> None:
    assert texts(draw_race([], title="A race", caption="that begins")) == ["A race", "that begins"]
