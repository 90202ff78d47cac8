"""A saved model gives back the very loss it was trained with."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
import tiny
import torch

from hf_losses import LossTrainer, get_loss, load_loss

OPTIONS = {"alpha": 0.3, "label_smoothing": 0.1, "weight": [1.0, 2.0, 0.5], "max_weight": 50.0}


@pytest.fixture
def saved(tmp_path):
    """Saves a tiny model that was to be trained with a loss; returns its folder."""

    def saved(loss):
        trainer = LossTrainer(model=tiny.vit(), args=tiny.arguments(tmp_path), loss=loss)
        trainer.save_model(str(tmp_path / "model"))
        return tmp_path / "model"

    return saved


def test_it_is_the_same_loss(saved):
    given = get_loss("strict_m_power", **OPTIONS)
    found = load_loss(saved(given))
    assert found.config == given.config
    logits, labels = torch.randn(8, 3), torch.arange(8) % 3
    assert torch.equal(found(logits, labels), given(logits, labels))
    assert not torch.equal(found(logits, labels), get_loss("strict_m_power")(logits, labels))


def test_what_cannot_be_given_back_is_said(saved, tmp_path):
    with pytest.raises(ValueError, match="a loss without a registered name"):
        load_loss(saved(torch.nn.MultiMarginLoss()))
    with pytest.raises(ValueError, match=r"cannot read hf_losses\.json of"):
        load_loss(tmp_path)
    (tmp_path / "hf_losses.json").write_text('{"name": "strict_n"}')
    with pytest.raises(ValueError, match="Did you mean 'strict_m'"):
        load_loss(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read hf_losses\.json of 'no such name'"):
        load_loss("no such name")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers requests for one file of one repository, as the Hub does."""

    def do_GET(self):
        found = self.path.startswith("/me/model/resolve/v1/hf_losses.json")
        body = json.dumps({"name": "strict_m_power", **OPTIONS}).encode() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("name", ["me/model", "me/other"])
def test_from_the_hub(tmp_path, name):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        program = f"import hf_losses, json; loss = hf_losses.load_loss({name!r}, revision='v1'); "
        program += "print(json.dumps(loss.config))"
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | hub | {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
        )
        server.shutdown()
    if name == "me/model":
        assert json.loads(done.stdout) == {"name": "strict_m_power", **OPTIONS}, done.stderr
    else:
        assert "ValueError: cannot read hf_losses.json of 'me/other'" in done.stderr
