"""Names on the Hugging Face Hub, and the files of a repository that a loader needs.

`huggingface_hub` sends all requests, so its cache, tokens and environment variables (``HF_HOME``, ``HF_HUB_CACHE``,
``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``) apply. It is imported only if a name is not a local path.

| file | job |
|---|---|
| `names` | tell a path from a name |
| `repository` | list and fetch the files of one repository at one commit |
| `gguf_files` | choose a ``.gguf`` file among several |
| `fetching` | return the local path of a name; `from_pretrained` calls it |
"""
