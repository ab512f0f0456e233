"""A small Hugging Face Hub on loopback: it answers huggingface_hub's requests to create, fill and read repositories.

A process reaches it through `environment`, which must be set before huggingface_hub is imported.

    with Hub() as hub:
        hub.commit("models/someone/model", {"config.json": b"{}"})
        subprocess.run([...], env=os.environ | hub.environment)
        hub.files("models/someone/model")["config.json"]
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN, OWNER = "hf_loopback", "someone"  # the only token, and its user
LARGE_FILES = (".safetensors", ".bin", ".parquet", ".png", ".mp4")  # stored in LFS, as on the Hub
_REPO = r"(?P<repo>[^/]+/[^/]+?)"
_TYPE = r"(?P<type>models|datasets|spaces)"
_PREFIX = r"(?P<type>(?:datasets|spaces)/)?"


class Hub:
    """Repositories in memory, named `models/owner/name`, or `datasets/` and `spaces/` alike.

    `requests` lists `(method, path)` of each request. `faults` lists `[method, pattern of the path, status, times]`:
    the next `times` such requests get that status, or a connection that closes during the upload if it is `None`.
    """

    def __init__(self):
        self.commits = {}  # repository -> [(commit, {path: bytes})], oldest first
        self.large_files = {}  # (repository, sha256) -> uploaded bytes
        self.private = set()
        self.requests, self.faults = [], []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.environment = {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repository, changes):
        """Add files, and remove those with the content `None`; return the commit."""
        with self.lock:
            history = self.commits.setdefault(repository, [])
            files = {**(history[-1][1] if history else {}), **changes}
            files = {path: content for path, content in files.items() if content is not None}
            digest = hashlib.sha1(f"{repository} {len(history)}".encode())
            for path in sorted(files):
                digest.update(path.encode() + hashlib.sha256(files[path]).digest())
            history.append((digest.hexdigest(), files))
        return history[-1][0]

    def resolve(self, repository, revision="main"):
        """Return `(commit, files)` of a revision: `main` or a commit."""
        for commit, files in reversed(self.commits[repository]):
            if revision in ("main", commit):
                return commit, files
        raise KeyError(revision)

    def files(self, repository):
        return self.resolve(repository)[1]

    def take_fault(self, method, path):
        """Return whether a request must fail, and the status."""
        with self.lock:
            for fault in self.faults:
                if fault[3] > 0 and fault[0] == method and re.search(fault[1], path):
                    fault[3] -= 1
                    return True, fault[2]
        return False, None

    def paths(self, method="GET"):
        """Return the paths of all requests with `method`, without queries."""
        return [path for used, path in self.requests if used == method]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    # Answers

    def reply(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code, status=404, **headers):
        self.reply({"error": code}, status, X_Error_Code=code, X_Error_Message=code, **headers)

    def may_write(self, owner):
        """Return whether the token may write to repositories of `owner`; refuse the request if not."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse("Invalid credentials in Authorization header", 401)
        elif owner != OWNER:
            self.refuse("You don't have the rights to write here", 403)
        else:
            return True

    def handle_request(self):
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.requests.append((self.command, path))
        fails, status = self.hub.take_fault(self.command, path)
        if fails and status is None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            return
        self.query = parse_qs(parts.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self.read_chunk, b""))
        if fails:
            # Clients retry after one second, without growing delays.
            return self.refuse("A simulated fault", status, Retry_After=0)
        for methods, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                fields = {name: value for name, value in match.groupdict().items() if value is not None}
                if "repo" in fields:
                    kind = fields.pop("type", "models").strip("/")
                    fields["repository"] = f"{kind}/{fields.pop('repo')}"
                    if fields["repository"] not in self.hub.commits:
                        return self.refuse("RepoNotFound")
                    owner = fields["repository"].split("/")[1]
                    if self.command == "POST" or path.endswith("/auth-check/write"):
                        if not self.may_write(owner):
                            return
                return answer(self, **fields)
        return self.refuse("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_chunk(self):
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    # Requests

    def whoami(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse("Unauthorized", 401)
        self.reply({"type": "user", "name": "someone", "orgs": [], "auth": {"type": "access_token"}})

    def create(self):
        asked = json.loads(self.body)
        kind, owner = asked.get("type") or "model", asked.get("organization") or OWNER
        repository = f"{kind}s/{owner}/{asked['name']}"
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.hub.endpoint}/{prefix}{owner}/{asked['name']}", "name": f"{owner}/{asked['name']}"}
        if not self.may_write(owner):
            return
        if repository in self.hub.commits:
            return self.reply({**answer, "error": "You already created this repo"}, 409)
        self.hub.commit(repository, {".gitattributes": b""})
        if asked.get("visibility") == "private":
            self.hub.private.add(repository)
        self.reply(answer)

    def allow(self, repository=None):
        self.reply({"errors": [], "warnings": []})

    def validate_card(self):
        """Check a model card's front matter by the rules that the Hub is known to have."""
        asked = json.loads(self.body)
        match = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        errors = []
        if match is not None and asked["repoType"] == "model":
            try:
                errors = list(card_errors(yaml.safe_load(match[1])))
            except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
                errors = [f"{type(error).__name__}: {error}"]
        self.reply({"errors": [{"message": message} for message in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, repository, revision):
        commit, known = self.hub.resolve(repository, revision)
        files = [self.preupload_answer(file["path"], known) for file in json.loads(self.body)["files"]]
        self.reply({"files": files, "commitOid": commit})

    def preupload_answer(self, path, known):
        """Say how a file must be uploaded, and the hash of the stored file of that name."""
        is_large = path.endswith(LARGE_FILES)
        answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
        if path in known:
            answer["oid"] = hashlib.sha256(known[path]).hexdigest() if is_large else self.blob_id(known[path])
        return answer

    def large_file_batch(self, repository):
        objects = json.loads(self.body)["objects"]
        for asked in objects:
            if (repository, asked["oid"]) not in self.hub.large_files:
                address = f"{self.hub.endpoint}/loopback-lfs/{repository}/{asked['oid']}"
                asked["actions"] = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
        self.reply({"transfer": "basic", "objects": objects})

    def large_file_put(self, repository, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse("BadRequest", 400)
        self.hub.large_files[repository, oid] = self.body
        self.reply()

    def large_file_verify(self, repository, oid):
        if len(self.hub.large_files.get((repository, oid), b"")) != json.loads(self.body)["size"]:
            return self.refuse("BadRequest", 400)
        self.reply({})

    def add_commit(self, repository, revision):
        changes = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changes[value["path"]] = self.hub.large_files[repository, value["oid"]]
            elif entry["key"] == "deletedFile":
                changes[value["path"]] = None
        commit = self.hub.commit(repository, changes)
        self.reply({"commitUrl": f"{self.hub.endpoint}/{repository}/commit/{commit}", "commitOid": commit})

    def info(self, repository, revision="main"):
        try:
            commit, files = self.hub.resolve(repository, revision)
        except KeyError:
            return self.refuse("RevisionNotFound")
        name = repository.split("/", 1)[1]
        siblings = [{"rfilename": path} for path in sorted(files)]
        answer = {"_id": commit[:24], "id": name, "modelId": name, "sha": commit, "siblings": siblings}
        answer["private"] = repository in self.hub.private
        self.reply({**answer, "gated": False, "disabled": False, "downloads": 0, "tags": []})

    def tree(self, repository, revision, folder=""):
        try:
            files = self.hub.resolve(repository, revision)[1]
        except KeyError:
            return self.refuse("RevisionNotFound")
        folder = folder.strip("/")
        is_recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for path, content in sorted(files.items()):
            inner = path.removeprefix(f"{folder}/") if folder else path
            if folder and inner == path:
                continue
            steps = inner.split("/")
            for depth in range(1, len(steps)):
                directory = "/".join([folder, *steps[:depth]]).strip("/")
                if is_recursive or depth == 1:
                    oid = hashlib.sha1(directory.encode()).hexdigest()
                    entries[directory] = {"type": "directory", "path": directory, "oid": oid, "size": 0}
            if is_recursive or len(steps) == 1:
                entries[path] = {"type": "file", "path": path, "size": len(content), "oid": self.blob_id(content)}
                if path.endswith(LARGE_FILES):
                    oid = hashlib.sha256(content).hexdigest()
                    entries[path]["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        self.reply(list(entries.values()))

    def file(self, repository, revision, path):
        try:
            commit, files = self.hub.resolve(repository, revision)
        except KeyError:
            return self.refuse("RevisionNotFound")
        if path not in files:
            return self.refuse("EntryNotFound")
        content, headers = files[path], {"X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        headers["ETag"] = f'"{self.blob_id(content)}"'
        if path.endswith(LARGE_FILES):
            headers |= {"X_Linked_Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Linked_Size": len(content)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.command == "HEAD":
            return self.reply(content, **headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        self.reply(content[first : last + 1], 206, **headers)

    @staticmethod
    def blob_id(content):
        """Return Git's hash of a file."""
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def card_errors(data):
    """Yield the faults in the front matter of a model card."""
    for name, pattern in (("license", r"[a-z0-9.-]+"), ("pipeline_tag", "[a-z0-9-]+"), ("library_name", r"[\w.-]+")):
        if name in data and not re.fullmatch(pattern, data[name]):
            yield f"{name}: {data[name]!r}"
    if data.get("base_model_relation", "adapter") not in ("adapter", "finetune", "merge", "quantized"):
        yield f"base_model_relation: {data['base_model_relation']!r}"
    for name in ("tags", "datasets"):
        if not all(isinstance(value, str) for value in data.get(name, [])):
            yield f"{name}: {data[name]!r}"
    for example in data.get("widget", []):
        if not (isinstance(example["text"], str) and isinstance(example["output"]["url"], str)):
            yield f"widget: {example!r}"
    for model in data.get("model-index", []):
        for result in model["results"]:
            words = [model["name"], result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
            words += [metric["type"] for metric in result["metrics"]]
            if not all(isinstance(word, str) for word in words):
                yield f"model-index: {words!r}"
            if not all(isinstance(metric["value"], int | float) for metric in result["metrics"]):
                yield f"model-index: {result['metrics']!r}"


_ROUTES = [
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_card),
    (("GET",), f"/api/{_TYPE}/{_REPO}/auth-check/write", _Handler.allow),
    (("POST",), f"/api/{_TYPE}/{_REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), f"/{_PREFIX}{_REPO}\\.git/info/lfs/objects/batch", _Handler.large_file_batch),
    (("PUT",), f"/loopback-lfs/{_TYPE}/{_REPO}/(?P<oid>[0-9a-f]+)", _Handler.large_file_put),
    (("POST",), f"/loopback-lfs/{_TYPE}/{_REPO}/(?P<oid>[0-9a-f]+)/verify", _Handler.large_file_verify),
    (("POST",), f"/api/{_TYPE}/{_REPO}/commit/(?P<revision>[^/]+)", _Handler.add_commit),
    (("GET",), f"/api/{_TYPE}/{_REPO}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", _Handler.tree),
    (("GET",), f"/api/{_TYPE}/{_REPO}(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    (("GET", "HEAD"), f"/{_PREFIX}{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.file),
]
