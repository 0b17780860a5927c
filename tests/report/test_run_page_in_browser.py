"""The page of a run in a real browser, from disk: choosing, keys, what a screen reader is told, widths and colours."""

import os
import shutil
from collections.abc import Iterator

import pytest

from irnet.report import run_page
from irnet.report.run_page import Cause, Shown
from tests.report.made_up_run import answers_of, made_up_images

REQUIRED = os.environ.get("IRNET_REQUIRE_BROWSER") == "1"  # then what cannot run is an error and no skip
if REQUIRED:
    import playwright.sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="there is no playwright: pip install playwright")
NAMES = ("chromium", "chromium-browser", "google-chrome")  # which .ci/run looks for, too

# Nothing that looks for updates, and no sandbox, which root may not have.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
NASTY = ["<b>bold</b>", '"quoted" & co', "</script><script>document.title='hit'</script>", "long " * 30, "class_five"]
SIZES = {"narrow": (400, 800), "wide": (1600, 1000)}


@pytest.fixture(scope="module")
def driver():
    with playwright.sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="module")
def browser(driver):
    programs = [program for name in NAMES if (program := shutil.which(name))]
    browser, reason = started(driver, [*programs, driver.chromium.executable_path])
    if browser is None:
        (pytest.fail if REQUIRED else pytest.skip)(reason)
    yield browser
    browser.close()


def started(driver, programs: list[str]) -> tuple:
    """The first of some programs that starts as a browser, or None and why there is none."""
    reason = "no Chromium starts: apt install chromium, or playwright install chromium"
    for program in filter(os.path.exists, programs):
        try:
            return driver.chromium.launch(executable_path=program, args=FLAGS, timeout=60_000), ""
        except playwright.Error as error:
            reason += f" ({program}: {error.message.splitlines()[0]})"
    return None, reason


def test_a_program_that_is_no_browser_is_a_reason(driver, tmp_path):
    """Such as the chromium-browser of Ubuntu, which asks for snapd."""
    stub = tmp_path / "chromium-browser"
    stub.write_text("#!/bin/sh\necho install snapd >&2\nexit 1\n")
    stub.chmod(0o755)
    browser, reason = started(driver, [str(tmp_path / "none"), str(stub)])
    assert browser is None and f"({stub}: " in reason and "none" not in reason and "apt install chromium" in reason


@pytest.fixture(scope="module")
def images() -> list[Shown]:
    images = list(made_up_images(60, NASTY))
    images[0].name = "<img src=x onerror=\"document.title='hit'\">.jpg"
    return images


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page"
    history = [{"step": s, "loss_conv": 2 / s, "loss_final": 1 / s} for s in range(1, 30)]
    history += [{"step": s, "metrics": {"final": {"instance_accuracy": s / 40}}} for s in (10, 20, 30)]
    run = answers_of(images)
    run.seeds = [run.metrics]
    chunk, run_page.CHUNK = run_page.CHUNK, 2**13  # so that there are several
    try:
        run_page.write(path, "a run", run, images, history, {"split": "val"})
    finally:
        run_page.CHUNK = chunk
    assert len(list(path.glob("data/chunk-*"))) > 5
    return path


@pytest.fixture
def opened(browser, folder) -> Iterator:
    """Opens the page at a size and in a colour scheme; at the end nothing may have been complained of."""
    contexts, complaints = [], []

    def open_page(size="wide", scheme="light", path=folder):
        width, height = SIZES[size]
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(f"{path.as_uri()}/index.html")
        page.locator("#region h3").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def gained(shown: Shown, region: int) -> int:
    """1 where reasoning corrected a region, -1 where it broke it."""
    r = shown.reasoning
    return int(r.final[region].argmax() == r.labels[region]) - int(r.scores[0, region].argmax() == r.labels[region])


def gain(shown: Shown, label: int | None = None) -> int:
    labels = shown.reasoning.labels.tolist()
    return sum(gained(shown, region) for region, own in enumerate(labels) if label is None or own == label)


