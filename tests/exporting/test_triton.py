"""The model repository of Triton: read by Triton's own schema, and asked as in the docs."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from wheels import PIP, REPOSITORY, make_environment, run

from drenet_jax.phantoms.phantom import make_phantom

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed (extra `onnx`)"
)

from drenet_jax.exporting.reference import predict_volume  # noqa: E402

# What Triton reads of a configuration, as JSON.
_READ_CONFIG = """
import pathlib, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
config = text_format.Parse(pathlib.Path(sys.argv[1]).read_text(), ModelConfig())
print(json_format.MessageToJson(config, preserving_proto_field_name=True))
"""


@pytest.fixture(scope="module")
def repository(command, trained, tmp_path_factory) -> Path:
    """The model repository of the trained run."""
    out = tmp_path_factory.mktemp("triton") / "repository"
    process = command(
        "export", f"--workdir={trained}", "--format=triton", "--heat_maps", f"--out={out}"
    )
    assert process.returncode == 0, process.stderr
    assert "agrees with JAX on 9 slices" in process.stdout
    assert f"exported: {out}/drenet/1/model.onnx" in process.stdout
    return out


def test_the_repository_has_what_triton_needs(repository):
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*.*")}
    assert files == {
        "drenet/1/model.onnx",
        "drenet/config.pbtxt",
        "drenet/labels.txt",
        "drenet/model.json",
    }
    assert (repository / "drenet/labels.txt").read_text() == "healthy\nCOVID-19\nbacterial\n"
    config = (repository / "drenet/config.pbtxt").read_text()
    assert config.startswith(
        'name: "drenet"\nbackend: "onnxruntime"\nmax_batch_size: 30\n'
        'input {\n  name: "images"\n  data_type: TYPE_UINT8\n  dims: [96, 96]\n}\n'
        'output {\n  name: "probabilities"\n  data_type: TYPE_FP32\n  dims: [3]\n'
        '  label_filename: "labels.txt"\n}\n'
    )


@pytest.mark.slow
def test_the_configuration_is_that_of_the_graph_in_triton_s_schema(repository, tmp_path):
    # In an environment of its own: its pins are not those of JAX.
    python = make_environment(tmp_path / "venv")
    run([*PIP, f"--python={python}", "install", "tritonclient[grpc]"])
    model = repository / "drenet"

    config = json.loads(run([python, "-c", _READ_CONFIG, model / "config.pbtxt"]))

    graph = onnx.load(model / "1" / "model.onnx").graph
    types = {"TYPE_UINT8": onnx.TensorProto.UINT8, "TYPE_FP32": onnx.TensorProto.FLOAT}
    for tensors, values in ((config["input"], graph.input), (config["output"], graph.output)):
        assert [tensor["name"] for tensor in tensors] == [value.name for value in values]
        for tensor, value in zip(tensors, values, strict=True):
            of_graph = value.type.tensor_type
            assert types[tensor["data_type"]] == of_graph.elem_type
            batch, *dims = of_graph.shape.dim
            assert batch.dim_param  # of any size, which max_batch_size needs
            assert [int(dim) for dim in tensor["dims"]] == [dim.dim_value for dim in dims]
    assert config["name"] == model.name
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 30
    assert "dynamic_batching" in config
    labelled = [tensor for tensor in config["output"] if "label_filename" in tensor]
    assert [tensor["name"] for tensor in labelled] == ["probabilities"]
    assert (model / labelled[0]["label_filename"]).is_file()


@contextlib.contextmanager
def _kserve(model_file: Path) -> Iterator[tuple[str, list[dict]]]:
    """A server of the inference request of KServe v2, and the requests that it got."""
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    requests: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(request | {"path": self.path})
            [tensor] = request["inputs"]
            images = np.array(tensor["data"], np.uint8).reshape(tensor["shape"])
            names = [output["name"] for output in request["outputs"]]
            outputs = [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": value.shape,
                    "data": value.ravel().tolist(),
                }
                for name, value in zip(
                    names, session.run(names, {tensor["name"]: images}), strict=True
                )
            ]
            content = json.dumps({"model_name": "drenet", "outputs": outputs}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


def test_the_example_of_the_docs_gives_what_the_file_gives(repository, tmp_path, monkeypatch):
    text = (REPOSITORY / "docs" / "export.md").read_text()
    [code] = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "score=" in block
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repository").symlink_to(repository)
    volume = make_phantom("COVID-19", 1, 192, "A").volume_hu
    np.save("person7.npy", volume)

    with _kserve(repository / "drenet/1/model.onnx") as (address, requests):
        names: dict = {}
        exec(code.replace("http://localhost:8000", address), names)

    [request] = requests
    [images] = request.pop("inputs")
    assert request["path"] == "/v2/models/drenet/infer"
    assert images["datatype"] == "UINT8"
    assert len(images["data"]) == np.prod(images["shape"])
    expected = predict_volume(repository / "drenet", volume)
    result = names["result"]
    assert result["person"]["label"] == expected["person"]["label"]
    assert result["person"]["probabilities"] == pytest.approx(
        expected["person"]["probabilities"], abs=1e-5
    )
    for row, other in zip(result["slices"], expected["slices"], strict=True):
        assert row["index"] == other["index"]
        for box, other_box in zip(row["boxes"], other["boxes"], strict=True):
            assert box == pytest.approx(other_box, abs=1e-3)
