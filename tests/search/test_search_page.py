"""The search page in a real browser: queries by upload, drop, paste and click, boxes, labels and errors."""

import base64
import re
import shutil
import time

import numpy as np
import pytest

from hgsl.search import SearchIndex, build_index


@pytest.fixture(scope="module")
def url(serve, shared_index):
    return serve(shared_index)


@pytest.fixture
def open_page(browser, watched):
    """Returns a function that opens a tab; errors in it and requests to other sites fail the test."""
    tabs, contexts = [], []

    def start(address, **options):
        context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tabs.append(watched(tab, address, f"blob:{address}"))
        tab.goto(address)
        tab.wait_for_selector("#grid .tile")
        return tab

    start.expected = set()  # messages of the browser's console
    yield start
    for context in contexts:
        context.close()
    assert [trouble for tab in tabs for trouble in tab if trouble not in start.expected] == []


@pytest.fixture
def page(open_page, url):
    return open_page(url)


def until(page, expression):
    """Waits until a JavaScript expression holds; the page's security policy forbids ``wait_for_function``."""
    end = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never came: {expression}"
        page.wait_for_timeout(20)


def searched(page):
    """Waits until an answer is shown; returns the paths and similarities."""
    until(
        page,
        "document.getElementById('status').textContent.includes('nearest') && !document.querySelector('.grid.old')",
    )
    names = page.locator("#grid .path").all_inner_texts()
    titles = [element.get_attribute("title") for element in page.locator("#grid .path").all()]
    assert [title.split("/")[-1] for title in titles] == names
    return titles, [float(text) for text in page.locator("#grid .score").all_inner_texts()]


def expected(index, query, k, **options):
    [hits] = index.search(query, k, **options)
    return [hit.path for hit in hits]


def test_a_chosen_image_finds_what_the_index_finds(page, shared_index):
    path = shared_index.root / "kind_02/01.jpg"
    page.set_input_files("#file", path)
    names, scores = searched(page)
    assert names == expected(shared_index, path, 24)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1, abs=1e-3)
    assert page.locator("#grid .label").first.inner_text() == "kind_02"
    assert page.locator("#name").inner_text() == "01.jpg"
    assert "of 24" in page.locator("#status").inner_text()
    until(page, "[...document.querySelectorAll('#grid img')].slice(0, 5).every((image) => image.naturalWidth)")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_dropped_and_a_pasted_image(page, shared_index, way):
    path = shared_index.root / "kind_04/02.jpg"
    page.evaluate(
        """([way, content]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "holiday.jpg", { type: "image/jpeg" }));
            if (way === "paste") return dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
            const options = { dataTransfer: data, bubbles: true, cancelable: true };
            for (const type of ["dragenter", "dragover"]) document.body.dispatchEvent(new DragEvent(type, options));
            if (document.getElementById("over").hidden) throw new Error("the drop target is not shown");
            document.body.dispatchEvent(new DragEvent("drop", options));
        }""",
        [way, base64.b64encode(path.read_bytes()).decode()],
    )
    assert searched(page)[0][0] == "kind_04/02.jpg"
    assert page.locator("#name").inner_text() == "holiday.jpg"
    assert page.locator("#over").is_hidden()


def drag(page, start, end):
    frame = page.locator("#crop").bounding_box()
    points = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=3)
    with page.expect_response(lambda response: "/api/search" in response.url) as answer:
        page.mouse.up()
    return [
        float(fraction) for fraction in re.search(r"box=([^&]+)", answer.value.url)[1].replace("%2C", ",").split(",")
    ]


def test_a_box_is_drawn_moved_resized_and_removed(page, shared_index):
    page.set_input_files("#file", shared_index.root / "kind_02/01.jpg")
    whole = searched(page)
    box = drag(page, (0.2, 0.25), (0.6, 0.75))
    np.testing.assert_allclose(box, [0.2, 0.25, 0.6, 0.75], atol=0.02)
    assert searched(page) != whole
    np.testing.assert_allclose(drag(page, (0.4, 0.5), (0.5, 0.4)), [0.3, 0.15, 0.7, 0.65], atol=0.02)
    np.testing.assert_allclose(drag(page, (0.7, 0.65), (0.9, 0.9)), [0.3, 0.15, 0.9, 0.9], atol=0.02)
    np.testing.assert_allclose(drag(page, (0.5, 0.5), (0.99, 0.99)), [0.4, 0.25, 1, 1], atol=0.02)  # stops at the edge
    page.click("#whole")
    until(page, "document.getElementById('whole').disabled")
    assert searched(page) == whole


def test_the_box_moves_by_keyboard(page, shared_index):
    page.set_input_files("#file", shared_index.root / "kind_02/01.jpg")
    searched(page)
    page.focus("#box")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowLeft")
    with page.expect_response(lambda response: "box=" in response.url) as answer:
        page.keyboard.press("ArrowRight")
    assert "box=0.02000%2C0.00000%2C0.92000%2C1.00000" in answer.value.url
    with page.expect_response(lambda response: response.url.endswith("search?k=24")):
        page.keyboard.press("Escape")


