"""Streams that drift: recommendations, demand and turning digits, with the strategies of the paper; see README.md."""
