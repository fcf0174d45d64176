"""A FastAPI server whose model is always fresh. Every answer says which version computed it.

    pip install 'evergrad[torch]' fastapi uvicorn
    LOG=file:updates uvicorn fastapi_app:app
    curl localhost:8000/predict -H 'Content-Type: application/json' -d '{"x": [[1, 2, 3, 4]]}'

It may start before its trainer does: until there is a first version, it answers 503.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

import evergrad

model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)).eval()  # your own


class Rows(BaseModel):
    x: list[list[float]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with evergrad.attach(model, os.environ["LOG"], must_exist=False) as app.state.attached:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(rows: Rows) -> dict:  # not async: FastAPI runs it in a thread, and any number of threads may pin
    with app.state.attached.pin() as version, torch.inference_mode():
        return {"y": model(torch.tensor(rows.x)).tolist(), "version": version}


@app.get("/health")
def health() -> dict:
    with app.state.attached.pin() as version:
        return {"version": version, "digest": f"{app.state.attached.digest:016x}"}


@app.exception_handler(evergrad.errors.NotSynced)
def not_ready(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=503)