def name_on(page) -> str:
    """The file name that stands above the image."""
    return page.locator("#position span").inner_text().strip().removeprefix("· ").rsplit(": ", 1)[0]


def position(page) -> str:
    return page.locator("#position strong").inner_text()


def drawn(page) -> None:
    """Wait until the image that was asked for is there, whose data may have to be read first."""
    page.locator("#image[aria-busy=false]").wait_for()


def chunks_of(page) -> int:
    """How many scripts of images the page has asked for."""
    return sum("data/chunk" in url for url in page.requested)


def plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


# --------------------------------------------------------------------------------------------------- what it opens with


def test_it_opens_with_an_image_that_reasoning_corrected_and_says_why(opened, images):
    page = opened()
    best = max(images, key=gain)
    first = next(shown for shown in images if shown.name == name_on(page))
    assert gain(first) == gain(best) > 1
    assert position(page) == "Image 1 of 60"
    card = page.locator("#region")
    assert card.locator(".verdict").inner_text() == "Reasoning corrected the ConvNet."
    region = int(card.locator("h3").inner_text().split(":")[0].removeprefix("Box ")) - 1
    assert gained(first, region) == 1
    source = (region + 1) % 4
    told = card.locator(".causes li").all_inner_texts()
    labels, answers = first.reasoning.labels, first.reasoning.final.argmax(1)
    truly = "" if answers[source] == labels[source] else f", truly {plain(NASTY[labels[source]])}"
    assert len(told) == 2 and f"(box {source + 1}{truly}) to the left of this box." in " ".join(told[0].split())
    assert 'In the graph of classes: <b>bold</b> → "quoted" & co (part of).' in " ".join(told[1].split())
    score = first.reasoning.final[region].max()
    assert f"would get {score * 2.718281828**-1.5:.0%}".replace("%", "\u00a0%") in told[0]
    assert page.locator("#stage line").count() == 2  # a line and its rim, from the other region
    shown = first.reasoning.classes[first.reasoning.final[region].argmax()]
    assert page.locator("#stage .tag").inner_text().endswith(f"→ {plain(shown)}")
    frame = page.locator("#stage img").first
    assert frame.evaluate("e => e.complete && e.naturalWidth") == 64


def test_edges_that_cost_nothing_are_not_called_causes(opened, tmp_path):
    images = list(made_up_images(1))
    first = images[0]
    reasoning = first.reasoning
    r = next(k for k in range(4) if gained(first, k) == 1)
    score = reasoning.final[r].max()
    for effects, count, word in (((0.4, 1e-4, 1e-5), 1, "would get"), ((2e-4, 1e-4), 1, "No single edge decides")):
        first.causes = {r: [Cause("region", "above", (r + 1) % 4, r, effect) for effect in effects]}
        run_page.write(tmp_path / "page", "t", answers_of(images), images)
        page = opened(path=tmp_path / "page")
        page.locator(f"#list button[data-region='{r}']").click()
        assert page.locator(".causes li").count() == count and word in page.locator("#region").inner_text()
        assert page.locator("#stage line").count() == 2 * count
    kept = page.locator(".causes li").inner_text()
    assert f"{100 * score:.2f}\u00a0%." in kept


def test_predictions_attention_and_memory_of_a_box(opened, images):
    page = opened()
    shown = next(one for one in images if one.name == name_on(page))
    r = shown.reasoning
    page.locator("#list button").nth(2).click()
    region = int(page.locator("#region h3").inner_text().split(":")[0].removeprefix("Box ")) - 1
    rows = [row.inner_text().split("\t") for row in page.locator("#region table").nth(1).locator("tbody tr").all()]
    assert [row[0] for row in rows] == [str(key) for key in r.keys]
    for k, (_, answer, score, attention) in enumerate(rows):
        assert plain(answer) == plain(r.classes[r.scores[k, region].argmax()])
        assert score == f"{100 * r.scores[k, region].max():.0f}\u00a0%"
        assert attention.strip() == f"{100 * r.attention[k, region]:.0f}\u00a0%"
    energies = run_page._energies(r)[region]
    assert ", ".join(f"{e:.3g}" for e in energies) in page.locator("#region").inner_text()
    assert "kind: near" in page.locator("#region").inner_text()


