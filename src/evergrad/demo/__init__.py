"""`evergrad demo`: the whole system on drifting handwritten digits, with a model server in a process of its own."""
