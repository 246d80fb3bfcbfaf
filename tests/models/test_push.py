"""Uploads to a stand-in for the hub: what `huggingface_hub` itself sends, read off a server on this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
from test_export import run_folder
from transformers import AutoModelForCausalLM

from upo.errors import UserError
from upo.models.export import export


class Hub(ThreadingHTTPServer):
    """Knows one token; keeps what is created and committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.full = False


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.answer({"error": "Invalid credentials"}, 401)
        else:
            self.answer({"name": "me", "type": "user", "orgs": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = f"http://127.0.0.1:{self.server.server_port}/me/model"
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": address, "id": "me/model"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            if self.server.full:
                return self.answer({"error": "no room"}, 403)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/commit/{'0' * 40}"})
        else:
            self.answer({"errors": [], "warnings": []})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def private(asked: dict) -> bool:
    """`huggingface_hub` says it in one of two ways, depending on its version."""
    return asked.get("private") is True or asked.get("visibility") == "private"


def test_what_is_uploaded_is_the_exported_folder(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = run_folder(tmp_path / "run", tiny.policy())
    export(run, tmp_path / "model", push="me/model")
    assert hub.created[0]["name"] == "model" and private(hub.created[0])
    assert hub.files == {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    assert f"uploaded to http://127.0.0.1:{hub.server_port}/me/model" in capsys.readouterr().out
    for name, content in hub.files.items():
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / name).write_bytes(content)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(tmp_path / x).state_dict() for x in ("model", "again"))
    assert all(theirs[name].equal(weight) for name, weight in ours.items())
    export(run, tmp_path / "model", overwrite=True, push="me/model", public=True)
    assert not private(hub.created[1])


def test_what_cannot_be_uploaded_is_said_before_the_export(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    run = run_folder(tmp_path / "run", tiny.policy())
    with pytest.raises(UserError, match="as OWNER/MODEL"):
        export(run, tmp_path / "model", push="model")
    with pytest.raises(UserError, match="name one"):
        export(run, tmp_path / "model", public=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"no user here .*hf auth login"):
        export(run, tmp_path / "model", push="me/model")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="no user here"):
        export(run, tmp_path / "model", push="me/model")
    assert not (tmp_path / "model").exists()


def test_a_failed_upload_leaves_the_folder(hub: Hub, tmp_path: Path) -> None:
    hub.full = True
    with pytest.raises(UserError, match="hf upload me/model"):
        export(run_folder(tmp_path / "run", tiny.policy()), tmp_path / "model", push="me/model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
