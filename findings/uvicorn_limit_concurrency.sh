#!/bin/sh
# Surprise: uvicorn's `--limit-concurrency N` counts open connections, idle keep-alive ones too, and counts the new one
#   before it compares. With N = 1 every request is refused with 503; with N = 3 two idle clients lock out the third,
#   though no request is running.
# Why it matters here: a model server that can answer N requests at once looks like the very use of this flag. A browser
#   alone keeps up to six connections. `puna serve` limits running requests itself (serving/admission/admission.py, --max-queue).
# Source: uvicorn/protocols/http/h11_impl.py, `len(self.connections) >= self.limit_concurrency`;
#   https://www.uvicorn.org/settings/#resource-limits ("Maximum number of concurrent connections or tasks to allow").
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0 h11==0.16.0
timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import http.client, sys, threading, time, uvicorn

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

def statuses(limit, num_clients):
    config = uvicorn.Config(app, port=0, lifespan="off", http="h11", log_level="critical", limit_concurrency=limit)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    clients, found = [http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(num_clients)], []
    for client in clients:  # one request after another: at no time do two of them run
        client.request("GET", "/")
        answer = client.getresponse()
        answer.read()
        found.append(answer.status)
    for client in clients:
        client.close()
    server.should_exit = True
    return found

print("uvicorn", uvicorn.__version__)
alone, third = statuses(1, 1), statuses(3, 3)
print("limit 1, one client:                ", alone)
print("limit 3, three clients, in sequence:", third)
holds = alone == [503] and third == [200, 200, 503]
print("the behaviour holds" if holds else "the behaviour is gone")
sys.exit(not holds)
PYTHON
