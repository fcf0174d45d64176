"""The REST surface, fuzzed by schemathesis with the server's own OpenAPI: no 500, nothing that it does not tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evergrad.serve.feedback import Feedback
from evergrad.serve.server import Candidate
from tests.serve.support import BATCH, Training, serving, until

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_no_generated_request_breaks_the_server_or_its_description(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    training = Training(tmp_path / "log")
    candidate = Candidate(servable=training.servable(), share=0.5)
    feedback = Feedback(path=tmp_path / "feedback")
    with serving(training.servable(), candidate=candidate, feedback=feedback) as (server, client):
        until(client.ready)
        client.infer(BATCH)
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        options = ["--checks", CHECKS, "--max-examples", "25", "--seed", "1", "--generation-database", "none"]
        quick = ["--suppress-health-check", "all", "--workers", "2", "--no-color", "--phases", "examples,fuzzing"]
        done = subprocess.run(
            [*command, *options, *quick], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert client.infer(BATCH).version == 0
