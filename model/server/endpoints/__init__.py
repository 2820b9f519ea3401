"""One file an endpoint of OpenAI's API."""
