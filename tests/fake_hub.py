"""A hub of folder/OWNER/NAME/files: as much as the hub's own client asks to stream or upload a dataset."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub:
    def __init__(self) -> None:
        self.endpoint = ""
        self.sent: set[str] = set()
        self.made: dict[str, dict] = {}  # repository -> what was asked for when it was made
        self.failures = 0  # how many of the next requests for a file's bytes are answered with 503


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_POST(self):
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            if re.search("/repos/create|/validate-yaml|/preupload/|/commit/", self.path):
                return self.upload(asked)
            found = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/[^/]+", urlparse(self.path).path)
            paths = parse_qs(asked).get("paths") or json.loads(asked)["paths"]
            self.answer([self.entry(found[1], path) for path in paths if (folder / found[1] / path).exists()])

        def upload(self, asked):
            """Answer what `HfApi.create_repo` and `upload_folder` ask; files come whole, in the commit."""
            if self.path.startswith("/api/repos/create"):
                made = json.loads(asked)
                name = f"{made['organization']}/{made['name']}"
                (folder / name).mkdir(parents=True, exist_ok=True)
                hub.made[name] = made
                return self.answer({"url": f"{hub.endpoint}/datasets/{name}", "name": name})
            if "/validate-yaml" in self.path:
                return self.answer({"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                files = [file["path"] for file in json.loads(asked)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
                return self.answer({"files": modes})
            name = re.match(r"/api/datasets/([^/]+/[^/]+)/commit/", self.path)[1]
            for line in map(json.loads, asked.splitlines()):
                if line["key"] == "file":
                    path = folder / name / line["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            self.answer({"commitOid": COMMIT, "commitUrl": f"{hub.endpoint}/datasets/{name}/commit/{COMMIT}"})

        def do_GET(self):
            path = unquote(urlparse(self.path).path)
            if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
                self.answer(self.info(found[1]), missing=not (folder / found[1]).is_dir())
            elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/[^/]+(?:/(.*))?", path):
                at = folder / found[1] / (found[2] or "")
                inside = at.rglob("*") if "recursive=true" in self.path.lower() else at.glob("*")
                names = sorted(str(one.relative_to(folder / found[1])) for one in inside)
                self.answer([self.entry(found[1], name) for name in names], missing=not at.is_dir())
            elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self.file(found[1], found[2])
            else:
                self.answer({}, missing=True)

        def info(self, dataset):
            files = [one.relative_to(folder / dataset) for one in (folder / dataset).rglob("*") if one.is_file()]
            siblings = [{"rfilename": str(one)} for one in files]
            return {"id": dataset, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

        def entry(self, dataset, name):
            path = folder / dataset / name
            if path.is_dir():
                return {"type": "directory", "path": name, "oid": "0" * 40}
            oid = hashlib.sha1(name.encode()).hexdigest()
            return {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid}

        def send(self, status, body, headers):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer(self, value, missing=False):
            headers = {"Content-Type": "application/json"} | ({"X-Error-Code": "EntryNotFound"} if missing else {})
            self.send(404 if missing else 200, json.dumps(value).encode(), headers)

        def file(self, dataset, name):
            path = folder / dataset / name
            if not path.is_file():
                return self.answer({}, missing=True)
            if hub.failures and self.command == "GET":
                hub.failures -= 1
                return self.send(503, b"", {})
            whole = path.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(whole).hexdigest()}"'}
            status, body = 200, whole
            if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                status, body = 206, whole[int(asked[1]) : int(asked[2]) + 1]
                headers["Content-Range"] = f"bytes {asked[1]}-{int(asked[1]) + len(body) - 1}/{len(whole)}"
            self.send(status, body, headers)
            hub.sent.add(name)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
