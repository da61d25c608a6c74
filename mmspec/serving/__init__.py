"""Serving engines beside our own loop: vLLM in a process of its own, and servers that speak OpenAI's protocol."""