def test_the_memory_lies_over_the_image_where_it_belongs(opened):
    page = opened()
    assert page.locator("#stage .heat").count() == 0
    page.get_by_role("button", name="memory after write 2").click()
    heat = page.get_by_role("img", name="Heat map of the spatial memory after write 2 of 2")
    assert heat.evaluate("e => e.decode().then(() => e.naturalWidth)") == 5
    assert page.locator("#layers button[aria-pressed=true]").inner_text() == "memory after write 2"
    stage, box = page.locator("#stage").bounding_box(), heat.bounding_box()
    cell = 16 * stage["width"] / 64  # pixels of the screen that a cell of the memory takes
    assert box["width"] == pytest.approx(5 * cell, abs=1) and box["height"] == pytest.approx(4 * cell, abs=1)
    assert box["x"] + cell / 2 == pytest.approx(stage["x"], abs=1)  # the first cell's centre is the image's corner
    assert box["x"] + box["width"] > stage["x"] + stage["width"]  # and nothing of the image is left out
    assert box["y"] + box["height"] > stage["y"] + stage["height"]
    page.get_by_role("button", name="Next image").click()
    assert page.locator("#stage .heat").count() == 1  # it stays for the next image
    page.get_by_role("button", name="boxes only").click()
    assert page.locator("#stage .heat").count() == 0


# -------------------------------------------------------------------------------------------------- choosing and keys


def walk(page, count: int) -> list[str]:
    """The names of the first images in the order of the page, by the key of the next one."""
    names = [name_on(page)]
    for k in range(2, count + 1):
        page.keyboard.press("ArrowRight")
        page.get_by_text(f"Image {k} of", exact=False).first.wait_for()
        names.append(name_on(page))
    drawn(page)
    return names


@pytest.mark.parametrize(("order", "sign"), [("gain", 1), ("loss", -1)])
def test_images_are_sorted_by_gain(order, sign, opened, images):
    page = opened()
    page.locator("#order").select_option(order)
    by_name = {shown.name: sign * gain(shown) for shown in images}
    found = [by_name[name] for name in walk(page, 60)]
    assert found == sorted(by_name.values(), reverse=True) and found[0] > 0 > found[-1]


def test_the_order_of_the_data(opened, images):
    page = opened()
    page.locator("#order").select_option("data")
    assert walk(page, 5) == [shown.name for shown in images[:5]]
    assert page.title() == "a run"


@pytest.mark.parametrize("label", [2, 4])
def test_a_class_filters_the_images_and_sorts_by_its_own_gain(label, opened, images):
    page = opened()
    page.get_by_label("True class").select_option(str(label))
    expected = {shown.name: gain(shown, label) for shown in images if label in shown.reasoning.labels}
    assert position(page) == f"Image 1 of {len(expected)}" and 1 < len(expected) < 60
    names = walk(page, len(expected))
    assert sorted(names) == sorted(expected)
    assert [expected[name] for name in names] == sorted(expected.values(), reverse=True)
    assert page.get_by_role("button", name="Next image").is_disabled()
    assert plain(NASTY[label]) in page.locator("#region h3").inner_text()  # a box of the class is the chosen one