def test_a_click_searches_by_that_image_and_back_returns(page, shared_index):
    page.set_input_files("#file", shared_index.root / "kind_02/01.jpg")
    first = searched(page)
    page.locator("#grid .tile").nth(3).click()
    until(page, "document.getElementById('name').textContent.includes('/')")
    image = next(hit for hit in range(24) if shared_index.image(hit).path == first[0][3])
    assert searched(page)[0] == [hit.path for hit in shared_index.similar(image, 24)]
    # A part of it can be searched too, as of an uploaded image.
    drag(page, (0.2, 0.2), (0.8, 0.8))
    searched(page)
    page.go_back()
    until(page, "document.getElementById('name').textContent === '01.jpg'")
    assert searched(page) == first
    page.go_back()
    until(page, "document.getElementById('chosen').hidden")
    assert page.locator("#drop").is_visible()


def test_everything_works_by_keyboard(page):
    page.on("filechooser", lambda chooser: None)  # registered early: the browser may get a key before a late request
    page.locator("#grid .tile").nth(2).focus()
    page.keyboard.press("Enter")
    assert len(searched(page)[0]) == 23
    page.focus("#pick") if page.locator("#pick").is_visible() else page.focus("#another")
    with page.expect_file_chooser():
        page.keyboard.press("Enter")


def test_label_and_number_of_images(page, shared_index):
    path = shared_index.root / "kind_02/01.jpg"
    page.set_input_files("#file", path)
    searched(page)
    page.select_option("#k", "12")
    until(page, "document.querySelectorAll('#grid li').length === 12")
    assert searched(page)[0] == expected(shared_index, path, 12)
    page.fill("#label", "kind_05")
    until(page, "document.querySelectorAll('#grid li').length === 4")
    assert searched(page)[0] == expected(shared_index, path, 12, label="kind_05")
    assert page.locator("#labels option").count() == 6


def test_no_match_is_shown(open_page, serve, shared_index, tmp_path):
    build_index(
        tmp_path / "strict", shared_index.root, checkpoint=shared_index.store.folder.parent / "run", no_match=1,
        device="cpu", progress=False,
    )  # fmt: skip
    page = open_page(serve(SearchIndex.open(tmp_path / "strict", device="cpu")))
    page.locator("#grid .tile").first.click()
    page.wait_for_selector("#no-match:not([hidden])")
    text = page.locator("#no-match").inner_text()
    assert "No match" in text
    assert "needs 1.000" in text
    assert page.locator("#grid li").count() == 0
    page.click("#anyway")
    assert page.locator("#grid li").count() == 23


