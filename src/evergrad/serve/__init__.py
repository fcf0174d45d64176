"""Serving a log's newest model over the Open Inference Protocol, while updates are applied under it.

    client ──HTTP──> app (routes, errors) ──> model (one worker thread, pins a version) ──> servable ──> replica <── log

`server` holds what users call, `client` needs numpy alone. KServe's SDK is imported in `sdk`, and nowhere else.
"""
