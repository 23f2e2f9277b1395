"""The report in Chromium: it draws without errors, its controls work by mouse and keyboard, names stay text."""

import json
import shutil

import pytest

from paretopress.report import write_report

HOSTILE_SIGN = "owned"


@pytest.fixture
def report(page, tiny_run):
    """The report of a real run, open."""
    return page.open(write_report(tiny_run.path).as_uri())


def test_it_loads_without_a_line_on_the_console(report):
    assert report.console() == []
    assert report.count("#scatter .mark") >= 3
    assert report.count("#scatter .dot") > 0
    assert report.count("#scatter .reference") == 1
    assert report.count("#scatter .prediction") > 0
    assert report.count("#points tbody tr") == report.count("#scatter .mark")
    assert report.count("#curves .curve-point") > 0
    assert report.count("#volume .series") == 1
    assert report.count("#trials .dot") > 0
    assert report.count("#dropped-body tbody tr") > 0


def test_sliders_filter_the_plot_and_the_table(report):
    shown = "return [...document.querySelectorAll('#points tbody tr')].filter((row) => !row.hidden).length"
    before = report.run(shown)
    report.run("""
        const slider = document.querySelector('#limits input[data-axis="size"]');
        for (let place = 199; !document.querySelector("#points tr[hidden]") && place >= 0; place -= 1) {
          slider.value = place;
          slider.dispatchEvent(new Event("input", { bubbles: true }));
        }
    """)
    assert 0 < report.run(shown) < before
    assert report.count("#scatter .dot.gone") > 0
    assert report.count("#scatter .mark.dense:not(.gone)") == 1   # references stay
    assert report.text("#shown").startswith(f"{report.run(shown)} of {before} verified points")
    report.push("No limits")
    assert report.run(shown) == before


def test_the_budgets_are_limits_at_a_click(report):
    report.push("Use the budgets")
    slider = "document.querySelector('#limits input[data-axis=accuracy]')"
    assert report.run(f"return {slider}.getAttribute('aria-valuetext')").endswith("%")
    assert report.count("#scatter .budget") == 1


def test_a_click_opens_the_policy_layer_by_layer(report):
    report.click("#scatter .mark:not(.dense)")
    selected = report.run("return document.querySelector('#scatter .mark.selected').dataset.key").removeprefix("point-")
    assert report.text("#policy-title").startswith(f"Policy of #{selected}")
    assert report.texts(".heat tbody th button") == ["first", "depthwise", "second", "last"]
    assert report.count(".heat .gauge") >= 4
    assert "alone" in report.text(".heat")
    assert f"--pick id:{selected} --format onnx" in report.text(".command code")
    assert report.count("#curves .curve-point.taken") <= 1


def test_everything_is_reached_with_the_keyboard(report):
    from selenium.webdriver.common.keys import Keys

    report.run("document.querySelector('#scatter .mark[tabindex=\"0\"]').focus()")
    first = report.run("return document.activeElement.dataset.key")
    report.press(Keys.HOME)
    report.press(Keys.ARROW_RIGHT)
    second = report.run("return document.activeElement.dataset.key")
    assert report.count("#tip:not([hidden])") == 1
    report.press(Keys.ENTER)
    assert report.run("return document.querySelector('.mark.selected').dataset.key") == second
    assert report.run("return document.activeElement.id") == "policy"
    report.run("document.querySelector('#points .open').focus()")
    report.press(Keys.ENTER)
    assert report.text("#policy-title").startswith("Policy of #")
    report.run("document.getElementById('trial-number').focus()")
    report.press("1", Keys.ENTER)
    assert report.text("#policy-title") == "Policy of trial 1"
    assert first is not None
    unreachable = report.run("""
        return [...document.querySelectorAll("button, select, input, summary, a[href]")]
          .filter((one) => one.tabIndex < 0 && !one.closest("[hidden]")).length
    """)
    assert unreachable == 0


def test_tab_walks_from_the_heading_to_the_plot(report):
    from selenium.webdriver.common.keys import Keys

    seen = []
    report.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    for _ in range(14):
        report.press(Keys.TAB)
        seen.append(report.run("""
            const on = document.activeElement;
            return on.dataset.key || on.getAttribute("class") || on.id;
        """))
    assert seen[0] == "skip"
    assert any(one and one.startswith("point-") for one in seen)


