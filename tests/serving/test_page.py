"""The chat page and the origins that may call the API: over HTTP, and in a real browser (pytest -m browser)."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import httpx2
import pytest
from chromium import SHIFT, Page, chromium
from test_adapters import write_adapter
from test_engine import tiny_model, tiny_tokenizer
from test_serve import CALL, CHAT, KEY, TOOL, ScriptedEngine, error_of, scripted, serving, wait_until

from puna.formats.checkpoint.checkpoint import save_checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.inference.engine.options import EngineOptions
from puna.pipeline.errors import ConfigError
from puna.serving.browser.origins import parse_origins
from puna.serving.browser.page import FILES, FOLDER
from puna.serving.middleware.rules import Rules, make_rules
from puna.serving.serve import open_served, serve
from puna.testing.endpoint import listening

SHOP = "https://shop.example"
TOKENIZER = train_tokenizer(["We open at nine o'clock. "] * 20, vocab_size=520, split_digits=True)
END = TOKENIZER.special("eot_id")
HOSTILE = (
    "<img src=x onerror=alert(1)> [a](javascript:alert(1)) ![b](https://evil.example/b.png)\n"
    "second line\n```html\n<script src='https://evil.example/a.js'></script>\n```\n<b>end</b>"
)


def says(text: str, pause: float = 0.0, tokenizer: Tokenizer = TOKENIZER) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, [*tokenizer.encode(text), END], pause)


@contextmanager
def speaking(engine: ScriptedEngine, rules: Rules | None = None) -> Iterator[str]:
    with serving(scripted(TOKENIZER, engine), rules or make_rules("127.0.0.1", None, {})) as url:
        yield url


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Rules:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEY + "\n")
    return replace(make_rules("127.0.0.1", keys, {}), origins=parse_origins([SHOP, "http://localhost:3000"]))


def test_the_page_is_open_static_and_held_to_its_own_origin(locked):
    with speaking(says("Hi."), locked) as url:
        for path in FILES:
            answer = httpx2.get(url + path)
            assert answer.status_code == httpx2.head(url + path).status_code == 200
            policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
            assert policy["form-action"] == "'none'" and policy["require-trusted-types-for"] == "'script'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
        for path in ("/page/", "/page/../serve.py", "/page/%2e%2e/page.py", "/page/chat.js/", "//", "/page/page.py"):
            assert httpx2.get(url + path).status_code == 401
        assert httpx2.post(url + "/").status_code == 405


def test_the_pages_files_name_each_other_and_nothing_elsewhere():
    texts = {name: (FOLDER / name).read_text() for name, _ in FILES.values()}
    assert {path.name for path in FOLDER.iterdir()} == set(texts)
    named = re.findall(r'(?:src|href)="([^"]+)"', texts["index.html"])
    named += [f"page/{name}" for text in texts.values() for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {f"/{path}" for path in named} == set(FILES) - {"/"}
    for name, text in texts.items():
        assert "//" not in re.sub(r'(?m)^\s*//.*$|; //.*$|xmlns="[^"]+"', "", text), name
        assert "innerHTML" not in text and "style=" not in text and " on" + "click=" not in text


def test_a_rebound_name_gets_neither_page_nor_api_and_learns_that_a_key_lets_containers_in():
    with speaking(says("Hi.")) as url:
        for path in ("/", "/page/chat.js", "/v1/models"):
            answer = httpx2.get(url + path, headers={"host": "host.docker.internal:8321"})
            assert answer.status_code == 403
            error = error_of(answer)
            assert "'host.docker.internal'" in error["message"] and error["code"] == "host_not_allowed"
            assert "puna serve CHECKPOINT --host 0.0.0.0 --api-key-file keys.txt" in error["message"]
            assert "secrets.token_urlsafe(32)" in error["message"] and "Authorization: Bearer KEY" in error["message"]


def test_with_a_key_containers_are_let_in_and_without_theirs_learn_where_keys_are(locked):
    with speaking(says("Hi."), locked) as url:
        container = {"host": "host.docker.internal:8321"}
        assert httpx2.get(f"{url}/v1/models", headers=container | {"authorization": f"Bearer {KEY}"}).is_success
        assert "--api-key-file" in error_of(httpx2.get(f"{url}/v1/models", headers=container))["message"]


def test_an_address_for_containers_without_a_key_is_refused_with_the_command():
    for host in ("0.0.0.0", "172.17.0.1"):
        with pytest.raises(ConfigError, match=rf"puna serve CHECKPOINT --host {host} --api-key-file keys.txt"):
            make_rules(host, None, {})


PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


def test_a_preflight_allows_named_origins_without_cookies(locked):
    with speaking(says("Hi."), locked) as url:
        asked = httpx2.options(f"{url}/v1/chat/completions", headers=PREFLIGHT | {"origin": SHOP})
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == SHOP
        allowed = {name.strip() for name in asked.headers["access-control-allow-headers"].split(",")}
        assert allowed >= {"authorization", "content-type", "x-stainless-os"}
        assert "POST" in asked.headers["access-control-allow-methods"] and "Origin" in asked.headers["vary"]
        assert "access-control-allow-credentials" not in asked.headers
        for other in ("https://evil.example", "null", f"{SHOP}.evil.example", f"{SHOP}:444", "http://shop.example", ""):
            asked = httpx2.options(f"{url}/v1/chat/completions", headers=PREFLIGHT | {"origin": other})
            assert "access-control-allow-origin" not in asked.headers, other


def test_every_answer_tells_the_browser_its_origin_the_refusals_and_failures_too(locked):
    key = {"authorization": f"Bearer {KEY}"}
    big = b'{"model": "' + b" " * 5_000_000
    cases = {
        "answer": ("POST", "/v1/chat/completions", key, CHAT, 200),
        "stream": ("POST", "/v1/chat/completions", key, CHAT | {"stream": True}, 200),
        "no key": ("POST", "/v1/chat/completions", {}, CHAT, 401),
        "bad field": ("POST", "/v1/chat/completions", key, CHAT | {"temperature": 9}, 400),
        "no model": ("POST", "/v1/chat/completions", key, CHAT | {"model": "other"}, 404),
        "no route": ("GET", "/nothing", key, None, 404),
        "too large": ("POST", "/v1/chat/completions", key, big, 413),
        "wrong method": ("DELETE", "/v1/models", key, None, 405),
    }
    with speaking(says("We open at nine."), locked) as url:
        for name, (method, path, headers, body, status) in cases.items():
            sent = {"content": body} if isinstance(body, bytes) else {"json": body} if body else {}
            for origin, told in ((SHOP, SHOP), ("http://localhost:3000", "http://localhost:3000"), ("null", None)):
                answer = httpx2.request(method, url + path, headers=headers | {"origin": origin}, **sent)
                assert answer.status_code == status, name
                assert answer.headers.get("access-control-allow-origin") == told, name
                assert "Origin" in answer.headers["vary"] and "access-control-allow-credentials" not in answer.headers
        assert "Origin" in httpx2.get(f"{url}/v1/models", headers=key).headers["vary"]
    with speaking(ScriptedEngine(TOKENIZER, [None]), locked) as url:
        failed = httpx2.post(f"{url}/v1/chat/completions", json=CHAT, headers=key | {"origin": SHOP})
        assert failed.status_code == 500 and failed.headers["access-control-allow-origin"] == SHOP


def test_without_the_flag_no_origin_is_told_and_a_form_of_another_page_asks_in_vain():
    with speaking(says("Hi.")) as url:
        asked = httpx2.options(f"{url}/v1/chat/completions", headers=PREFLIGHT | {"origin": SHOP})
        assert not asked.is_success and "access-control-allow-origin" not in asked.headers
        # What a page may send without a preflight: a body that isn't application/json.
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            sent = httpx2.post(f"{url}/v1/chat/completions", content=b"{}", headers={"content-type": kind})
            assert "application/json" in error_of(sent)["message"]


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "", "shop.example", "https://shop.example/", "https://Shop.example", "https://*.shop.example",
     "https://shop.example:443", "http://127.0.0.1:80", "file://", "https://a@shop.example", "https://shop.example/a"],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_or_anybody_has_is_refused(origin, tmp_path):
    with pytest.raises(ConfigError, match="--allow-origin"):
        serve(tmp_path, allow_origin=[SHOP, origin])


def test_origins_with_ports_and_addresses_are_taken():
    origins = [SHOP, "http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:5173", "https://a-b.shop.example"]
    assert parse_origins([*origins, "https://shop.example:8443", "http://shop.example:443"]) > set(origins)


@pytest.fixture
def page(tmp_path) -> Iterator[Page]:
    with chromium(tmp_path / "profile") as tab:
        yield tab


def ask(page: Page, text: str) -> None:
    page.click("#message")
    page.type(text)
    page.press("Enter")


ANSWER, ERROR = "article.assistant:last-child", "#error"
DONE = "document.querySelector('#status').textContent.startsWith('Answer')"


def text_of(page: Page, selector: str) -> str:
    return page.read(f"document.querySelector({selector!r})?.innerText ?? ''")


@pytest.mark.browser
def test_a_message_gets_its_answer_while_it_comes_and_hostile_text_stays_text(page):
    engine = says(HOSTILE, pause=0.02)
    with speaking(engine) as url:
        page.open(url)
        page.wait_for("document.title === 'tiny'")
        page.click("#system")
        page.type("Be brief.")
        page.click("#message")
        page.type("When do you")
        page.press("Enter", modifiers=SHIFT)
        composed = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
        assert page.read(f"document.activeElement.dispatchEvent({composed})")
        assert page.read("document.querySelectorAll('article').length") == 0
        page.type("open?")
        page.press("Enter")
        page.wait_for(f"document.querySelector('{ANSWER} .text')?.innerText.includes('<img')")
        assert not page.read(DONE) and "end</b>" not in text_of(page, ANSWER)
        page.wait_for(DONE)
        shown = text_of(page, f"{ANSWER} .text")
        assert "<img src=x onerror=alert(1)>" in shown and "<script src='https://evil.example/a.js'></script>" in shown
        assert "second line" in shown.split("\n") and "```" not in shown
        assert page.read("document.querySelectorAll('#log img, #log script, #log a, #log b').length") == 0
        assert "tokens/s" in text_of(page, f"{ANSWER} .foot")
        assert "Be brief." in TOKENIZER.decode(engine.requests[0].prompt)
        ask(page, "And on Sunday?")
        page.wait_for("document.querySelectorAll('article').length === 4")
        page.wait_for(DONE)
        second = TOKENIZER.decode(engine.requests[1].prompt)
        assert "When do you\nopen?" in second and "<b>end</b>" in second and second.count("And on Sunday?") == 1
        page.click("#new-chat")
        ask(page, "Hello")
        page.wait_for(DONE)
        assert "Sunday" not in TOKENIZER.decode(engine.requests[2].prompt)
        assert not page.problems
        assert page.requests and all(asked.startswith(f"{url}/") for asked in page.requests)
        with pytest.raises(AssertionError, match="TrustedHTML"):
            page.read("document.body.innerHTML = '<b>x</b>'")


@pytest.mark.browser
def test_stop_ends_the_generation_and_keeps_what_came(page):
    engine = says("We open at nine o'clock. " * 300, pause=0.02)
    with speaking(engine) as url:
        page.open(url)
        page.wait_for("document.title === 'tiny'")
        ask(page, "When do you open?")
        page.wait_for(f"document.querySelector('{ANSWER} .text')?.innerText.length > 20")
        page.click("#stop")
        page.wait_for(DONE)
        wait_until(lambda: engine.aborted == [0] and not engine.has_work)
        assert "stopped" in text_of(page, f"{ANSWER} .foot")
        kept = text_of(page, f"{ANSWER} .text")
        ask(page, "Go on")
        page.wait_for(f"document.querySelector('{ANSWER} .text')?.innerText.length > 0")
        assert kept.strip() in TOKENIZER.decode(engine.requests[1].prompt)
        page.click("#new-chat")
        wait_until(lambda: engine.aborted == [0, 1])
        assert text_of(page, "#log") == "" and not page.problems


@pytest.mark.browser
def test_a_tool_call_is_shown_and_its_result_goes_back(page):
    engine = says(CALL)
    with speaking(engine) as url:
        page.open(url)
        page.wait_for("document.title === 'tiny'")
        page.read(f"document.querySelector('#tools').value = JSON.stringify([{json.dumps(TOOL)}])")
        ask(page, "Where is my order?")
        page.wait_for("document.querySelector('.call') !== null")
        call = text_of(page, ".call")
        assert "Calls find_order" in call and '"number": 17' in call and '"by": "Zoë"' in call
        assert page.read("document.activeElement.closest('.call') !== null")
        page.type('{"status": "on its way"}')
        page.click(f"{ANSWER} > button")
        page.wait_for("document.querySelectorAll('article.assistant').length === 2")
        page.wait_for(DONE)
        assert '{"status": "on its way"}' in TOKENIZER.decode(engine.requests[1].prompt)
        page.read("document.querySelector('#tools').value = '{'")
        ask(page, "Again?")
        page.wait_for("!document.querySelector('#error').hidden")
        assert "Tools" in text_of(page, ERROR) and page.read("document.querySelector('#message').value") == "Again?"
        assert not page.problems


@pytest.mark.browser
def test_a_server_with_a_key_asks_for_it_and_the_page_keeps_it_for_the_tab_only(page, locked):
    with speaking(says("We open at nine."), locked) as url:
        page.open(url)
        page.wait_for("!document.querySelector('#error').hidden")
        assert "API key" in text_of(page, ERROR)
        assert page.read("document.activeElement.id") == "key"
        page.type("wrong")
        page.press("Enter")
        page.read("document.querySelector('#key').select()")
        page.type(KEY)
        page.press("Enter")
        page.wait_for("document.title === 'tiny'")
        ask(page, "When do you open?")
        page.wait_for(DONE)
        assert "nine" in text_of(page, ANSWER)
        page.open(url)
        page.wait_for("document.title === 'tiny'")
        assert page.read("[document.cookie, localStorage.length].join()") == ",0"
        assert page.read("document.querySelectorAll('article').length") == 0


@pytest.mark.browser
def test_what_fails_is_said_and_the_message_is_there_to_be_sent_again(page):
    engine = ScriptedEngine(TOKENIZER, [None])
    with speaking(engine) as url:
        page.open(url)
        page.wait_for("document.title === 'tiny'")
        ask(page, "When do you open?")
        page.wait_for("!document.querySelector('#error').hidden")
        assert "server" in text_of(page, ERROR)
        assert page.read("document.querySelector('#message').value") == "When do you open?"
    page.click("#send")
    page.wait_for("document.querySelector('#error').innerText.includes('puna serve')")
    assert page.read("document.querySelector('#message').value") == "When do you open?"
    assert page.read("document.querySelectorAll('article').length") == 0


@pytest.mark.browser
def test_an_adapter_can_be_chosen_and_the_licences_notice_is_shown(page, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    save_checkpoint(base, tiny_model(), tiny_tokenizer())
    (base / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n")
    write_adapter(tmp_path / "adapters" / "alba", tiny_model(), 1)
    served = open_served(base, options=EngineOptions(adapters=tmp_path / "adapters"))
    with serving(served, make_rules("127.0.0.1", None, {})) as url:
        page.open(url)
        page.wait_for("document.title === 'base'")
        assert text_of(page, "#notice") == "Built with Llama"
        page.read("document.querySelector('#temperature').value = 0")
        page.read("document.querySelector('#max-tokens').value = 12")
        shown: list[str] = []
        for name in ("base", "alba"):
            page.read(f"document.querySelector('#model').value = {name!r}")
            page.click("#new-chat")
            ask(page, "When do you open?")
            page.wait_for(f"document.querySelector('{ANSWER}')?.ariaBusy === 'false'")
            assert text_of(page, f"{ANSWER} h2") == name and "12 tokens" in text_of(page, f"{ANSWER} .foot")
            shown.append(page.read(f"document.querySelector('{ANSWER} .text').textContent"))
            question = {"role": "user", "content": "When do you open?"}
            asked = {"model": name, "messages": [question], "temperature": 0, "max_tokens": 12}
            answer = httpx2.post(f"{url}/v1/chat/completions", json=asked).json()
            assert shown[-1] == answer["choices"][0]["message"]["content"]
        assert shown[0] != shown[1] and not page.problems


@contextmanager
def another_origin() -> Iterator[str]:
    """Serve an empty page on a port of its own."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(Empty) as url:
        yield url


