"""A Ray Serve deployment whose replicas keep their models fresh, each on its own.

    pip install 'evergrad[torch]' 'ray[serve]'
    LOG=s3:bucket/updates python ray_serve.py
    curl localhost:8000 -d '{"x": [[1, 2, 3, 4]]}'

The log is one that every node can read. Where it holds no version yet, the deployment fails, and Ray tries it again.
"""

import os

import torch
from ray import serve
from starlette.requests import Request

import evergrad


@serve.deployment(num_replicas=1)
class Fresh:
    def __init__(self, log: str) -> None:
        layers = torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)
        self.model = torch.nn.Sequential(*layers).eval()  # your own
        self.attached = evergrad.attach(self.model, log)

    async def __call__(self, request: Request) -> dict:
        x = torch.tensor((await request.json())["x"], dtype=torch.float32)
        with self.attached.pin() as version, torch.inference_mode():  # no await in here: all updates wait for its end
            return {"y": self.model(x).tolist(), "version": version}


app = Fresh.bind(os.environ["LOG"])

if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ.get("PORT", "8000"))})
    serve.run(app, blocking=True)