def test_outcome_and_mistake_filter_together(opened, images):
    page = opened()
    page.get_by_role("combobox", name="Boxes").select_option("gained")
    page.get_by_label("Mistaken for").select_option("1")
    drawn(page)
    kept = [s for s in images for k, c in enumerate(s.reasoning.scores[0].argmax(1)) if gained(s, k) == 1 and c == 1]
    assert position(page) == f"Image 1 of {len({s.name for s in kept})}"
    count = page.get_by_role("combobox", name="Boxes").locator("option:checked").inner_text()
    assert count == f"corrected by reasoning ({len(kept)})"
    assert page.locator("#region table").first.locator("tr").first.inner_text().split("\t")[1] == NASTY[1]


def test_a_choice_without_images_says_so(opened):
    page = opened()
    page.get_by_label("True class").select_option("0")
    page.get_by_label("Mistaken for").select_option("1")
    page.get_by_role("combobox", name="Boxes").evaluate("e => e.append(new Option('none', 'none'))")
    page.get_by_role("combobox", name="Boxes").select_option("none")
    assert page.get_by_text("No image here has such a box.").is_visible() and not page.locator("#image").is_visible()
    page.keyboard.press("ArrowRight")
    page.get_by_role("combobox", name="Boxes").select_option("all")
    assert page.locator("#image").is_visible()