def test_the_page_shows_why_an_upload_is_refused(browser, url, tmp_path):
    (tmp_path / "vector.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        page.set_input_files("#file", tmp_path / "vector.svg")
        page.wait_for_selector("#error:not([hidden])")
        assert "not an image" in page.locator("#error").inner_text()
        (tmp_path / "large.jpg").write_bytes(bytes((20 << 20) + 1))
        page.set_input_files("#file", tmp_path / "large.jpg")
        until(page, "document.getElementById('error').textContent.includes('larger than 20 MB')")


def test_names_are_shown_as_text(open_page, serve, shared_index, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    folder = tmp_path / "photos" / evil
    folder.mkdir(parents=True)
    for number in range(3):
        shutil.copy(shared_index.root / f"kind_00/0{number}.jpg", folder / f"{number}&lt;b&gt;.jpg")
    run = shared_index.store.folder.parent / "run"
    build_index(tmp_path / "index", tmp_path / "photos", checkpoint=run, device="cpu", progress=False)
    page = open_page(serve(SearchIndex.open(tmp_path / "index", device="cpu")))
    assert page.locator("#grid .label").first.inner_text() == evil
    page.locator("#grid .tile").first.click()
    searched(page)
    assert page.locator("#name").inner_text() == f"{evil}: {evil}/0&lt;b&gt;.jpg"


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_overflows_a_small_screen(page, shared_index, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.set_input_files("#file", shared_index.root / "kind_02/01.jpg")
    searched(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for element in page.locator("button:visible, select:visible, input:visible").all():
        assert element.bounding_box()["height"] >= 44 or element.get_attribute("type") == "file"


def test_dark_and_light_have_readable_colors(page, check_colors):
    check_colors(page)


@pytest.mark.slow
def test_a_search_has_an_address_that_others_can_open(open_page, url):
    page = open_page(url)
    page.locator("#grid .tile").nth(2).click()
    searched(page)
    page.fill("#label", "KIND_05")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#grid li').length === 4")
    page.select_option("#k", "12")
    until(page, "location.hash.includes('k=12')")
    answer = searched(page)
    other = open_page(url)
    other.goto(page.url)  # of the open page, an address that differs after the # only
    until(other, "!document.getElementById('chosen').hidden")
    assert searched(other) == answer
    other.reload()
    until(other, "!document.getElementById('chosen').hidden")
    assert searched(other) == answer
    assert other.locator("#name").inner_text() == page.locator("#name").inner_text()
    assert other.locator("#chips button").all_inner_texts() == ["kind_05"]


def test_labels_filter_as_one_types_and_several_can_be_picked(page):
    page.locator("#label").press_sequentially("Kind_03")
    until(page, "document.querySelectorAll('#grid li').length === 4")
    assert page.evaluate("document.activeElement.id") == "label"
    page.keyboard.press("Enter")
    page.locator("#label").press_sequentially("kind_01")
    until(page, "document.querySelectorAll('#grid li').length === 8")
    page.keyboard.press("Enter")
    assert page.locator("#chips button").all_inner_texts() == ["kind_03", "kind_01"]
    page.locator("#label").press_sequentially("zebra")
    until(page, "document.getElementById('label-problem').textContent === 'No label contains this text.'")
    page.fill("#label", "")
    page.keyboard.press("Backspace")
    until(page, "document.querySelectorAll('#grid li').length === 4")


def test_a_condition_filters_and_its_mistakes_are_shown(open_page, url):
    page = open_page(url)
    page.fill("#where", 'label in ["kind_03", "kind_01"] and path != "kind_01/00.jpg"')
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#grid li').length === 7")
    other = open_page(url)
    other.goto(page.url)
    until(other, "document.querySelectorAll('#grid li').length === 7")
    refused = "Failed to load resource: the server responded with a status of 422 (Unprocessable Entity)"
    open_page.expected.add(refused)
    page.fill("#where", "lable == 'x'")
    page.keyboard.press("Enter")
    until(page, "!document.getElementById('error').hidden")
    assert page.locator("#error").inner_text() == "where, column 1: unknown field 'lable': did you mean 'label'?"
    page.fill("#where", "")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#grid li').length === 24")


def test_an_answer_without_images_says_so(page, shared_index):
    page.fill("#where", 'label == "kind_03" and path != "kind_03/00.jpg"')
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#grid li').length === 3")
    page.set_input_files("#file", shared_index.root / "kind_02/01.jpg")
    searched(page)
    assert "The 3 nearest images under the condition, in" in page.locator("#status").inner_text()
    page.fill("#where", 'label == "kind_03" and label == "kind_02"')
    page.keyboard.press("Enter")
    until(page, "document.getElementById('status').textContent === 'No image satisfies the label and the condition.'")
    assert page.locator("#grid li").count() == 0
    page.reload()  # without the query
    until(page, "document.getElementById('status').textContent === 'No image satisfies the label and the condition.'")


def test_an_image_opens_large_beside_the_query_and_its_path_is_copied(page, shared_index):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.set_input_files("#file", shared_index.root / "kind_02/01.jpg")
    paths, _ = searched(page)
    page.locator("#grid .open").nth(1).click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#large-images code").all_inner_texts() == ["01.jpg", paths[1]]
    until(page, "[...document.querySelectorAll('#large-images img')].every((image) => image.naturalWidth === 56)")
    page.locator("#large-images button").nth(1).click()
    assert page.evaluate("navigator.clipboard.readText()") == paths[1]
    page.click("#large-search")
    until(page, "document.getElementById('name').textContent.includes('/')")
    assert page.locator("#name").inner_text().endswith(paths[1])


def test_the_focus_follows_the_results(page):
    page.locator("#grid .tile").nth(2).focus()
    path = page.evaluate("document.activeElement.querySelector('.path').title")
    page.keyboard.press("Enter")
    until(page, f"document.getElementById('name').textContent.endsWith({path!r})")
    searched(page)
    until(page, "document.activeElement === document.querySelector('#grid .tile')")
    page.go_back()
    until(page, f"document.activeElement.querySelector('.path')?.title === {path!r}")


def test_the_index_has_statistics(page):
    page.click("summary")
    facts = dict(row.split("\t") for row in page.locator("#facts").inner_text().splitlines())
    assert facts["Images"] == "24"
    assert facts["Images per label"].startswith("4 (kind_0")
    assert (facts["Search"], facts["No match below"]) == ("exact", "not calibrated")


def test_why_two_images_match_is_shown(page, shared_index):
    page.set_input_files("#file", shared_index.root / "kind_02/01.jpg")
    searched(page)
    page.locator("#grid .open").nth(1).click()
    page.keyboard.press("w")
    until(page, "document.getElementById('heat-text').textContent.startsWith('Red parts')")
    sources = page.locator("#large-images img").evaluate_all("images => images.map((image) => image.src)")
    assert all(source.startswith("data:image/webp") for source in sources)
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelectorAll('#large-images img[src^=data]').length === 2")
    page.keyboard.press("w")
    assert page.locator("#large-images img[src^=data]").count() == 0
    assert page.locator("#heat-text").is_hidden()
