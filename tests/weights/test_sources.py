"""Files, directories and repositories; the hub is this machine, or nobody."""

import http.server
import json
import socket
import threading
from typing import ClassVar

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from flaxattn import InputError, weights

CONFIG = {"architecture": "resnet10", "num_classes": 3, "pretrained_cfg": {"num_classes": 1000}}
TENSORS = {"x": np.arange(3, dtype=np.float32)}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD = "89abcdef0123456789abcdef0123456789abcdef"


def put(folder, name="model.safetensors", config=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(TENSORS, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def cached(cache, revision="main", commit=COMMIT):
    """What huggingface_hub leaves in its cache."""
    repository = cache / "models--timm--tiny"
    put(repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)


def test_a_directory(tmp_path):
    path, config = weights.fetch(put(tmp_path))
    assert path == tmp_path / "model.safetensors"
    assert config == {"architecture": "resnet10", "num_classes": 3}, "what stands above wins"
    np.testing.assert_array_equal(weights.read(str(tmp_path))["x"], TENSORS["x"])


def test_a_directory_with_a_file_of_another_name(tmp_path):
    put(tmp_path, "seresnet50-a1.safetensors", None)
    assert weights.fetch(tmp_path) == (tmp_path / "seresnet50-a1.safetensors", {})
    put(tmp_path, "epoch3.safetensors", None)
    with pytest.raises(InputError, match=r"epoch3\.safetensors, seresnet50-a1\.safetensors: name"):
        weights.fetch(tmp_path)
    put(tmp_path, "model.safetensors", None)
    assert weights.fetch(tmp_path).path.name == "model.safetensors"


def test_a_directory_without_weights(tmp_path):
    with pytest.raises(InputError, match=r"neither model\.safetensors nor .* none that ends in"):
        weights.fetch(tmp_path)


def test_a_config_beside_a_file_is_its_own(tmp_path):
    put(tmp_path)
    save_file(TENSORS, tmp_path / "other.safetensors")
    assert weights.fetch(tmp_path / "model.safetensors").config["num_classes"] == 3
    assert weights.fetch(tmp_path / "other.safetensors").config == {}


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"pretrained_cfg": 3}'])
def test_a_config_that_is_none(tmp_path, text):
    put(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is not a JSON object"):
        weights.fetch(tmp_path)


@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        ("torch", "safetensors"),
        ("torch", "npz"),
        ("torch", "pth"),
        ("flax", "safetensors"),
        ("flax", "npz"),
    ],
)
def test_what_is_written_is_read(tmp_path, suffix, names):
    path = tmp_path / f"weights.{suffix}"
    tensors = {"a.weight": np.ones(2)} if names == "torch" else {"params": {"a": np.ones(2)}}
    weights.write(path, tensors, config=CONFIG)
    ((name, array),) = weights.read(path).items()
    assert name == ("a.weight" if names == "torch" else "params/a")
    np.testing.assert_array_equal(array, np.ones(2))
    assert weights.fetch(path).config["architecture"] == "resnet10"
    with pytest.raises(InputError, match=r"weights\.\w+ exists: name another file"):
        weights.write(path, {"a": np.zeros(2)})
    weights.write(path, {"b": np.zeros(2)}, overwrite=True)
    assert weights.read(path).keys() == {"b"}
    assert weights.fetch(path).config == {}
    assert {file.suffix for file in tmp_path.iterdir()} == {path.suffix} | (
        {".json"} if suffix == "npz" else set()
    )


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    weights.write(path, TENSORS)

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="no space left"):
        weights.write(path, {"x": np.zeros(9)}, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(weights.read(path)["x"], TENSORS["x"])


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"use a \.safetensors, \.npz, \.pth or \.pt"):
        weights.write(tmp_path / "x.h5", TENSORS)
    with pytest.raises(InputError, match="cannot write"):
        weights.write(tmp_path / "nowhere" / "x.npz", TENSORS)


@pytest.mark.parametrize("source", ["a" * 300, "a" * 300 + ".pth", "a\0b.pth"])
def test_a_path_that_no_file_can_have(source):
    with pytest.raises(InputError, match="there is no weight file"):
        weights.fetch(source)


@pytest.mark.parametrize("source", ["", None, 3, b"x.pth", ["x.pth"], {"x": np.ones(1)}])
def test_a_source_that_is_no_path(source):
    with pytest.raises(InputError, match=r"^source=.* must be the path of a file or a directory"):
        weights.fetch(source)


