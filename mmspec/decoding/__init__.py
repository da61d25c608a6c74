"""A request for tokens: sampling, stopping, text, and the records of its rounds."""
