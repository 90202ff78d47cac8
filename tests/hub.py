"""A stand-in for the Hugging Face Hub: its endpoints over HTTP, in memory, with faults on demand.

with Hub() as hub:
    subprocess.run(command, env=os.environ | hub.environment(tmp_path))
hub.files["me/model"]["README.md"]
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
from dataclasses import dataclass, field

import yaml
from huggingface_hub import ModelCard

TOKEN = "hf_" + "abcdefghijklmnopq" * 2
LARGE = (".safetensors",)  # The endings of files that go to the store for large files.


@dataclass
class Fault:
    """What happens to the first `times` matching requests instead of an answer.

    Attributes:
        method: The method of the request.
        path: A regular expression for the path of the request.
        status: The status of the answer, which is sent with `headers`.
        drop: Bytes of the request's body after which the connection breaks.
        sleep: Whether the server stays silent until it ends.
        lose: Whether the request is carried out, and the connection breaks before the answer.
        times: How many requests are affected.
    """

    method: str
    path: str
    status: int | None = None
    drop: int | None = None
    sleep: bool = False
    lose: bool = False
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The server and its contents.

    Attributes:
        files: Contents by path, by repository.
        commits: The operations of every commit, `(key, path)`, by repository.
        blobs: Contents of the store for large files by sha256.
        private: Names of the private repositories.
        requests: `(method, path, bytes of the body that arrived)` in order.
        received: The bodies of the requests.
        faults: The faults to come.
    """

    def __init__(self, large=LARGE):
        self.files, self.commits, self.blobs = {}, {}, {}
        self.private = set()
        self.requests, self.received = [], []
        self.faults = []
        self.large = large
        self.token = TOKEN
        self.ends = threading.Event()

    def __enter__(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home, token=TOKEN):
        """Environment variables of a process that uses this Hub, with its home in a folder."""
        settings = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return settings | {"HF_HOME": str(home), "HOME": str(home), "HF_TOKEN": token}

    def counted(self, method, path):
        """How many requests with this method had a path that matches the pattern."""
        return sum(m == method and bool(re.search(path, p)) for m, p, _ in self.requests)

    def uploaded(self):
        """Bytes of content that arrived, in commits and in the store for large files."""
        return sum(size for m, p, size in self.requests if m == "PUT" or re.search(r"/commit/", p))

    def fault(self, method, path):
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def sha(self, repo):
        return hashlib.sha1(repr((repo, len(self.commits[repo]))).encode()).hexdigest()

    def oid(self, path, content):
        """The object id that the client compares its files with."""
        if path.endswith(self.large):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub = self.server.hub
        split = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(split.path)
        fault = hub.fault(self.command, path)
        length = int(self.headers.get("Content-Length", 0))
        if fault and fault.drop is not None:
            length = min(length, fault.drop)
        body = self.rfile.read(length)
        hub.requests.append((self.command, path, len(body)))
        hub.received.append(body)
        if fault and fault.sleep:
            hub.ends.wait()
        if fault and fault.status:
            return self.answer(fault.status, {"error": "as the test wants"}, **fault.headers)
        if fault and not fault.lose:
            return self.close_connection_now()
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in (self.command, "ANY"):
                authorization = self.headers.get("Authorization")
                if method != "ANY" and authorization != f"Bearer {hub.token}":
                    return self.answer(401, {"error": "Invalid username or password."})
                self.lost = bool(fault and fault.lose)
                return answer(self, hub, body, **match.groupdict())
        return self.answer(404, {"error": f"no {path}"})

    do_HEAD = do_POST = do_PUT = do_GET

    def close_connection_now(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, status, value, **headers):
        if getattr(self, "lost", False):
            return self.close_connection_now()
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ---- The endpoints ---------------------------------------------------------------------------

    def whoami(self, hub, body):
        self.answer(200, {"name": "me", "type": "user", "orgs": []})

    def create(self, hub, body):
        request = json.loads(body)
        owner = request["organization"] or "me"
        repo = f"{owner}/{request['name']}"
        if owner != "me":
            return self.answer(403, {"error": f"You don't have the rights to write to {owner}"})
        exists = repo in hub.files
        if not exists:
            hub.files[repo] = {".gitattributes": b"*.safetensors filter=lfs\n"}
            hub.commits[repo] = []
            if request.get("visibility") == "private":
                hub.private.add(repo)
        error = {"error": "You already created this model repo"} if exists else {}
        return self.answer(409 if exists else 200, {"url": f"{hub.url}/{repo}", "id": repo} | error)

    def validate(self, hub, body):
        content = json.loads(body)["content"]
        try:
            metadata = yaml.safe_load(content.split("---")[1]) if "---" in content else {}
            error = None if isinstance(metadata, dict) else "metadata should be a mapping"
        except yaml.YAMLError as wrong:
            error = str(wrong)
        errors = [{"message": error}] if error else []
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, hub, body, repo, revision):
        stored, answer = hub.files[repo], []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(hub.large) else "regular"
            oid = hub.oid(path, stored[path]) if path in stored else None
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": answer})

    def batch(self, hub, body, repo):
        answer = []
        for item in json.loads(body)["objects"]:
            links = {"upload": f"{hub.url}/store/{item['oid']}", "verify": f"{hub.url}/verify"}
            actions = {name: {"href": link} for name, link in links.items()}
            stored = item["oid"] in hub.blobs
            answer.append(item if stored else item | {"actions": actions})
        self.answer(200, {"transfer": "basic", "objects": answer})

    def store(self, hub, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, {"error": "these bytes have another sha256"})
        hub.blobs[oid] = body
        return self.answer(200, {})

    def verify(self, hub, body):
        self.answer(200 if json.loads(body)["oid"] in hub.blobs else 404, {})

    def commit(self, hub, body, repo, revision):
        files, done = dict(hub.files[repo]), []
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in hub.blobs:
                    return self.answer(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            if key != "header":
                done.append((key, value["path"]))
        hub.files[repo] = files
        hub.commits[repo].append(done)
        sha = hub.sha(repo)
        return self.answer(200, {"commitUrl": f"{hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def info(self, hub, body, repo, revision=None):
        if repo not in hub.files:
            return self.no_repo()
        card = ModelCard(
            hub.files[repo].get("README.md", b"").decode(), ignore_metadata_errors=True
        )
        data = card.data.to_dict()
        return self.answer(
            200,
            {
                "id": repo,
                "sha": hub.sha(repo),
                "private": repo in hub.private,
                "pipeline_tag": data.get("pipeline_tag"),
                "library_name": data.get("library_name"),
                "tags": data.get("tags", []),
                "siblings": [{"rfilename": name} for name in sorted(hub.files[repo])],
            },
        )

    def tree(self, hub, body, repo, revision, folder=""):
        if repo not in hub.files:
            return self.no_repo()
        start = f"{folder}/" if folder else ""
        names = [name for name in sorted(hub.files[repo]) if name.startswith(start)]
        if start and not names:
            return self.no_entry()
        return self.answer(200, [self.entry(hub, repo, name) for name in names])

    def paths_info(self, hub, body, repo, revision):
        paths = urllib.parse.parse_qs(body.decode()).get("paths", [])
        stored = [name for name in paths if name in hub.files[repo]]
        self.answer(200, [self.entry(hub, repo, name) for name in stored])

    def entry(self, hub, repo, name):
        content = hub.files[repo][name]
        entry = {"type": "file", "path": name, "size": len(content), "oid": hub.oid(name, content)}
        if name.endswith(hub.large):
            entry["lfs"] = {"oid": entry["oid"], "size": len(content), "pointerSize": 130}
        return entry

    def resolve(self, hub, body, repo, revision, path):
        if repo not in hub.files:
            return self.no_repo()
        content = hub.files[repo].get(path)
        commit = {"X_Repo_Commit": hub.sha(repo)}
        if content is None:
            return self.no_entry(**commit)
        kind = {"Content_Type": "application/octet-stream"}
        return self.answer(200, content, ETag=f'"{hub.oid(path, content)}"', **kind, **commit)

    def no_repo(self):
        self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def no_entry(self, **headers):
        self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **headers)


REPO = r"/api/models/(?P<repo>[^/]+/[^/]+)"
ROUTES = [  # ANY: any method, and no token is needed.
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", rf"{REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", rf"{REPO}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", rf"{REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    ("ANY", "/store/(?P<oid>[0-9a-f]{64})", Handler.store),
    ("POST", "/verify", Handler.verify),
    ("ANY", REPO, Handler.info),
    ("ANY", rf"{REPO}/revision/(?P<revision>[^/]+)", Handler.info),
    ("ANY", rf"{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    (
        "ANY",
        r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        Handler.resolve,
    ),
]