def test_a_directory_that_cannot_be_looked_into(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot look into the directory .*: Permission denied;"):
        weights.fetch(tmp_path)


def test_of_many_files_in_a_directory_a_few_are_named(tmp_path):
    for number in range(100):
        (tmp_path / f"{number:08}.pth").touch()
    with pytest.raises(InputError, match=r"00000005\.pth and 94 more: name the file") as error:
        weights.fetch(tmp_path)
    assert len(str(error.value)) <= 600


def test_a_config_as_deep_as_a_well(tmp_path):
    put(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"config\.json is not a JSON object"):
        weights.fetch(tmp_path)


@pytest.mark.parametrize("classes", ["1000", -3, 2.0, True, [3]])
def test_a_number_of_classes_that_is_none(tmp_path, classes):
    checkpoint = weights.Checkpoint(tmp_path, {"num_classes": classes})
    with pytest.raises(InputError, match=r"has num_classes=.*, which must be an integer of 0 or"):
        _ = checkpoint.num_classes


def test_what_a_config_does_not_state(tmp_path):
    for config in ({}, {"num_classes": None, "architecture": None}):
        checkpoint = weights.Checkpoint(tmp_path, config)
        assert (checkpoint.num_classes, checkpoint.architecture) == (1000, None)
    with pytest.raises(InputError, match=r"has architecture=\['x'\], which must be the name of a"):
        _ = weights.Checkpoint(tmp_path, {"architecture": ["x"]}).architecture


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("weights/resnet50.pth", "weights", tmp_path / "timm" / "tiny"):
        with pytest.raises(InputError, match="there is no weight file"):
            weights.fetch(source)
    with pytest.raises(InputError, match=r"write hf-hub:owner/name"):
        weights.fetch("hf-hub:tiny")
    with pytest.raises(InputError, match="revision='v1' belongs to a repository"):
        weights.fetch(put(tmp_path), revision="v1")


@pytest.mark.parametrize("source", ["timm/tiny", "hf-hub:timm/tiny"])
def test_a_repository_in_the_cache(tmp_path, source):
    cached(tmp_path)
    path, config = weights.fetch(source, cache_dir=tmp_path)
    assert COMMIT in path.parts
    assert config["num_classes"] == 3
    assert weights.read(weights.fetch(source, cache_dir=tmp_path)).keys() == {"x"}


def test_a_revision_in_the_cache(tmp_path):
    cached(tmp_path)
    cached(tmp_path, "old", OLD)
    for revision in ("old", OLD):
        path = weights.fetch("timm/tiny", revision=revision, cache_dir=tmp_path, offline=True).path
        assert OLD in path.parts
    with pytest.raises(InputError, match=r"timm/tiny at v9 is not in the cache, .* path of their"):
        weights.fetch("timm/tiny", revision="v9", cache_dir=tmp_path)


def test_offline_without_a_cache(tmp_path):
    with pytest.raises(InputError, match=r"cannot be reached .* download model\.safetensors"):
        weights.fetch("timm/tiny", cache_dir=tmp_path)


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository, timm/tiny, with one revision."""

    files: ClassVar = {
        "model.safetensors": save(TENSORS),
        "config.json": json.dumps(CONFIG).encode(),
    }
    asked: ClassVar = []
    lost = 0

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        self.answer(self.files.get(self.path.rpartition("/")[2], b""))

    def answer(self, body):
        self.asked.append(self.path)
        _, owner, repository, _, revision, name = self.path.split("/")
        error = None
        if (owner, repository) != ("timm", "tiny"):
            error = "RepoNotFound"
        elif revision != "main" and revision != COMMIT:
            error = "RevisionNotFound"
        elif name not in self.files:
            error = "EntryNotFound"
        self.send_response(404 if error else 200)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{name}"')
        self.send_header("Content-Length", str(0 if error else len(self.files[name])))
        self.end_headers()
        if not error:
            self.wfile.write(body[: len(body) - self.lost])

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The requests made to a hub on this machine."""
    monkeypatch.setattr(Hub, "asked", [])
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    online(monkeypatch, server.server_port)
    yield Hub.asked
    huggingface_hub.close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def online(monkeypatch, port):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between its five attempts


def test_a_repository_is_downloaded_once(tmp_path, hub):
    first = weights.fetch("timm/tiny", cache_dir=tmp_path)
    np.testing.assert_array_equal(weights.read(first)["x"], TENSORS["x"])
    assert first.config["num_classes"] == 3
    asked = len(hub)
    assert weights.fetch("timm/tiny", cache_dir=tmp_path, offline=True) == first
    assert len(hub) == asked > 0


@pytest.mark.usefixtures("hub")
def test_a_repository_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot get timm/tinny .*RepositoryNotFound.* local"):
        weights.fetch("timm/tinny", cache_dir=tmp_path)
    with pytest.raises(InputError, match="RevisionNotFound"):
        weights.fetch("timm/tiny", revision="v9", cache_dir=tmp_path)


@pytest.mark.usefixtures("hub")
def test_a_download_that_breaks_off(tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "lost", 30)
    with pytest.raises(InputError, match=r"cannot get timm/tiny .* local file"):
        weights.fetch("timm/tiny", cache_dir=tmp_path)


@pytest.mark.usefixtures("hub")
def test_a_repository_without_weights(tmp_path, monkeypatch):
    monkeypatch.delitem(Hub.files, "model.safetensors")
    with pytest.raises(InputError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        weights.fetch("timm/tiny", cache_dir=tmp_path)


def test_no_network(tmp_path, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        online(monkeypatch, nobody.getsockname()[1])
        with pytest.raises(InputError, match=r"cannot be reached .* path of their directory"):
            weights.fetch("timm/tiny", cache_dir=tmp_path)
    huggingface_hub.close_session()
