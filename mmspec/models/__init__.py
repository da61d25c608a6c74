"""One Hugging Face model: passes over it, the requests on it, and their caches."""