def test_every_control_and_mark_has_a_name(report):
    nameless = report.run("""
        const named = (one) => one.getAttribute("aria-label") || one.textContent.trim()
          || one.closest("label")?.textContent.trim() || one.getAttribute("title");
        const all = "button, select, input, a[href], [role=button], svg[role=img], svg[role=group]";
        const nameless = [...document.querySelectorAll(all)].filter((one) => !named(one));
        return nameless.map((one) => one.outerHTML.slice(0, 80));
    """)
    assert nameless == []


def test_axes_can_be_any_two_figures(report):
    report.run("""
        const [horizontal, vertical] = document.querySelectorAll("#axes select");
        for (const [box, value] of [[horizontal, "macs"], [vertical, "size"]]) {
          box.value = value; box.dispatchEvent(new Event("change"));
        }
    """)
    label = report.run("return document.querySelector('#scatter svg').getAttribute('aria-label')")
    assert label.startswith("stored size against MACs")
    assert report.count("#scatter .mark") >= 3
    assert report.console() == []


def test_dark_and_light_follow_the_system_until_somebody_chooses(page, tiny_run):
    address = write_report(tiny_run.path).as_uri()
    background = "return getComputedStyle(document.body).backgroundColor"
    page.prefer("dark")
    page.open(address)
    assert page.run(background) == "rgb(20, 23, 28)"
    page.prefer("light")
    page.wait("document.documentElement.dataset.theme === 'light'")
    assert page.run(background) == "rgb(255, 255, 255)"
    page.run("document.getElementById('theme').click()")
    assert page.run(background) == "rgb(20, 23, 28)"
    page.prefer("dark")
    page.run("document.getElementById('theme').click()")
    assert page.run(background) == "rgb(255, 255, 255)"


def test_on_paper_it_is_light_and_open(report):
    report.run("document.getElementById('theme').click(); window.dispatchEvent(new Event('beforeprint'))")
    report.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert report.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert report.run("return getComputedStyle(document.getElementById('limits')).display") == "none"
        assert report.run("return document.querySelector('#dropped details').open") is True
    finally:
        report.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_names_of_a_hostile_model_stay_text(page, hostile_run):
    page.open(write_report(hostile_run).as_uri())
    page.click("#scatter .mark")
    page.click("#trials .dot")
    assert page.console() == []
    assert HOSTILE_SIGN not in page.driver.title
    names = page.texts(".heat tbody .layer button")
    assert "</script><script>document.title='owned'</script>" in names
    assert "<img src=x onerror=\"document.title='owned'\">" in names
    assert page.count("main img, main script, main iframe, main svg svg") == 0


def test_the_page_cannot_fetch_anything(report):
    found = report.driver.execute_async_script("""
        const done = arguments[arguments.length - 1];
        fetch("http://127.0.0.1:9/").then(() => done("fetched"), () => done("refused"));
    """)
    assert found == "refused"
    assert any("Content Security Policy" in line for line in report.console())
    assert report.run("""
        try { document.body.innerHTML = "<b>x</b>"; return "parsed"; } catch (error) { return error.name; }
    """) == "TypeError"
    report.console()


def test_figures_read_as_on_the_command_line(page, hostile_run, data_of):
    from paretopress.evaluators.budgets import shown

    path = write_report(hostile_run)
    data = data_of(path)
    page.open(path.as_uri())
    point = next(one for one in data["points"] if one["knee"])
    rows = page.run("""
        const rows = [...document.querySelectorAll(".policy-head tbody tr")];
        return rows.map((row) => [...row.children].map((one) => one.textContent));
    """)
    axes = [axis for axis in data["axes"] if axis in point["measured"] or axis in point["predicted"]]
    assert len(rows) == len(axes) >= 5
    for axis, (_, measured, predicted, _) in zip(axes, rows, strict=True):
        for text, figures in ((measured, point["measured"]), (predicted, point["predicted"])):
            if axis in figures and axis != "accuracy":
                base = "size" if axis.endswith("_bytes") else axis
                assert text.split(" (")[0] == shown(base, figures[axis][0])


def test_a_time_is_a_ratio_of_what_the_dense_model_took_in_turn_with_it(page, hostile_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(hostile_run, run)
    front = json.loads((run / "front.json").read_text())
    knee = next(point for point in front["points"] if point["knee"])
    knee["measured"] |= {"latency_ms": 2.0, "latency_ms_baseline": 9.0}   # the dense model alone took another time
    (run / "front.json").write_text(json.dumps(front))
    page.open(write_report(run).as_uri())
    assert page.texts(".policy-head tbody td:last-child").count("4.50x") == 1