def test_arrow_keys_step_through_images_and_boxes(opened):
    page = opened()
    names = walk(page, 3)
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Image 2 of 60").wait_for()
    assert name_on(page) == names[1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # before the first there is none
    page.get_by_text("Image 1 of 60").wait_for()
    assert page.get_by_role("button", name="Previous image").is_disabled()
    drawn(page)
    boxes = page.locator("#list button")
    boxes.first.focus()
    for k in range(1, 4):
        page.keyboard.press("ArrowDown")
        assert boxes.nth(k).evaluate("e => e === document.activeElement && e.ariaPressed") == "true"
        number = boxes.nth(k).get_attribute("data-region")
        assert page.locator("#region h3").inner_text().startswith(f"Box {int(number) + 1}:")
    page.keyboard.press("ArrowUp")
    assert boxes.nth(2).get_attribute("aria-pressed") == "true"


def test_arrow_keys_belong_to_a_list_that_has_the_focus(opened):
    page = opened()
    page.get_by_label("True class").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#class-search").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Control+ArrowRight")
    assert page.locator("#position strong").inner_text().startswith("Image 1 of")


def test_a_click_on_a_box_or_a_small_picture_chooses_it(opened):
    page = opened()
    page.locator("#strip button").nth(4).click()
    page.get_by_text("Image 5 of 60").wait_for()
    drawn(page)
    assert page.locator("#strip button[aria-current=true]").count() == 1
    region = page.locator("#list button").last.get_attribute("data-region")
    page.locator("#stage g", has=page.locator(f"title:text-matches('^Box {int(region) + 1}:')")).dispatch_event("click")
    assert page.locator("#region h3").inner_text().startswith(f"Box {int(region) + 1}:")


def test_an_image_without_boxes(opened, images):
    page = opened()
    page.locator("#order").select_option("data")
    walk(page, 60)
    assert name_on(page) == images[-1].name
    page.get_by_text("This image has no boxes.").wait_for()
    assert page.locator("#list button").count() == 0


# -------------------------------------------------------------------------------------------------- classes and pairs


def test_classes_are_sorted_searched_and_show_their_boxes(opened, images):
    page = opened()
    rows = page.locator("#classes li")
    order = [plain(text) for text in page.locator("#classes button").all_inner_texts()]
    net = {plain(name): sum(gain(s, c) for s in images) for c, name in enumerate(NASTY)}
    assert [net[name] for name in order] == sorted(net.values(), reverse=True) and rows.count() == 5
    page.get_by_label("Find a class").fill("FIVE")
    assert rows.count() == 1
    rows.locator("button").click()
    assert page.get_by_label("True class").input_value() == "4"
    assert page.locator("#viewer").bounding_box()["y"] < 1000


def test_a_pair_shows_its_boxes(opened, images):
    page = opened()
    first = page.locator("#resolved li").first
    first.locator("button").click()
    label, mistake = (int(page.get_by_label(name).input_value()) for name in ("True class", "Mistaken for"))
    resolved = total = 0
    for r in (shown.reasoning for shown in images):
        mistaken = (r.scores[0].argmax(1) == mistake) & (r.labels == label)
        total += mistaken.sum()
        resolved += (mistaken & (r.final.argmax(1) == label)).sum()
    assert first.locator("span").inner_text() == f"{resolved} of {total} boxes"
    assert page.locator("#outcome option:checked").inner_text() == f"corrected by reasoning ({resolved})"


def focused(page) -> str:
    """The words of what has the focus."""
    return page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText")


def test_the_focus_stays_where_it_was(opened, images):
    page = opened()
    page.locator("#strip button").nth(2).focus()
    page.keyboard.press("Enter")
    page.get_by_text("Image 3 of 60").wait_for()
    assert focused(page).startswith("Image 3, ")
    page.keyboard.press("ArrowRight")
    page.get_by_text("Image 4 of 60").wait_for()
    assert focused(page).startswith("Image 4, ")
    page.locator("#strip button").nth(23).click()
    page.keyboard.press("ArrowRight")  # on to another strip
    page.get_by_text("Image 25 of 60").wait_for()
    assert focused(page).startswith("Image 25, ") and page.locator("#strip button").count() == 24
    page.get_by_role("button", name="Previous image").focus()
    for number in range(24, 0, -1):
        page.keyboard.press("Enter")
        page.get_by_text(f"Image {number} of 60").wait_for()
    page.keyboard.press("Enter")  # before the first there is none
    assert "Previous image" in focused(page) and position(page) == "Image 1 of 60"
    assert page.locator("button:disabled").count() == 0  # which would lose the focus
    page.locator("#classes button").first.focus()
    page.keyboard.press("Enter")
    assert focused(page) == "See where, and why"


def test_without_images_classes_and_pairs_are_plain_text(browser, images, tmp_path):
    path = run_page.write(tmp_path / "page", "t", answers_of(images), [])
    page, complaints = browser.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    assert page.locator("#classes li").count() == 5 and page.locator("#resolved li").count() > 1
    assert page.locator("#classes button, #resolved li button, #made li button").count() == 0
    assert "shows" not in page.locator("main").inner_text() and complaints == []
    page.close()


EDGES = {  # by the kinds of edges of a model, how many regions were measured and the causes of a changed one
    "none-lowers": (["region"], 12, [], "No edge that was removed by itself lowers this answer"),
    "not-measured": (["region"], 12, None, "were not measured: they are for at most 12 changed boxes"),
    "switched-off": (["class"], 0, None, "No edges were measured for this page"),
    "no-edges": ([], 12, None, "This model has no edges"),
}


@pytest.mark.parametrize("case", EDGES)
def test_why_no_edge_is_shown(case, opened, tmp_path):
    kinds, measured, causes, expected = EDGES[case]
    images = list(made_up_images(1))
    region = next(k for k in range(4) if gained(images[0], k) == 1)
    images[0].causes = {} if causes is None else {region: causes}
    run_page.write(tmp_path / "page", "t", answers_of(images), images, edge_kinds=kinds, measured=measured)
    page = opened(path=tmp_path / "page")
    page.locator(f"#list button[data-region='{region}']").click()
    assert expected in page.locator("#region").inner_text()


# ----------------------------------------------------------------------------------------- for every eye and every ear

CONTRAST = """() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [...n.slice(0, 3), n[3] ?? 1]; };
  const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  const ground = (e) => e ? over(parse(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : [255, 255, 255];
  const linear = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => { const [r, g, b] = rgb.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const worst = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("svg, script, noscript") || !e.checkVisibility()) continue;
    const under = ground(e), ink = over(parse(getComputedStyle(e).color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    worst.push([(a + 0.05) / (b + 0.05), e.tagName, e.className, e.textContent.slice(0, 40)]);
  }
  return worst.sort((x, y) => x[0] - y[0]);
}"""


COLOURED = {"gained": "up", "lost": "down", "both": "both", "kept": "soft"}  # the class of what the page says of a box


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_window_and_text_stands_out(size, scheme, opened):
    page = opened(size, scheme)
    for click in (None, "memory after write 1", "Next image"):
        if click:
            page.get_by_role("button", name=click).click()
        wide, window = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= window == SIZES[size][0]
    for outcome in ("gained", "lost", "both", "kept"):
        page.locator("#outcome").select_option(outcome)
        page.locator(f"#region .{COLOURED[outcome]}").first.wait_for()
        ratios = page.evaluate(CONTRAST)
        assert len(ratios) > 100 and ratios[0][0] >= 4.5, ratios[:5]
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_every_control_and_image_has_a_name_in_the_accessibility_tree(opened):
    page = opened()
    page.get_by_role("button", name="memory after write 1").click()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    seen = {}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if not node["ignored"]:
            seen.setdefault(role, []).append(node.get("name", {}).get("value", "").strip())
    for role in ("button", "combobox", "searchbox", "image", "region", "group", "heading", "table"):
        assert seen.get(role) and all(seen[role]), (role, seen.get(role))
    assert len(seen["combobox"]) == 5 and len(seen["image"]) == 3  # the image, its memory and the curve
    assert any("boxes" in name and "corrected" in name for name in seen["image"])
    assert any(name.startswith("Losses over training: conv ends") for name in seen["image"])
    assert seen["RootWebArea"] == ["a run"] and "main" in seen and "status" in seen
    strip = [name for name in seen["button"] if name.startswith("Image 2, ")]
    assert len(strip) == 1 and "box" in strip[0]


def test_pictures_are_loaded_when_they_are_needed(opened):
    page = opened()
    assert chunks_of(page) == 1
    loaded = page.locator("#strip img").evaluate_all(
        "all => all.filter((one) => one.complete && one.naturalWidth).length"
    )
    assert page.locator("#strip img").count() == 24 and loaded < 24
    walk(page, 24)
    assert 1 < chunks_of(page) == len({url for url in page.requested if "data/chunk" in url})


# ------------------------------------------------------------------------------------------------- odd and large pages


def test_a_page_of_the_convnet_alone(opened, tmp_path):
    images = list(made_up_images(6, variant="conv"))
    run_page.write(tmp_path / "page", "conv", answers_of(images), images)
    page = opened(path=tmp_path / "page")
    assert page.locator("#layers").is_hidden() and page.locator("#region h4").count() == 0
    assert page.locator("#position").inner_text().startswith("Image 1 of 6")
    page.get_by_role("combobox", name="Boxes").select_option("both")
    assert "Wrong." in page.locator("#region").inner_text()


def test_a_missing_part_is_named(browser, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "page")
    for path in copy.glob("data/chunk-*"):
        path.unlink()
    page = browser.new_page()
    page.goto(f"{copy.as_uri()}/index.html")
    page.get_by_text("cannot be read: the folder is not complete.").wait_for()
    page.close()


def test_five_thousand_images_of_three_thousand_classes(opened, tmp_path):
    some = list(made_up_images(20, [f"class number {c}" for c in range(3000)], "global", 6))[:-1]
    images = (Shown(f"{i:06d}.jpg", (one := some[i % 19]).reasoning, causes=one.causes) for i in range(5000))
    run_page.write(tmp_path / "page", "many", answers_of(some), images)
    page = opened(path=tmp_path / "page")
    print("ms until it is there:", page.evaluate("performance.now()"))
    assert position(page) == "Image 1 of 5,000"
    page.locator("#class-order").select_option("name")
    assert page.locator("#classes li").count() == 15
    assert chunks_of(page) == 1
    page.locator("#order").select_option("data")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.get_by_text("Image 4 of 5,000").wait_for()
    assert name_on(page) == "000003.jpg"
