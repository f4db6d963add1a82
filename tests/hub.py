"""A stand-in of the Hugging Face hub: a real HTTP server that answers what huggingface_hub asks when it pushes.

It keeps repositories as lists of commits, takes a large file into a commit only when its bytes have arrived, and
judges tokens and owners. ``away_from`` makes it go away in the middle: from such a request on it cuts every connection.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from tests.http_servers import served

TOKEN = "hf_of_these_tests"
LARGE = (".tar", ".png", ".safetensors", ".pt2", ".pt", ".onnx")


class Commit(NamedTuple):
    sha: str
    message: str
    files: dict[str, bytes]
    large: frozenset[str]


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def head(self, revision: str) -> Commit | None:
        commits = [commit for branch in self.branches.values() for commit in branch]
        return self.branches[revision][-1] if revision in self.branches else _of_sha(commits, revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What is there, without what the hub itself put there."""
        return {name: data for name, data in self.branches[revision][-1].files.items() if name != ".gitattributes"}

    def messages(self, revision: str = "main") -> list[str]:
        return [commit.message for commit in self.branches[revision]]


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **told: str) -> None:
        self.status, self.message, self.code = status, message, code
        self.told = {"error": message, **told}


class Hub:
    def __init__(self) -> None:
        self.owners = {"me"}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.validated: list[str] = []
        self.away_from: str | None = None
        """With what the request begins that it does not answer, nor any later one: ``PUT /lfs``."""
        self._lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b"".join(iter(self._chunk, b""))
                line = f"{self.command} {self.path}"
                with hub._lock:
                    hub.asked.append(line)
                    if hub.away_from and (line.startswith(hub.away_from) or hub.away_from == "everything"):
                        hub.away_from = "everything"
                        self.close_connection = True
                        return
                    try:
                        status, answer, error = 200, hub.reply(line, self.headers.get("Authorization"), body), None
                    except Refused as refused:
                        status, answer, error = refused.status, refused.told, refused
                sent = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                if error is not None:
                    self.send_header("X-Error-Message", error.message)
                    self.send_header("X-Error-Code", error.code)
                self.end_headers()
                self.wfile.write(sent)

            def _chunk(self) -> bytes:
                data = self.rfile.read(int(self.rfile.readline(), 16))
                self.rfile.readline()
                return data

            do_GET = do_POST = do_PUT = answer  # noqa: N815 -- names of the base class

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        with served(self._server):
            yield self

    def add(self, kind: str, name: str, *, private: bool = False, **files: bytes) -> Repository:
        """A repository that is there already; ``__`` in a keyword stands for a dot."""
        named = {key.replace("__", "."): data for key, data in files.items()}
        repository = Repository(private)
        repository.branches["main"] = [_commit("initial commit", {".gitattributes": b"", **named}, frozenset())]
        self.repositories[kind, name] = repository
        return repository

    def reply(self, line: str, authorization: str | None, body: bytes) -> Any:
        method, _, target = line.partition(" ")
        path = urlsplit(target).path
        if path.startswith("/lfs/") and method == "PUT":  # a signed address, which asks for no token
            oid = path.rpartition("/")[2]
            if sha256(body).hexdigest() != oid:
                raise Refused(400, "other bytes than announced")
            self.objects[oid] = body
            return {}
        if authorization is None:
            raise Refused(401, "Invalid username or password.")
        if authorization != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid credentials in Authorization header")
        given = json.loads(body) if body and "/commit/" not in path else {}
        if path == "/api/repos/create":
            return self._create(given)
        if path == "/api/validate-yaml":
            self.validated.append(given["repoType"])
            return {"warnings": [], "errors": []}
        if found := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return {"transfer": "basic", "objects": [self._batch(each) for each in given["objects"]]}
        found = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w+)/([^/]+))?", path)
        if found is None:
            raise AssertionError(f"the stand-in does not know {line}")
        kind, name, action, revision = found.groups()
        repository = self.repositories.get((kind, name))
        if repository is None:
            raise Refused(404, "Repository not found", "RepoNotFound")
        revision = unquote(revision or "main")
        if action == "branch":
            repository.branches[revision] = list(repository.branches["main"])
            return {}
        head = repository.head(revision)
        if head is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if action in (None, "revision"):
            return {"id": name, "sha": head.sha, "private": repository.private}
        if action == "tree":
            return [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data, path in head.large)}
                for path, data in head.files.items()
            ]
        if action == "preupload":
            return {"files": [_preuploaded(head, each) for each in given["files"]]}
        assert action == "commit", action
        return self._take(kind, name, repository, revision, head, [json.loads(each) for each in body.splitlines()])

    def _create(self, given: dict[str, Any]) -> dict[str, str]:
        owner, kind = given["organization"], given.get("type", "model")
        if owner not in self.owners:
            raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}.")
        name = f"{owner}/{given['name']}"
        url = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.repositories:
            raise Refused(409, "You already created this repo", url=url)
        private = given.get("visibility") == "private" or bool(given.get("private"))
        self.add(kind, name, private=private)
        return {"url": url}

    def _batch(self, each: dict[str, Any]) -> dict[str, Any]:
        if each["oid"] in self.objects:
            return each
        return {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}}

    def _take(
        self,
        kind: str,
        name: str,
        repository: Repository,
        revision: str,
        head: Commit,
        lines: list[dict[str, Any]],
    ) -> dict[str, Any]:
        (header, *changes), files, large = lines, dict(head.files), set(head.large)
        if header["value"].get("parentCommit") not in (None, head.sha):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        for change in changes:
            value = change["value"]
            path = value["path"]
            large.discard(path)
            if change["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refused(400, f"{path} has not arrived")
                files[path] = self.objects[value["oid"]]
                large.add(path)
            else:
                assert change["key"] == "deletedFile", change
                del files[path]
        made = _commit(header["value"]["summary"], files, frozenset(large), head.sha)
        repository.branches[revision].append(made)
        return {"commitUrl": f"{self.url}/{kind}s/{name}/commit/{made.sha}", "commitOid": made.sha}


def _commit(message: str, files: dict[str, bytes], large: frozenset[str], parent: str = "") -> Commit:
    listed = "".join(f"{name} {sha1(data).hexdigest()}" for name, data in sorted(files.items()))
    return Commit(sha1(f"{parent} {message} {listed}".encode()).hexdigest(), message, files, large)


def _of_sha(commits: list[Commit], sha: str) -> Commit | None:
    return next((commit for commit in commits if commit.sha == sha), None)


def _oid(data: bytes, is_large: bool) -> str:
    return sha256(data).hexdigest() if is_large else sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _preuploaded(head: Commit, each: dict[str, Any]) -> dict[str, Any]:
    name = each["path"]
    found = {"path": name, "uploadMode": "lfs" if name.endswith(LARGE) else "regular", "shouldIgnore": False}
    return {**found, "oid": _oid(head.files[name], name in head.large)} if name in head.files else found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The stand-in, as huggingface_hub finds it in this process and in those that it starts."""
    home = str(tmp_path_factory.mktemp("hugging-face"))
    with Hub().running() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": home, "HF_TOKEN": TOKEN}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        # It reads its environment once, when it is imported.
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{home}/token")
        yield hub
