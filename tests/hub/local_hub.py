"""A hub on this machine, for the real client: the endpoints that creating, uploading and downloading need, in memory.

    with LocalHub() as hub:
        hub.add("owner/name", {"config.json": b"..."})          # a repository with one commit
        hub.url; hub.requests                                   # "http://127.0.0.1:..."; what was asked of it

It keeps every commit, speaks of large files by LFS as the real one does (pointers, redirects to another address, sizes
and hashes in headers), and refuses private and gated repositories, tokens that may not write, and bad YAML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_of_the_owner"
LARGE = (".safetensors", ".png")  # go by LFS


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # oid: files by path
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: bool = False
    gated: bool = False
    proposals: int = 0

    def commit(self, files: dict[str, bytes], branch: str, message: str) -> str:
        oid = hashlib.sha1(repr((sorted(files), message, len(self.commits))).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class LocalHub:
    """See the module."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.down = False  # answers 503
        self.claims: dict[str, int] = {}  # by name of a file, another size than it has
        self.spoil: set[str] = set()  # names of files that come with other bytes
        hub = self

        class Handler(_Handler):
            def __init__(self, *args: Any) -> None:
                self.hub = hub
                super().__init__(*args)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.elsewhere = f"http://localhost:{self._server.server_port}"  # where large files are: no host of a hub

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> str:
        repo = self.repos.setdefault(name, Repo(**options))
        return repo.commit(dict(files), "main", "by hand")

    def fetched(self) -> list[str]:
        """The names of the files whose bytes were asked for."""
        found = [path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path]
        return sorted(set(found))

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    # -- answers ---------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.hub.requests.append((self.command, path))
        if self.hub.down:
            self._send(503, b"")
            return
        routes = (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._info),
            (r"/api/models/([^/]+/[^/]+)", self._info),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/lfs/([0-9a-f]{64})", self._object),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        )
        for pattern, answer in routes:
            match = re.fullmatch(pattern, parts.path)
            if match:
                answer(*map(unquote, match.groups()))
                return
        self._send(404, b"{}", {"X-Error-Message": f"no such endpoint: {path}"})

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given = {"Content-Length": str(len(content)), **(headers or {})}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, name: str, *, write: bool = False) -> Repo | None:
        """The repository, or None after an error was sent."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._owner()):
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.gated and not self._owner():
            self._json({"error": "Access is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
            return None
        if write and not self._owner():
            self._json({"error": "You have no rights for this"}, 403)
            return None
        return repo

    def _at(self, repo: Repo, revision: str) -> str | None:
        oid = repo.at(revision)
        if oid is None:
            self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return oid

    # -- writing ---------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        if not self._owner():
            self._json({"error": "Invalid username or password."}, 401)
            return
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            self._json({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
            return
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repo = self.hub.repos[name] = Repo(private=private)
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "main", "initial commit")
        self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _validate(self) -> None:
        """What the real hub says of a card's header, as far as it concerns ours."""
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.S)
        header = yaml.safe_load(match[1]) if match else None
        errors = [] if isinstance(header, dict) else ["no metadata"]
        for name in () if errors else ("license", "library_name", "pipeline_tag", "license_name"):
            value = header.get(name, "x")
            if not isinstance(value, str) or (name == "license_name" and not re.fullmatch(r"[a-z0-9\-.]+", value)):
                errors.append(f"{name} is {value!r}")
        if errors:
            self._json({"errors": [{"message": text} for text in errors]}, 400)
            return
        self._json({"warnings": [], "errors": []})

    def _preupload(self, name: str, revision: str) -> None:
        repo = self._repo(name, write="create_pr" not in self.query)
        if repo is None or self._at(repo, revision) is None:
            return
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for one in json.loads(self.body)["files"]
        ]
        self._json({"files": modes})

    def _batch(self, name: str) -> None:
        asked = json.loads(self.body)["objects"]
        actions = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}}} for one in asked
        ]
        self._json({"objects": actions, "transfer": "basic"})

    def _object(self, oid: str) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(self.body).hexdigest() == oid
            self.hub.objects[oid] = self.body
            self._send(200)
            return
        content = self.hub.objects[oid]
        self._send(200, content, {"ETag": f'"{oid}"'})

    def _branch(self, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        if repo is None:
            return
        if branch in repo.branches:
            self._json({"error": "Reference already exists"}, 409)
            return
        repo.branches[branch] = repo.branches["main"]
        self._json({})

    def _commit(self, name: str, revision: str) -> None:
        proposed = "create_pr" in self.query
        repo = self._repo(name, write=not proposed)
        if repo is None:
            return
        base = self._at(repo, revision)
        if base is None:
            return
        files, message = dict(repo.commits[base]), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        branch = revision
        if proposed:
            repo.proposals += 1
            branch = f"refs/pr/{repo.proposals}"
        oid = repo.commit(files, branch, message)
        answer = {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True}
        if proposed:
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{repo.proposals}"
        self._json(answer)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _info(self, name: str, revision: str = "main") -> None:
        repo = self._repo(name)
        if repo is None:
            return
        oid = self._at(repo, revision)
        if oid is not None:
            siblings = [{"rfilename": path} for path in sorted(repo.commits[oid])]
            self._json({"id": name, "modelId": name, "sha": oid, "siblings": siblings, "private": repo.private})

    def _tree(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        oid = self._at(repo, revision)
        if oid is not None:
            files = repo.commits[oid]
            self._json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in sorted(files.items())
                ]
            )

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        oid = self._at(repo, revision)
        if oid is None:
            return
        content = repo.commits[oid].get(file)
        headers = {"X-Repo-Commit": oid}
        if content is None:
            self._json({"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        size = self.hub.claims.get(file, len(content))
        if file in self.hub.spoil:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if file.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            self.hub.objects[digest] = content
            linked = {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{digest}"'}
            self._send(302, b"", {**headers, **linked, "Location": f"{self.hub.elsewhere}/lfs/{digest}"})
            return
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if self.command == "HEAD":
            headers["Content-Length"] = str(size)
        self._send(200, content, headers)