FETCH = """
fetch({url!r} + "/v1/chat/completions", {{
  method: "POST",
  headers: {{"content-type": "application/json", ...({key!r} && {{authorization: "Bearer " + {key!r}}})}},
  body: JSON.stringify({{model: "tiny", stream: true, messages: [{{role: "user", content: "Hi"}}]}}),
}}).then(async (answer) => answer.status + " " + await answer.text(), (error) => "blocked: " + error.message)
"""


@pytest.mark.browser
def test_a_page_of_an_allowed_origin_reads_streams_and_errors_and_no_other_page_does(page, locked):
    with another_origin() as friend, another_origin() as stranger:
        rules = replace(locked, origins=parse_origins([friend]))
        with speaking(says("We open at nine."), rules) as url:
            page.open(friend)
            streamed = page.read(FETCH.format(url=url, key=KEY))
            assert streamed.startswith("200 data: ") and streamed.endswith("data: [DONE]\n\n")
            refused = page.read(FETCH.format(url=url, key=""))
            assert refused.startswith("401 ") and '"code":"invalid_api_key"' in refused
            page.open(stranger)
            page.wait_for(f"location.origin === {stranger!r}")
            assert page.read(FETCH.format(url=url, key=KEY)).startswith("blocked: ")


@pytest.mark.browser
def test_on_a_phone_everything_fits_the_width(page, tmp_path):
    with speaking(says("A long word: " + "x" * 400 + "\n```\n" + "y" * 400 + "\n```")) as url:
        page.resize(360, 640)
        page.open(url)
        page.wait_for("document.title === 'tiny'")
        ask(page, "When do you open?" + "z" * 300)
        page.wait_for(DONE)
        assert page.read("document.documentElement.scrollWidth") == 360
        assert page.read("document.documentElement.scrollHeight") == 640
        assert page.read("getComputedStyle(document.querySelector('#settings')).display") == "none"
        page.click("#toggle-settings")
        assert page.read("getComputedStyle(document.querySelector('#settings')).display") == "block"
        page.photograph(tmp_path / "phone.png")
        assert (tmp_path / "phone.png").stat().st_size > 5_000
