"""The page of `puna review` in a real browser: keys, focus, hostile text, small screens."""

from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from review_evaluation import FIRST, NAMES, SECOND, open_session, plain_evaluation, row, say, serving, write_evaluation

from puna.review.pairs import read_pairs
from puna.tasks.labels import read_labels

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

READY = "document.getElementById('pair')?.hidden === false"
PROGRESS = "document.getElementById('progress').textContent"
STATUS = "document.getElementById('status').textContent"
FOCUSED = "document.activeElement.id"


def wait_for(browser: Browser, place: int) -> None:
    browser.wait(f"{PROGRESS}.startsWith('{place} of ')")


def test_a_whole_review_with_the_keyboard_alone(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    pairs = read_pairs(plain_evaluation(tmp_path / "eval", 8), NAMES)
    session = open_session(pairs, path)
    with serving(session, pairs) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait(READY)
        assert browser.run(PROGRESS) == "1 of 8, about 1 minute left"
        assert "Which would you send" in browser.text() or "Would you send this answer" in browser.text()
        expected: list[str] = []
        for number, pair in enumerate(session.sample):
            assert browser.run(FOCUSED) == "title" and f"Pair {number + 1} of 8." in browser.run(STATUS)
            # The right answers say "At N.".
            texts = browser.run("[...document.querySelectorAll('.answer .text')].map(node => node.textContent)")
            rights = [text.startswith("At") for text in texts]
            key = {(True,): "ArrowUp", (True, False): "ArrowLeft", (False, True): "ArrowRight"}[tuple(rights)]
            if len(rights) == 1:
                browser.press("ArrowLeft")  # means nothing for a single answer
            browser.press(key)
            expected += [f"{pair.id} {text}" for text, right in zip(texts, rights, strict=True) if right]
            if number < 7:
                wait_for(browser, number + 2)
        browser.wait("!document.getElementById('summary').hidden")
        assert browser.run(FOCUSED) == "summary-title"
        assert "All answers right\t2" in browser.text() and "lie 75.0 points apart" in browser.text()
        assert not server.finished.is_set()
        browser.press("Enter")
        browser.wait("document.getElementById('summary-title').textContent === 'The review has ended'")
        assert server.finished.wait(10)
        assert FIRST not in browser.text() and SECOND not in browser.text()
        assert not browser.errors
        assert browser.requests and all(url.startswith(server.url) for url in browser.requests)
    found = [f"{label.id} {label.answer['content']}" for label in read_labels([path]) if label.right]
    assert sorted(found) == sorted(expected)
    assert len(read_labels([path])) == 8 + 6


def test_keys_that_undo_skip_explain_and_those_that_must_not_judge(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    pairs = read_pairs(plain_evaluation(tmp_path / "eval", 9), NAMES)
    session = open_session(pairs, path)
    with serving(session, pairs) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait(READY)
        browser.press("ArrowDown", autoRepeat=True)
        browser.press("ArrowUp", modifiers=1)  # with Alt
        browser.press("?")
        assert browser.run("document.getElementById('help').open")
        browser.press("ArrowDown")
        browser.press("Escape")
        browser.wait("!document.getElementById('help').open")
        browser.press("r")
        browser.wait("!document.getElementById('reference').hidden")
        assert "We open at" in browser.run("document.getElementById('reference').innerText")
        assert not path.read_bytes()
        browser.press("ArrowDown")
        wait_for(browser, 2)
        assert browser.run("document.getElementById('reference').hidden")
        assert browser.run(STATUS) in ("Neither. Pair 2 of 9.", "No. Pair 2 of 9.")
        browser.press("s")
        wait_for(browser, 3)
        browser.press("u")
        wait_for(browser, 2)
        browser.press("Backspace")
        wait_for(browser, 1)
        assert browser.run(STATUS) == "Undone. Pair 1 of 9." and not path.read_bytes()
        # A button that Tab leads to does what its key does.
        while browser.run("document.activeElement.dataset.verdict") != "neither":
            browser.press("Tab")
            assert browser.run("document.activeElement !== document.body")
            assert browser.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
        browser.press("Enter")
        wait_for(browser, 2)
        assert path.read_text().count("\n") == len(session.sample[0].answers)
        server.end()
        browser.press("ArrowDown")
        browser.wait("!document.getElementById('problem').hidden")
        assert "start it again" in browser.text().lower()


def test_hostile_text_stays_text_and_scripts_of_the_world_stand_as_they_should(tmp_path: Path):
    hostile = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"><b>bold</b>"
    call = ("<i>find</i>", {"order": "</pre><img src=x onerror=\"document.title='owned'\">", "page": 2})
    messages = [
        {"role": "system", "content": hostile},
        *({"role": "user", "content": f"earlier {number}"} for number in range(6)),
        {"role": "tool", "content": '{"__proto__": {"a": 1}, "status": "<u>sent</u>"}'},
        {"role": "user", "content": "कब खुलते हैं? " * 300 + hostile},
    ]
    tools = [{"type": "function", "function": {"name": "<i>find</i>", "description": hostile, "parameters": {}}}]
    settings: dict[str, Any] = {
        "conversation": {"messages": messages, "tools": tools},
        "expected": {"no_call": True, "reference": hostile},
    }
    answers = {
        FIRST: [row(0, say(hostile, calls=[call]), **settings)],
        SECOND: [row(0, say("نفتح 9" * 40), **settings)],
    }
    pairs = read_pairs(write_evaluation(tmp_path / "eval", answers), NAMES)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    with serving(session, pairs) as server, Browser(tmp_path / "profile", width=400, height=700) as browser:
        browser.open(server.url)
        browser.wait(READY)
        assert "earlier 0" not in browser.text() and hostile in browser.text()
        browser.press("o")
        browser.press("r")
        browser.wait("!document.getElementById('reference').hidden")
        text = browser.text()
        assert text.count(hostile) >= 4 and "<i>find</i>" in text and "status: <u>sent</u>" in text
        assert "earlier 0" in text
        assert browser.run("document.title") == "Puna review"
        assert browser.run("document.querySelectorAll('img, script:not([src]), b, i, u').length") == 0
        directions = browser.run(
            "[...document.querySelectorAll('.answer .text')].map(node => getComputedStyle(node).direction)"
        )
        assert sorted(set(directions)) == ["ltr", "rtl"]
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert not browser.errors


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_stands_out_from_its_ground_in_light_and_dark(tmp_path: Path, is_dark: bool):
    pairs = read_pairs(plain_evaluation(tmp_path / "eval", 4), NAMES)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    with serving(session, pairs) as server, Browser(tmp_path / "profile", is_dark=is_dark) as browser:
        browser.open(server.url)
        browser.wait(READY)
        assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is is_dark
        # Contrast of WCAG 2.2: at least 4.5 for text.
        contrasts = browser.run("""(() => {
          const light = (color) => {
            const [r, g, b] = color.match(/[\\d.]+/g).map(Number)
              .map((part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ground = (node) => {
            const color = getComputedStyle(node).backgroundColor;
            return /, 0\\)$/.test(color) ? ground(node.parentElement) : color;
          };
          return [...document.querySelectorAll("p, h1, h2, h3, .text, button:not(:disabled), kbd, summary")]
            .filter((node) => node.checkVisibility() && node.textContent && !node.closest("button:disabled"))
            .map((node) => {
              const pair = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
              return (pair[0] + 0.05) / (pair[1] + 0.05);
            });
        })()""")
        assert len(contrasts) > 15 and min(contrasts) >= 4.5
