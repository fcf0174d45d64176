"""A LitServe server that computes in batches, each by one version of a model that is always fresh.

    pip install 'evergrad[torch]' litserve
    LOG=file:updates python litserve_app.py
    curl localhost:8000/predict -H 'Content-Type: application/json' -d '{"x": [1, 2, 3, 4]}'

Each worker is a process and follows the log by itself. Where the log holds no version yet, the server does not start.
"""

import os

import litserve
import torch

import evergrad


class Fresh(litserve.LitAPI):
    def setup(self, device: str) -> None:
        layers = torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)
        self.model = torch.nn.Sequential(*layers).eval()  # your own
        self.attached = evergrad.attach(self.model, os.environ["LOG"])

    def decode_request(self, request: dict) -> torch.Tensor:
        return torch.tensor(request["x"], dtype=torch.float32)

    def predict(self, x: torch.Tensor) -> list[dict]:
        with self.attached.pin() as version, torch.inference_mode():
            return [{"y": row, "version": version} for row in self.model(x).tolist()]

    def encode_response(self, output: dict) -> dict:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Fresh(max_batch_size=8, batch_timeout=0.005), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), generate_client_file=False)
