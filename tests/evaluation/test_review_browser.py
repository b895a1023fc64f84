"""The page of `puna review` in a real browser: keys, focus, hostile text, small screens."""

from pathlib import Path
from typing import Any

import pytest
from chromium import ALT, Page, chromium
from review_evaluation import FIRST, NAMES, SECOND, open_session, plain_evaluation, row, say, serving, write_evaluation

from puna.evaluation.review.pairs import read_pairs
from puna.evaluation.tasks.labels import read_labels

pytestmark = pytest.mark.browser

READY = "document.getElementById('pair')?.hidden === false"
PROGRESS = "document.getElementById('progress').textContent"
STATUS = "document.getElementById('status').textContent"
FOCUSED = "document.activeElement.id"


def wait_for(page: Page, place: int) -> None:
    page.wait_for(f"{PROGRESS}.startsWith('{place} of ')")


def test_a_whole_review_with_the_keyboard_alone(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    pairs = read_pairs(plain_evaluation(tmp_path / "eval", 8), NAMES)
    session = open_session(pairs, path)
    with serving(session, pairs) as server, chromium(tmp_path / "profile") as page:
        page.open(server.url)
        page.wait_for(READY)
        assert page.read(PROGRESS) == "1 of 8, about 1 minute left"
        assert "Which would you send" in page.text() or "Would you send this answer" in page.text()
        expected: list[str] = []
        for number, pair in enumerate(session.sample):
            assert page.read(FOCUSED) == "title" and f"Pair {number + 1} of 8." in page.read(STATUS)
            # The right answers say "At N.".
            texts = page.read("[...document.querySelectorAll('.answer .text')].map(node => node.textContent)")
            rights = [text.startswith("At") for text in texts]
            key = {(True,): "ArrowUp", (True, False): "ArrowLeft", (False, True): "ArrowRight"}[tuple(rights)]
            if len(rights) == 1:
                page.press("ArrowLeft")  # means nothing for a single answer
            page.press(key)
            expected += [f"{pair.id} {text}" for text, right in zip(texts, rights, strict=True) if right]
            if number < 7:
                wait_for(page, number + 2)
        page.wait_for("!document.getElementById('summary').hidden")
        assert page.read(FOCUSED) == "summary-title"
        assert "All answers right\t2" in page.text() and "lie 75.0 points apart" in page.text()
        assert not server.finished.is_set()
        page.press("Enter")
        page.wait_for("document.getElementById('summary-title').textContent === 'The review has ended'")
        assert server.finished.wait(10)
        assert FIRST not in page.text() and SECOND not in page.text()
        assert not page.problems
        assert page.requests and all(url.startswith(server.url) for url in page.requests)
    found = [f"{label.id} {label.answer['content']}" for label in read_labels([path]) if label.right]
    assert sorted(found) == sorted(expected)
    assert len(read_labels([path])) == 8 + 6


def test_keys_that_undo_skip_explain_and_those_that_must_not_judge(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    pairs = read_pairs(plain_evaluation(tmp_path / "eval", 9), NAMES)
    session = open_session(pairs, path)
    with serving(session, pairs) as server, chromium(tmp_path / "profile") as page:
        page.open(server.url)
        page.wait_for(READY)
        page.press("ArrowDown", is_repeat=True)
        page.press("ArrowUp", modifiers=ALT)
        page.press("?")
        assert page.read("document.getElementById('help').open")
        page.press("ArrowDown")
        page.press("Escape")
        page.wait_for("!document.getElementById('help').open")
        page.press("r")
        page.wait_for("!document.getElementById('reference').hidden")
        assert "We open at" in page.read("document.getElementById('reference').innerText")
        assert not path.read_bytes()
        page.press("ArrowDown")
        wait_for(page, 2)
        assert page.read("document.getElementById('reference').hidden")
        assert page.read(STATUS) in ("Neither. Pair 2 of 9.", "No. Pair 2 of 9.")
        page.press("s")
        wait_for(page, 3)
        page.press("u")
        wait_for(page, 2)
        page.press("Backspace")
        wait_for(page, 1)
        assert page.read(STATUS) == "Undone. Pair 1 of 9." and not path.read_bytes()
        # A button that Tab leads to does what its key does.
        while page.read("document.activeElement.dataset.verdict") != "neither":
            page.press("Tab")
            assert page.read("document.activeElement !== document.body")
            assert page.read("getComputedStyle(document.activeElement).outlineStyle") != "none"
        page.press("Enter")
        wait_for(page, 2)
        assert path.read_text().count("\n") == len(session.sample[0].answers)
        server.end()
        page.press("ArrowDown")
        page.wait_for("!document.getElementById('problem').hidden")
        assert "start it again" in page.text().lower()


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
    with serving(session, pairs) as server, chromium(tmp_path / "profile", width=400, height=700) as page:
        page.open(server.url)
        page.wait_for(READY)
        assert "earlier 0" not in page.text() and hostile in page.text()
        page.press("o")
        page.press("r")
        page.wait_for("!document.getElementById('reference').hidden")
        text = page.text()
        assert text.count(hostile) >= 4 and "<i>find</i>" in text and "status: <u>sent</u>" in text
        assert "earlier 0" in text
        assert page.read("document.title") == "Puna review"
        assert page.read("document.querySelectorAll('img, script:not([src]), b, i, u').length") == 0
        directions = page.read(
            "[...document.querySelectorAll('.answer .text')].map(node => getComputedStyle(node).direction)"
        )
        assert sorted(set(directions)) == ["ltr", "rtl"]
        assert page.read("document.documentElement.scrollWidth <= window.innerWidth")
        assert not page.problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_light_and_dark(tmp_path: Path, scheme: str):
    pairs = read_pairs(plain_evaluation(tmp_path / "eval", 4), NAMES)
    session = open_session(pairs, tmp_path / "labels.jsonl")
    with serving(session, pairs) as server, chromium(tmp_path / "profile", scheme=scheme) as page:
        page.open(server.url)
        page.wait_for(READY)
        assert page.read(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
        # Contrast of WCAG 2.2: at least 4.5 for text.
        contrasts = page.read("""(() => {
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
