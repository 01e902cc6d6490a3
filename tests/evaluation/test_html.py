"""The report page in a real browser, and its data."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.data.fixes import read_fixes
from hgsl.evaluation import make_task, rank
from hgsl.evaluation.neighbors import Neighbors
from hgsl.evaluation.show.html import PageOptions, render_html, script_json, write_html
from hgsl.evaluation.show.inspection import confusions, embedding_map, suspicious_pairs
from hgsl.evaluation.show.pictures import Tile, write_contact_sheet, write_sheet
from hgsl.evaluation.show.plots import write_curves
from hgsl.evaluation.show.report import build_report

EVIL = "</script><script>document.title='owned'</script>"
NAMES = ["rose", "daisy", EVIL, "<img src=x onerror=alert(1)>", "oak & ash"]


def make_page(count=60, noise=1.0, **options):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % len(NAMES)
    vectors = rng.standard_normal((len(NAMES), 8))[labels] + noise * rng.standard_normal((count, 8))
    ranking = rank(make_task(np.float32(vectors), labels, ids=np.arange(count) + 100))
    report = build_report(
        ranking.result, protocol="zero-shot", split_hash="abc", bootstrap=50, notes=[EVIL], versions={"hgsl": "0"}
    )
    return report, ranking, PageOptions(class_names=NAMES, progress=False, **options)


def color(image_id):
    return Image.new("RGB", (40, 30), (image_id * 37 % 256, image_id * 91 % 256, 120))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    report, ranking, options = make_page(load_image=color)
    write_html(path, report, ranking, options)
    return path


@pytest.fixture
def page(browser, watched, page_file):
    """A new tab with the report; script errors in it and requests to the network fail the test."""
    with browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        tab = context.new_page()
        trouble = watched(tab, "file:")
        tab.goto(page_file.as_uri())
        yield tab
        assert trouble == []


def test_every_section_is_named_by_its_heading():
    report, ranking, options = make_page()
    text = render_html(report, ranking, options)
    names = dict(re.findall(r'<(?:section|dialog) id="(\w+)" aria-labelledby="([\w-]+)"', text))
    assert set(names) == set(re.findall(r'<(?:section|dialog) id="(\w+)"', text)) >= {"queries", "classes", "viewer"}
    for element, heading in names.items():
        assert f'<h2 id="{heading}"' in text, element


def test_names_stay_text(page):
    assert page.title() == "Retrieval report"
    assert page.locator("header .notes li").inner_text() == EVIL
    page.fill("#find", "</script>")
    assert page.locator("#query-list .name").first.inner_text() == EVIL
    assert page.locator("main img:not([src^='data:image/webp'])").count() == 0


def test_queries_filter_and_sort(page):
    score = page.locator("#query-list .about .caption b")
    worst = [float(text) for text in score.all_inner_texts()]
    assert worst == sorted(worst)
    assert "60 of 60" in page.locator("#count").inner_text()
    page.select_option("#order", "best")
    best = [float(text) for text in score.all_inner_texts()]
    assert best == sorted(best, reverse=True)
    page.select_option("#show", "wrong")
    assert page.locator("#query-list .strip > span:nth-child(2) .thumb.hit").count() == 0
    page.click("#clear")
    page.fill("#find", "daisy")
    assert set(page.locator("#query-list .name").all_inner_texts()) == {"daisy"}
    page.fill("#find", "117")  # an id
    assert page.locator("#query-list li").count() == 1


def test_queries_for_which_an_index_finds_nothing_are_sorted_last(browser, watched, tmp_path):
    report, ranking, options = make_page(count=10, noise=0.1)
    positions, scores = ranking.neighbors.positions.copy(), ranking.neighbors.scores.copy()
    positions[[2, 5]], scores[[2, 5]] = -1, -np.inf
    write_html(
        tmp_path / "report.html",
        report,
        replace(ranking, neighbors=Neighbors.of(ranking.task, positions, scores)),
        options,
    )
    with browser.new_context() as context:
        tab = context.new_page()
        trouble = watched(tab, "file:")
        tab.goto((tmp_path / "report.html").as_uri())
        tab.select_option("#order", "sure")
        thumbnails = [line.locator(".thumb").count() for line in tab.locator("#query-list li").all()]
        assert trouble == []
    assert thumbnails == 8 * [9] + 2 * [1]


def test_frames_mark_hits_and_misses(page):
    for line in page.locator("#query-list li").all()[:5]:
        name = line.locator(".name").inner_text()
        for found in line.locator(".strip > span:not(:first-child)").all():
            right = found.locator(".label").inner_text().strip() == name
            assert found.locator(".thumb").get_attribute("class") == f"thumb {'hit' if right else 'miss'}"
            assert found.locator(".mark").inner_text() == ("✓" if right else "✗")


def test_more_queries_come_on_request(page):
    assert page.locator("#query-list li").count() == 30
    page.click("#more")
    assert page.locator("#query-list li").count() == 60
    assert page.locator("#more").is_hidden()


def test_a_query_opens_by_keyboard_and_the_arrows_turn_pages(page):
    first = page.locator("#query-list button").first
    first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    path = page.locator("#viewer-images .path").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-images .path").inner_text() != path
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer-images .path").inner_text() == path
    page.locator("#viewer-images > div > button").first.click()  # a neighbor, as a query of its own
    assert page.locator("#viewer-images .path").inner_text() != path
    page.keyboard.press("Escape")
    assert viewer.is_hidden()


def test_class_table_sorts_and_filters(page):
    def column(number):
        return page.locator(f"#class-table tbody td:nth-child({number})").all_inner_texts()

    assert len(column(1)) == len(NAMES)
    for number, heading in ((3, "MAP@R"), (4, "Recall@1")):
        page.get_by_role("columnheader", name=heading).get_by_role("button").click()
        once = [float(text) for text in column(number)]
        page.get_by_role("columnheader", name=heading).get_by_role("button").click()
        twice = [float(text) for text in column(number)]
        assert sorted([once, twice]) == [sorted(once), sorted(once, reverse=True)]
        assert page.locator("th[aria-sort]").count() == 1
    page.fill("#find-class", "oak")
    assert column(1) == ["oak & ash"]
    page.locator("#class-table tbody button").click()
    assert set(page.locator("#query-list .name").all_inner_texts()) == {"oak & ash"}


def test_a_confusion_leads_to_its_queries(page):
    line = page.locator("#confusion-list li").first
    times = int(line.locator(".times").inner_text().split()[0])
    line.locator("button").click()
    page.wait_for_function("document.getElementById('count').textContent.includes('taken for')")
    assert page.locator("#count").inner_text().startswith(f"{times} of 60")


def test_a_point_of_the_map_opens_its_query(page):
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#plot").bounding_box()
    data = json.loads(page.locator("#data").text_content())
    number, x, y = data["map"][0]
    place = {"x": 16 + x * (box["width"] - 32), "y": 16 + y * (box["height"] - 32)}
    page.locator("#plot").hover(position=place)
    assert page.locator("#hint").inner_text()
    page.locator("#plot").click(position=place)
    assert page.locator("#viewer").is_visible()
    assert number < len(data["queries"])
    page.click("#close")
    page.select_option("#highlight", "1")


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_overflows_a_small_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator("#query-list button").first.click()
    assert page.locator("#viewer").bounding_box()["width"] <= width
    page.keyboard.press("Escape")


def test_dark_and_light_have_readable_colors(page, check_colors):
    check_colors(page)


def test_a_page_without_pictures_shows_names(browser, tmp_path):
    report, ranking, options = make_page(image_names={100 + i: f"photos/{i}.jpg" for i in range(60)})
    write_html(tmp_path / "names.html", report, ranking, options)
    with browser.new_context() as context:
        tab = context.new_page()
        tab.goto((tmp_path / "names.html").as_uri())
        assert tab.locator("#query-list .none").first.inner_text().startswith("photos/")


@pytest.mark.slow
def test_six_thousand_queries_open(browser, tmp_path):
    report, ranking, options = make_page(6000, load_image=color, max_pictures=500, map_images=100)
    write_html(tmp_path / "large.html", report, ranking, options)
    assert (tmp_path / "large.html").stat().st_size < 6_000_000
    with browser.new_context() as context:
        tab = context.new_page()
        tab.goto((tmp_path / "large.html").as_uri())
        assert tab.locator("#query-list li").count() == 30
        assert "6000 of 6000" in tab.locator("#count").inner_text()


def test_embedded_json_cannot_end_its_element():
    text = str(script_json({"name": "</script><!--&\u2028"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": "</script><!--&\u2028"}


def test_perfect_scores_make_a_page():
    vectors = np.float32(np.eye(5)[np.arange(20) % 5])
    task = make_task(vectors, np.arange(20) % 5)
    ranking = rank(task)
    report = build_report(ranking.result, protocol="p", split_hash="h")
    assert "100.00" in render_html(report, ranking, PageOptions(class_names=NAMES, progress=False))
    assert confusions(ranking.result.query_labels, ranking.neighbors) == []


def test_confusions_and_suspicious_pairs():
    neighbors = Neighbors(
        positions=np.array([[1, 2], [0, 2], [0, -1]]),
        ids=np.array([[1, 2], [0, 2], [0, 0]]),
        labels=np.array([[5, 7], [4, 7], [4, 0]]),
        scores=np.float32([[0.9, 0.2], [0.9, 0.5], [0.2, -np.inf]]),
        hits=np.array([[False, False], [False, False], [False, False]]),
    )
    assert confusions(np.array([4, 5, 7]), neighbors) == [(4, 5, 1), (5, 4, 1), (7, 4, 1)]
    pairs = suspicious_pairs(np.array([0, 1, 2]), neighbors)
    assert [pair[:2] for pair in pairs] == [(0, 1), (1, 2), (0, 2)]
    assert pairs[0][2] == pytest.approx(0.9)


def test_the_map_places_similar_images_together():
    _, ranking, _ = make_page(100, noise=0.1)
    rows, points = embedding_map(ranking.task)
    assert (rows == np.arange(100)).all()
    assert points.min() == 0
    assert points.max() == 1
    labels = np.arange(100) % len(NAMES)
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    assert len(embedding_map(ranking.task, limit=30)[0]) == 30


def test_contact_sheet_frames_right_and_wrong(tmp_path):
    _, ranking, _ = make_page()
    result, neighbors = ranking.result, ranking.neighbors.first(3)
    row = int(np.flatnonzero(neighbors.hits[:, 0] & ~neighbors.hits[:, 1])[0])
    names = [f"{name}\nof two lines" for name in NAMES]
    write_contact_sheet(
        tmp_path / "sheet.png", [row], result.query_ids, result.query_labels, neighbors, color, names, side=96
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        left = 96 + 24
        green, orange = sheet.getpixel((left + 1, 9)), sheet.getpixel((left + 104 + 1, 9))
    assert (green, orange) == ((0x15, 0x80, 0x3D), (0xC2, 0x41, 0x0C))


def test_a_sheet_draws_the_letters_of_other_alphabets(tmp_path):
    def pixels(name):
        write_sheet(tmp_path / "sheet.png", [[Tile(lambda: color(0), "query", name)]], 1)
        return (tmp_path / "sheet.png").read_bytes()

    sheets = [pixels(name) for name in ("ö", "ü", "ñ", "ł", "я", "λ")]
    assert len(set(sheets)) == 6, "a font draws every letter that it lacks as the same box"
    assert pixels("u\u0308") == sheets[1], "two characters, as file names on a Mac have it"


@pytest.mark.parametrize("suffix", ["jpg", "gif", "webp", "none"])
def test_a_sheet_that_a_format_cannot_hold_is_refused(tmp_path, suffix):
    line = [Tile(lambda: color(0), "query", "a")]
    with pytest.raises(InputError, match=r"cannot write an image of 69,412 x 226 pixels to .*: use a name such as"):
        write_sheet(tmp_path / f"sheet.{suffix}", [line], 400)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_curves_are_written(tmp_path, suffix):
    path = tmp_path / f"curves{suffix}"
    write_curves(path, {"a": {1: 0.5, 8: 0.9}, "b": {1: 0.4}}, {"loss": [(0, 3.0), (1, 2.0)]})
    assert path.stat().st_size > 2000


@pytest.fixture
def named_page(browser, watched, tmp_path):
    """A report with pictures and paths, in a browser that keeps downloads."""
    report, ranking, options = make_page(
        load_image=color, image_names={100 + i: f'photos/{i}, "x".jpg' for i in range(60)}
    )
    write_html(tmp_path / "report.html", report, ranking, options)
    with browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True) as context:
        tab = context.new_page()
        trouble = watched(tab, "file:", "blob:")
        tab.goto((tmp_path / "report.html").as_uri())
        yield tab
        assert trouble == []


def test_pairs_are_marked_by_keyboard_and_downloaded(named_page):
    page = named_page
    assert page.locator("#download").is_disabled()
    first = page.locator("#pair-list button").first
    first.focus()
    page.keyboard.press("Enter")
    paths = page.locator("#pair-images .path").all_inner_texts()
    classes = page.locator("#pair-images figcaption b").all_inner_texts()
    page.keyboard.press("1")
    assert page.locator("#pair-state input").input_value() == classes[1]
    page.fill("#pair-state input", "DAISY")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    second = page.locator("#pair-images .path").all_inner_texts()
    assert second != paths
    page.keyboard.press("f")
    page.keyboard.press("ArrowRight")
    third = page.locator("#pair-images .path").all_inner_texts()
    page.keyboard.press("d")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("2")
    page.keyboard.press("u")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == first.get_attribute("aria-label")
    assert page.locator("#pair-list .badge").all_inner_texts()[:4] == ["wrong label", "fine", "duplicate", ""]
    page.reload()  # marks outlive the page
    assert page.locator("#mark-list li").count() == 3
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "fixes.csv"
    fixes = read_fixes(download.value.path())
    assert [(fix.path, fix.mark, fix.label, fix.other) for fix in fixes] == [
        (paths[0], "wrong label", "daisy", ""),
        (second[0], "fine", "", second[1]),
        (third[1], "duplicate", "", third[0]),
    ]
    page.click("#forget")
    assert page.locator("#mark-list li").count() == 0


def test_any_neighbor_opens_beside_its_query_and_its_path_is_copied(named_page):
    page = named_page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#query-list button").nth(3).click()
    query = page.locator("#viewer-images .path").inner_text()
    page.locator("#viewer-images .compare").nth(2).click()
    assert page.locator("#pair-images .path").all_inner_texts()[0] == query
    assert page.locator("#pair-images img").count() == 2
    page.locator("#pair-images .copy").nth(0).click()
    assert page.evaluate("navigator.clipboard.readText()") == query
    page.keyboard.press("Escape")
    assert page.locator("#viewer").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#viewer").is_hidden()


def test_names_on_the_map_do_not_cover_each_other(page, page_file, tmp_path):
    text = page_file.read_text()
    content = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    data = json.loads(content)
    data["map"] = [[number, 0.5, 0.5] for number, _, _ in data["map"]]
    (tmp_path / "one_point.html").write_text(text.replace(content, script_json(data)))
    page.goto((tmp_path / "one_point.html").as_uri())
    drawn = page.evaluate("""() => {
        const drawn = [];
        CanvasRenderingContext2D.prototype.fillText = (name, x, y) => drawn.push([name, y]);
        window.dispatchEvent(new Event("resize"));
        return drawn;
    }""")
    assert sorted(name for name, _ in drawn) == sorted(NAMES)
    assert min(np.diff(sorted(y for _, y in drawn))) >= 16, "every class has the same median"


def test_the_map_zooms_and_its_points_still_open_their_queries(page):
    data = json.loads(page.locator("#data").text_content())
    page.locator("#plot").scroll_into_view_if_needed()
    box = page.locator("#plot").bounding_box()
    number, x, y = data["map"][7]
    place = {"x": 16 + x * (box["width"] - 32), "y": 16 + y * (box["height"] - 32)}
    page.locator("#plot").hover(position=place)
    hint = page.locator("#hint").inner_text()
    for _ in range(8):
        page.mouse.wheel(0, -100)
    page.wait_for_function("!document.getElementById('zoom-reset').disabled")
    assert page.evaluate("document.getElementById('plot').style.touchAction") == "none"
    page.mouse.move(box["x"] + place["x"] + 1, box["y"] + place["y"])
    assert page.locator("#hint").inner_text() == hint  # the point under the pointer stays there
    page.mouse.click(box["x"] + place["x"], box["y"] + place["y"])
    assert page.locator("#viewer-images .path").inner_text() == data["images"][data["queries"][number]["image"]][2]
    page.keyboard.press("Escape")
    page.click("#zoom-reset")
    assert page.locator("#zoom-out").is_disabled()


@pytest.mark.slow
def test_a_large_map_is_placed_by_opentsne():
    pytest.importorskip("openTSNE")
    _, ranking, _ = make_page(2500, noise=0.1)
    rows, points = embedding_map(ranking.task, limit=5000)
    assert len(rows) == 2500
    assert (points.min(), points.max()) == (0, 1)
    labels = np.arange(2500) % len(NAMES)
    centers = np.stack([np.median(points[labels == label], axis=0) for label in range(len(NAMES))])
    nearest = np.linalg.norm(points[:, None] - centers, axis=2).argmin(axis=1)
    assert (nearest == labels).mean() > 0.95


def test_a_large_map_names_the_extra(monkeypatch):
    monkeypatch.setattr("hgsl.common.extras.find_spec", lambda name: None)
    _, ranking, _ = make_page(2500)
    with pytest.raises(InputError, match=r"a map of more than 2,000 images needs openTSNE: pip install 'hgsl\[map\]'"):
        embedding_map(ranking.task, limit=5000)


def test_a_pair_shows_why_its_images_match(browser, watched, tmp_path):
    asked = []

    def explain(one, other):
        asked.append((one, other))
        return Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")

    report, ranking, options = make_page(load_image=color, explain=explain)
    write_html(tmp_path / "report.html", report, ranking, options)
    assert asked[0] == suspicious_pairs(ranking.result.query_ids, ranking.neighbors.first(8))[0][:2]
    with browser.new_context() as context:
        page = context.new_page()
        trouble = watched(page, "file:")
        page.goto((tmp_path / "report.html").as_uri())
        page.locator("#pair-list button").first.click()
        before = page.locator("#pair-images img").first.get_attribute("src")
        page.keyboard.press("w")
        assert page.locator("#pair-images img").first.get_attribute("src") != before
        assert "red parts" in page.locator("#pair-text").inner_text()
        page.keyboard.press("ArrowRight")
        assert page.locator("#pair-images img[alt='Heat map']").count() == 2
        page.keyboard.press("w")
        assert page.locator("#pair-images img[alt='Heat map']").count() == 0
        assert trouble == []
